"""What goes with a trial's repair: blocks and dtypes, masks, and of one that trains on sequences how many there are; and
with one between shots, which there have to be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from prunelab.config.compose import Config
from prunelab.config.contract import WHOLE, check_repair, repair_scope
from prunelab.config.data import parts_of
from prunelab.config.field import ClassSource, read_class
from prunelab.config.files import widths
from prunelab.errors import ConfigError
from prunelab.pattern.base import BEFORE, BETWEEN

ADAPTERS = (
    "adapters"  # what a class says that it trains whose fields have the names, and the sense, of LoRA's
)


def is_whole(repair: Mapping[str, Any]) -> bool:
    """Say whether a repair takes the pruned model all at once; False where there is none."""
    return "_target_" in repair and repair_scope(read_class(str(repair["_target_"]))) == WHOLE


def about_repair(config: Config, between: ConfigError | None) -> Iterator[ConfigError]:
    """Yield what does not go together; ``between``: why masks cannot be chosen between repairs, None if they can."""
    repair = config["reconstruction"]
    if "_target_" not in repair:
        return
    source = read_class(str(repair["_target_"]))
    yield from check_repair(repair, source)
    window, stride = ({**source.literals, **repair}.get(key) for key in ("window", "stride"))
    if isinstance(window, int) and isinstance(stride, int) and stride > window:
        yield ConfigError("reconstruction.stride", stride, f"1 to {window}, the window")
    yield from _about_dtype(config, repair, source, "reconstruction")
    if repair.get("masks") == BETWEEN:
        if repair_scope(source) == WHOLE:
            hint = "It repairs the model as a whole, all of which is pruned by then."
            yield ConfigError("reconstruction.masks", BETWEEN, BEFORE, hint)
        elif between is not None:
            yield between
    parts = parts_of(config["reconstruction_data"].get("parts"), config["calibration"]["n_samples"])
    if repair.get("patience") is not None and sum(parts.values()) < 2:
        hint = "One sequence in eight, at least one, is kept from training and decides when it ends."
        yield ConfigError("reconstruction.patience", repair["patience"], "null with a single sequence", hint)
    if source.literals.get("trains") == ADAPTERS:
        yield from _about_adapters(config, source, sum(parts.values()), "reconstruction")


def about_between_shots(config: Config) -> Iterator[ConfigError]:
    """Yield what does not go with a repair between the shots of a pruning."""
    repair = config.get("between_shots") or {}
    if "_target_" not in repair:
        return
    source, name = read_class(str(repair["_target_"])), repair["name"]
    yield from check_repair(repair, source, "between_shots")
    if repair_scope(source) != WHOLE:
        hint = "Between shots the dense weights are gone."
        yield ConfigError("between_shots", name, f"a repair of scope {WHOLE!r}, or none", hint)
        return
    step, ratio = config["method"]["step"], config["sparsity"]["ratio"]
    if ratio is not None and (step is None or step >= ratio):
        allowed = f"below {ratio:g}, the ratio, with between_shots={name}, which needs several shots"
        yield ConfigError("method.step", step, allowed, "Or between_shots=none.")
    yield from _about_dtype(config, repair, source, "between_shots")
    if source.literals.get("trains") == ADAPTERS:
        yield from _about_adapters(config, source, config["calibration"]["n_samples"], "between_shots")


def _about_dtype(
    config: Config, repair: Mapping[str, Any], source: ClassSource, group: str
) -> Iterator[ConfigError]:
    dtypes, dtype = source.literals.get("dtypes"), config["model"]["dtype"]
    if dtypes and dtype not in dtypes:
        yield ConfigError("model.dtype", dtype, f"{' | '.join(dtypes)} with {group}={repair['name']}")


def _about_adapters(
    config: Config, source: ClassSource, n_sequences: int, group: str
) -> Iterator[ConfigError]:
    """Rules of additions of low rank that are trained on ``n_sequences``."""
    repair: Mapping[str, Any] = config[group]
    roles = source.fields["sites"].bound
    if not repair["sites"]:
        yield ConfigError(f"{group}.sites", repair["sites"], f"at least one of {roles.replace(' | ', ', ')}")
    narrowest = min(widths(config["model"]), default=None)
    if narrowest is not None and repair["rank"] > narrowest:
        allowed = f"at most {narrowest}, the narrowest width of {config['model']['name']}"
        yield ConfigError(f"{group}.rank", repair["rank"], allowed)
    share = repair["held_out"]
    trained = n_sequences - math.ceil(share * n_sequences)
    trained = max(1, math.floor(repair["share"] * trained + 1e-9)) if trained else 0
    if not trained:
        allowed = f"a share that leaves one of {n_sequences} sequences to train on"
        yield ConfigError(f"{group}.held_out", share, allowed)
        return
    if repair["keep"] == "best" and not share:
        hint = "Without sequences that are held out nothing says which additions are the best."
        yield ConfigError(f"{group}.held_out", share, f"above 0 with {group}.keep=best", hint)
    batch = min(repair["batch"], trained)
    updates = repair["epochs"] * (trained // batch)
    if updates and repair["warmup"] >= updates:
        allowed = f"less than {updates}, the updates of {repair['epochs']} epochs over {trained} sequences in batches of {batch}"
        hint = f"Take more text, a smaller {group}.batch, more epochs, or a shorter warm-up."
        yield ConfigError(f"{group}.warmup", repair["warmup"], allowed, hint)
