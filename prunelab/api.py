"""The numerics without a sweep: load, take tokens, prune, measure, save. For notebooks and scripts.

    import prunelab
    model = prunelab.load_model("embedded_llama")
    tokens = prunelab.load_tokens(model, "austen", n_samples=32, seq_len=128)
    state = prunelab.prune(model, tokens, method="wanda", ratio=0.5)
    state = prunelab.repair(model, state, tokens, method="block")
    print(prunelab.ratios(model, state), prunelab.perplexity(model, "austen"))
    prunelab.save(model, "pruned")

Names are those of ``conf``; the values in its YAML files are the defaults here as well.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import OmegaConf
from torch import Tensor

from prunelab.calibration.collect import collect_tokens
from prunelab.config.build import build
from prunelab.config.field import read_class
from prunelab.config.place import conf_folder
from prunelab.errors import ConfigError, nearest
from prunelab.evaluation import perplexity as evaluate_perplexity
from prunelab.evaluation.ratios import ratios as evaluate_ratios
from prunelab.methods.facts import facts_of
from prunelab.model_files import FORMS, OWN
from prunelab.models.decoder import Decoder
from prunelab.models.load import load_decoder, load_tokenizer, restore
from prunelab.passes import shots as passes
from prunelab.passes.between import Between
from prunelab.pattern.base import (
    BETWEEN,
    BY_CLASS,
    BY_KIND,
    GLOBAL,
    UNIFORM,
    Propagation,
    default_stream,
    settle,
)
from prunelab.pattern.table import build_pattern
from prunelab.pattern.units import Units
from prunelab.pattern.weights import Unstructured
from prunelab.plan.schedule import schedule
from prunelab.reconstruction.base import is_whole
from prunelab.reconstruction.walk import reconstruct, split_stopping
from prunelab.reconstruction.whole import between_shots as correction
from prunelab.reconstruction.whole import repair_whole
from prunelab.structures.checkpoint import origin_of, save_form
from prunelab.structures.state import State, open_state, save_state
from prunelab.structures.surgery import compact as compact_decoder


@dataclass(frozen=True, eq=False)
class Model:
    """A decoder in memory, pruned in place by :func:`prune`, with its tokenizer and the spec it was loaded by."""

    decoder: Decoder
    tokenizer: Any
    spec: Mapping[str, Any]


def load_model(
    name: str, *, revision: str | None = None, dtype: str = "float32", device: str = "cpu"
) -> Model:
    """Load a model by the name of a ``conf/model`` file, by local folder, or by hub id with a pinned ``revision``.

    Raises ConfigError for an unknown name, ModelError for weights that cannot be loaded.
    """
    known = _names("model")
    if name in known:
        spec = {**_option("model", name), "dtype": dtype}
    elif (folder := Path(name).expanduser()).is_dir():
        spec = _spec("local", str(folder.absolute()), None, dtype)
    elif name.startswith(("/", "~", ".")):
        raise ConfigError(
            "model", name, "a folder with config.json and *.safetensors", f"No folder at {folder.absolute()}."
        )
    elif "/" in name:
        if revision is None:
            raise ConfigError(
                "revision", None, "a commit of the hub repository", f"Numbers of {name} need a pinned one."
            )
        spec = _spec("hub", name, revision, dtype)
    else:
        raise ConfigError("model", name, f"{', '.join(known)}, a folder, or a hub id", nearest(name, known))
    return Model(load_decoder(spec, device=device), load_tokenizer(spec), spec)


def load_tokens(
    model: Model,
    corpus: str | Path,
    *,
    n_samples: int | None = 32,
    seq_len: int = 128,
    role: str = "mask",
    seed: int = 0,
) -> Tensor:
    """Return tokens (n_samples, seq_len) int64 of a corpus, or of a local .txt, .jsonl, .parquet or .npy file.

    ``role``: ``mask`` (train split, random windows), ``held_out`` (validation), ``test`` (first full windows).
    """
    place, known = Path(corpus), _names("calibration")
    if str(corpus) in known:
        spec = _option("calibration", str(corpus))
    elif place.is_file():
        spec = _option("calibration", "tokens" if place.suffix == ".npy" else "text") | {
            "path": str(place.absolute())
        }
    else:
        raise ConfigError(
            "corpus", str(corpus), f"{', '.join(known)}, or a file", nearest(str(corpus), known)
        )
    found = collect_tokens(
        spec, model.tokenizer, role=role, n_samples=n_samples, seq_len=seq_len, seed=seed,
        vocab_size=model.decoder.model.config.get_text_config().vocab_size,
    )  # fmt: skip
    return torch.from_numpy(found.tokens.astype("int64")).to(model.decoder.device)


def prune(
    model: Model, tokens: Tensor | None, *, method: str = "surgeon", ratio: float | None = None,
    pattern: str | None = None, within: str | None = None, rounding: str | None = None, allocation: str | None = None,
    propagation: Propagation | None = None, units: Mapping[str, Any] | None = None, seed: int = 0,
    batch_size: int = 16, progress: Callable[[Mapping[str, Any]], None] | None = None, domains: Sequence[Tensor] = (),
    between_shots: str | None = None, **fields: Any,
) -> State:  # fmt: skip
    """Prune a dense model in place and return its state, which shares the model's memory.

    ``ratio``: removed fraction of the weights the pattern counts; n:m fixes its own. ``pattern``: ``rows_columns``,
    ``unstructured``, ``units``, or e.g. ``2:4``; None = the first one that the method supports. ``allocation``: a name
    of ``conf/allocation``; None = as the pattern's paper. ``units``: fields of ``conf/sparsity/units.yaml``, such as
    ``{"compensation": "bias"}``. ``domains``: token sets of other text, for a method that compares them. ``between_shots``:
    a name of ``conf/between_shots``, what corrects the model between two shots. ``fields`` replace the method's defaults.
    Raises ConfigError for what does not fit together.
    """
    built = _built("method", method, fields)
    name, own = (
        pattern or built.supports[0],
        {literal: getattr(built, literal) for literal in BY_CLASS if hasattr(built, literal)},
    )
    options = {**units} if units else {}
    if name == Units.name:
        options["kinds"] = options.get("kinds") or own.get("kinds")
        options["compensation"] = settle(options.get("compensation"), own, "compensation", "none")
    form = build_pattern(name, within=within, rounding=rounding, **options)
    allocation = own.get("allocation") if allocation in (None, "by_pattern") else allocation
    stream = default_stream(type(form), facts_of(built), allocation)
    if form.propagates:
        stream = settle(propagation, own, "propagation", stream)
    elif propagation is not None:
        stream = propagation  # for the rule to refuse
    ratio = form.fixed_ratio if ratio is None else ratio
    if ratio is None or not 0 <= ratio < 1:
        raise ConfigError("ratio", ratio, "a number, 0 <= x < 1")
    spread = None if allocation is None else _allocation(str(allocation))
    shots, correct = schedule(ratio, built.step), None
    if between_shots is not None and between_shots != "none":
        if len(shots) < 2:
            allowed = f"below {ratio:g}, the ratio, with between_shots={between_shots}"
            raise ConfigError("step", built.step, allowed)
        spec = _built("between_shots", between_shots, {})
        correct = correction(model.decoder, spec, seed=seed, batch_size=batch_size)
    return passes.prune(
        model.decoder, built, tokens, shots, pattern=form, seed=seed,
        batch_size=batch_size, allocation=spread, propagation=cast(Propagation, stream), progress=progress,
        domains=domains, correct=correct,
    )  # fmt: skip


def repair(
    model: Model, state: State, tokens: Tensor, *, method: str = "block", seed: int = 0, batch_size: int = 16,
    progress: Callable[[Mapping[str, Any]], None] | None = None, **fields: Any,
) -> State:  # fmt: skip
    """Repair what ``state`` keeps on ``tokens`` (n, seq_len); return the repaired model's state.

    Masks are those of ``state``: the command line's ``reconstruction.masks=before``; see :func:`prune_and_repair`.
    ``method``: a name of ``conf/reconstruction``; ``fields`` replace its defaults. The dense weights are read from
    the checkpoint again, in place of the pruned ones, which wait in a temporary file: there is never a second model.
    ``progress`` also gets the rows of a repair that trains the whole model, such as ``lora``: its loss at each step.
    """
    spec = _built("reconstruction", method, fields)
    if fields.get("masks") == BETWEEN:
        hint = "Use prunelab.prune_and_repair."
        raise ConfigError("masks", BETWEEN, "the masks of the state, which are chosen", hint)
    stopping = None
    if not is_whole(spec) and spec.early_stop:
        tokens, stopping = split_stopping(tokens)
    with tempfile.TemporaryDirectory(prefix="prunelab-") as folder:
        path = Path(folder) / "pruned.safetensors"
        save_state(state, path)
        restore(model.decoder, model.spec)
        if is_whole(spec):
            hear: dict[str, Any] = {} if progress is None else {"log": progress, "progress": progress}
            return repair_whole(
                model.decoder, open_state(path), tokens, spec, seed=seed, batch_size=batch_size, **hear
            )[0]
        return reconstruct(
            model.decoder, open_state(path), tokens, spec, seed=seed, batch_size=batch_size, stopping=stopping,
            progress=progress,
        )  # fmt: skip


def prune_and_repair(
    model: Model, tokens: Tensor | None, *, method: str = "wanda", repair: str = "block", fit_to: Tensor | None = None,
    ratio: float | None = None, pattern: str | None = None, within: str | None = None, rounding: str | None = None,
    allocation: str | None = None, seed: int = 0, batch_size: int = 16,
    progress: Callable[[Mapping[str, Any]], None] | None = None, **fields: Any,
) -> State:  # fmt: skip
    """Prune a dense model in place, each block once those before it are repaired; return the repaired model's state.

    What the command line does with ``reconstruction.masks=between``; :func:`prune`, then :func:`repair` is ``before``.
    Masks are chosen on ``tokens``; the repair fits to ``fit_to``, None = the same. ``fields`` replace the repair's
    defaults; the other arguments are those of :func:`prune`.
    """
    spec, built = _built("reconstruction", repair, fields), _built("method", method, {})
    form = build_pattern(pattern or Unstructured.name, within=within, rounding=rounding)
    ratio = form.fixed_ratio if ratio is None else ratio
    if is_whole(spec):
        allowed = "a repair that goes block by block"
        raise ConfigError("repair", repair, allowed, "Use prunelab.prune, then prunelab.repair.")
    if ratio is None:
        raise ConfigError("ratio", ratio, "a number, 0 <= x < 1")
    spread = None if allocation in (None, "by_pattern") else _allocation(str(allocation))
    text = tokens if fit_to is None else fit_to
    if text is None:
        raise ConfigError("fit_to", None, "tokens (n, seq_len), where tokens is None")
    between, stopping = Between(built, tokens, ratio, form, seed, batch_size, spread, None, progress), None
    if spec.early_stop:
        text, stopping = split_stopping(text)
    return reconstruct(
        model.decoder,
        between,
        text,
        spec,
        seed=seed,
        batch_size=batch_size,
        stopping=stopping,
        progress=progress,
    )


def perplexity(
    model: Model, text: str | Tensor, *, n_samples: int | None = 64, seq_len: int = 128, batch_size: int = 16
) -> float:
    """Return the perplexity on tokens (n, seq_len), or on the first windows of a corpus' test split."""
    if isinstance(text, str):
        text = load_tokens(model, text, n_samples=n_samples, seq_len=seq_len, role="test")
    return evaluate_perplexity.perplexity(model.decoder, text, batch_size)


def ratios(model: Model, state: State) -> dict[str, float]:
    """Return the removed fractions of the prunable weights, of the decoder's parameters, of the units."""
    return evaluate_ratios(state, model.decoder)


def compact(model: Model, state: State) -> None:
    """Make a pruned model physically smaller, in place: same function, fewer parameters.

    Where whole heads and hidden units are gone the model is an ordinary one of other widths afterwards, which can be
    saved and pruned again; to repair it again, save it and load that folder. Where single rows and columns are gone, its
    layers pick what they read and place what they give: it runs, is measured and saved, but not pruned or repaired again.
    """
    compact_decoder(model.decoder, state)


def save(model: Model, folder: str | Path, form: str = OWN) -> Path:
    """Write a checkpoint (safetensors, config, tokenizer) that plain transformers loads; zeros stay zeros.

    A model that :func:`compact` made smaller is written as it is. Where no config.json can say its widths, a modelling
    file lies beside the weights: ``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)``; see
    ``structures/checkpoint.py``. ``form`` "padded" fills it up with zeros to an ordinary checkpoint, "decilm" writes a Llama
    as ``DeciLMForCausalLM``. Raises ModelError where a model that lost single rows and columns is to be of either form.
    """
    if form not in FORMS:
        raise ConfigError("form", form, " | ".join(FORMS), nearest(form, FORMS))
    place = Path(folder)
    save_form(model.decoder, place, origin_of(model.spec), form)
    model.tokenizer.save_pretrained(place)
    return place


def _built(group: str, name: str, fields: Mapping[str, Any]) -> Any:
    """Build an option of ``group`` with some of its fields replaced, each checked as the command line does."""
    known = [option for option in _names(group) if "_target_" in _option(group, option)]
    if name not in known:
        raise ConfigError(group, name, ", ".join(known), nearest(name, known))
    spec = _option(group, name)
    keys = read_class(str(spec["_target_"])).fields
    for field, value in fields.items():
        if field not in keys:
            allowed = f"a field of {name}: {', '.join(keys)}"
            raise ConfigError(field, value, allowed, nearest(field, list(keys)))
        spec[field] = keys[field].check(field, value)
    return build(spec, group)


def _allocation(name: str) -> Any:
    return name if name in (UNIFORM, GLOBAL, BY_KIND) else _built("allocation", name, {})


def _names(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def _option(group: str, name: str) -> dict[str, Any]:
    plain = OmegaConf.to_container(OmegaConf.load(conf_folder() / group / f"{name}.yaml"), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _spec(source: str, name: str, revision: str | None, dtype: str) -> dict[str, Any]:
    return {
        "name": name.rstrip("/").rpartition("/")[2], "source": source, "id": name, "revision": revision, "digest": None,
        "dtype": dtype, "max_len": None, "trust_remote_code": False,
    }  # fmt: skip
