"""Every key of the resolved config, two-valued: two trials that can be told apart, or a reason in one table, or a refusal.

Options are globbed and their keys walked, so a key that comes later is swept as well; where no second value can be made
up from its type, the test asks for one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import prunelab
from prunelab.config.compose import Composer
from prunelab.config.field import Field, read_class
from prunelab.config.trial import plain
from prunelab.config.vary import SELDOM, STILL, is_still
from prunelab.launch.command.entry import run
from prunelab.launch.command.study import StudyError, plan_study
from prunelab.plan.study import Trial
from prunelab.report.label import label_trials

MODELS = Path(__file__).resolve().parents[2] / "prunelab" / "data" / "models"
SHA = "0123456789abcdef0123456789abcdef01234567"
TAIL = "'" + SHA[::-1] + "'"
WANDA = "method=wanda sparsity=unstructured"
LORA = "reconstruction=lora reconstruction.warmup=1 reconstruction.batch=4 reconstruction.held_out=0.25"
BETWEEN = "between_shots.held_out=0.25 between_shots.epochs=2 between_shots.share=0.2"
SWEPT = "stages.latency={_target_:every_key_stage.Latency,repeats:2}"
MEASURED = "evaluation.metrics.top={_target_:every_key_stage.Top,k:2}"
# overrides -> the groups whose keys are walked under them; together they have every key of every option
WALKS = {
    "": "study seed domains model calibration sparsity evaluation runtime tracking paths method",
    WANDA: "sparsity method allocation runtime",
    "sparsity=2of4 method=sparsegpt": "sparsity method",
    "sparsity=4of8 method=magnitude": "sparsity method",
    "sparsity=units method=wanda_sp": "sparsity evaluation",
    "sparsity=units method=flap": "method",
    "sparsity=units method=magnitude_sp": "method",
    "sparsity=units method=shortgpt": "method",
    "sparsity=units method=sublayer_influence": "method",
    f"{WANDA} allocation=owl": "allocation",
    f"{WANDA} reconstruction=layer": "reconstruction",
    f"{WANDA} reconstruction=block": "reconstruction",
    f"{WANDA} reconstruction=block_gp": "reconstruction",
    f"{WANDA} reconstruction=cross_block": "reconstruction",
    f"{WANDA} {LORA}": "reconstruction",
    f"{WANDA} reconstruction=lora_surgeon reconstruction.held_out=0.25": "reconstruction",
    f"between_shots=lora_surgeon {BETWEEN}": "between_shots",
    f"{WANDA} reconstruction=block reconstruction_data=self_generated": "reconstruction_data",
    f"{WANDA} reconstruction=block reconstruction_data=self_generated_mix": "reconstruction_data",
    "tracking=wandb": "tracking",
    "evaluation.tasks=[continuation_austen]": "evaluation model",
    "method=kobd": "method",
    "method=lobd": "method",
    "method=random": "method",
    "method=mutual_information sparsity=units": "method",
    "method=llm_pruner sparsity=units": "method",
    "method=estimation_fusion sparsity=units": "method",
    "method=gprune sparsity=units domains=[kjv]": "method domains",
    "model=local model.id={0}/one": "model",
    f"model=hub model.id=org/one model.revision='{SHA}' calibration=wikitext2": "model calibration",
    "calibration=text calibration.path={0}/one.txt": "calibration",
    "calibration=tokens calibration.path={0}/one.npy calibration.sampler=rows": "calibration",
    "calibration=c4": "calibration",
    f"+{SWEPT}": "stages",
    f"+{MEASURED}": "evaluation",
}  # fmt: skip
SPLIT = "calibration.split={mask:validation,held_out:train,test:test}"
# what a second value is where the type does not tell: a value, or with a space or '=' whole overrides
SECOND = {
    "model.family": "{0}/llama.yaml", "model.source": "model=local model.id={0}/two", "model.revision": TAIL,
    "model.digest": {"null": f"'{SHA[:32] * 2}'"}, "calibration.digest": {"null": f"'{SHA[:32] * 2}'"},
    "model.id": {"llama": "opt", "{0}/one": "{0}/two", "org/one": "org/two"},
    "calibration.source": {"text": "tokens", "tokens": "text",
                           "embedded": "calibration=text calibration.path={0}/one.txt", "hub": "calibration=kjv"},
    "calibration.revision": TAIL,
    "calibration.id": {"austen": "kjv", "Salesforce/wikitext": "org/text", "allenai/c4": "org/text"},
    "calibration.path": {"{0}/one.txt": "{0}/two.txt", "{0}/one.npy": "{0}/two.npy"},
    "calibration.split": "{{mask:train,held_out:validation,test:test}}", "calibration.split.*": SPLIT,
    "calibration.sampler": {"random_windows": "documents", "documents": "sequential", "rows": "sequential"},
    "calibration.max_documents.*": "1000",
    "sparsity.pattern": "sparsity=unstructured method=magnitude", "sparsity.within": "matrix",
    "sparsity.kinds": "[neurons]", "sparsity.propagation": {"by_method": "dense"}, "sparsity.compensation": "bias",
    "sparsity.ratio": {"null": "0.4"}, "sparsity.n": "1", "sparsity.m": "16",
    "method._target_": {"prunelab.methods.random.Random": "method=magnitude",
                        "prunelab.methods.gprune.GPrune": "method=wanda_sp", "*": "method=random"},
    "method.step": {"null": "0.1"}, "method.p": "1",
    "allocation._target_": "allocation=uniform", "allocation.name": "allocation=global sparsity.propagation=dense",
    "reconstruction._target_": {"prunelab.reconstruction.exact.LeastSquares": "reconstruction=block",
                                "prunelab.reconstruction.tuning.Tuning": "reconstruction=layer",
                                "prunelab.reconstruction.lora.LoRA": "every_key_stage.Recovery"},
    "between_shots._target_": "every_key_stage.Recovery", "between_shots.masks": "between",
    "between_shots.sites": "[query,down]", "reconstruction.alpha": {"null": "4"}, "between_shots.alpha": "4",
    "reconstruction.masks": {"by_pattern": "before", "before": "between"}, "reconstruction.sites": "[query,down]",
    "reconstruction.window": "3", "reconstruction.patience": "2",
    "reconstruction_data.language": "any", "reconstruction_data.text_len": "300", "reconstruction_data.parts.same": "8",
    "evaluation.corpora": "[kjv]", "evaluation.held_out": "[kjv]",
    "evaluation.tasks": {"[]": "[continuation_austen]", "['continuation_austen']": "[continuation_kjv]"},
    "domains": {"[]": "[kjv]", "['kjv']": "[pydocs]"}, "model.max_len": "256", "runtime.activation_dtype": "bfloat16",
    "tracking.name": "tracking=none", "tracking.base_url": "http://localhost:1", "tracking.tags": "[x]",
    "runtime.device": "cuda", "stages.latency._target_": f"{SWEPT.replace('Latency', 'Other')}",
    "evaluation.metrics": f"+{MEASURED}", "evaluation.metrics.top._target_": f"{MEASURED.replace('Top', 'Low')}",
}  # fmt: skip
# swept alone these have no second value that means anything: refused, and the refusal names the key or its cure
REFUSED = {
    "calibration.split.*": "text that nothing was fitted to",  # where the evaluation measures on this corpus
    "study": "one value in all trials", "paths.*": "one value in all trials",
    "sparsity.ratio": "removes",  # n:m fixes it
    "method.step": "all at once", "reconstruction.stride": "the window", "calibration.source": "calibration",
    "reconstruction.masks": "one of before",  # a model is trained as a whole once it is pruned
    "between_shots.masks": "one of before", "between_shots._target_": "one class for a name",
    "reconstruction._target_": "one class for a name", "stages.latency._target_": "one class for a name",
    "evaluation.metrics.top._target_": "one class for a name",
}  # fmt: skip
STAGE = """
from prunelab.reconstruction.lora import LoRA

class Recovery(LoRA):
    pass

class Latency:
    repeats: int
    def run(self, trial):
        return {}

class Other(Latency):
    pass

class Top:
    k: int
    title = "top"
    better = "higher"
    form = "percent"
    def measure(self, decoder, tokens, batch_size):
        return 0.0

class Low(Top):
    pass
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of everything that a user brings: models, texts, tokens, a stage."""
    root = tmp_path_factory.mktemp("every_key")
    for number, name in enumerate(("one", "two")):
        shutil.copytree(MODELS / "llama", root / name)
        (root / name / "generation_config.json").write_text(json.dumps({"note": name}))
        (root / f"{name}.txt").write_text(f"some words of {name} " * 4000)
        np.save(root / f"{name}.npy", np.random.RandomState(number).randint(3, 2000, (200, 256)))
    (root / "every_key_stage.py").write_text(STAGE)
    llama = yaml.safe_load((Path(prunelab.__file__).parent / "families.yaml").read_text())["llama"]
    (root / "llama.yaml").write_text(yaml.safe_dump(llama))
    return root


def leaves(value: Any, key: str) -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {k: v for name, inner in value.items() for k, v in leaves(inner, f"{key}.{name}").items()}
    return {key: value}


def of(table: Mapping[str, Any], key: str) -> Any:
    return next((value for pattern, value in table.items() if fnmatch(key, pattern)), None)


def second(key: str, value: Any, field: Field | None, place: Path) -> list[str]:
    """Return the overrides that give ``key`` another valid value."""
    chosen = of(SECOND, key)
    spelled = "null" if value is None else str(value)
    if isinstance(chosen, dict):
        known = {k.replace("{0}", str(place)): v for k, v in chosen.items()}
        chosen = known.get(spelled, known.get("*"))
    if chosen is None:
        chosen = by_type(value, field)
    assert chosen is not None, f"SECOND needs another value of {key}, now {value!r}"
    words = str(chosen).replace("{0}", str(place)).replace("{{", "{").replace("}}", "}")
    if "=" in words:
        return words.split(" ")
    return [f"++{key}={words}"]


def by_type(value: Any, field: Field | None) -> str | None:
    kinds = field.types if field is not None else (type(value).__name__,)
    if field is not None and "|" in field.bound:
        return next(word.strip() for word in field.bound.split("|") if word.strip() != value)
    if "bool" in kinds:
        return str(not value).lower()
    if "int" in kinds:
        return str(value + 1 if isinstance(value, int) else 3)
    if "float" in kinds:
        return str(value / 2 if value else 0.5)
    return "another" if "str" in kinds else None


def field_of(key: str, config: Mapping[str, Any]) -> Field | None:
    group, _, name = key.partition(".")
    options = config.get(group)
    if not isinstance(options, Mapping):
        return read_class("prunelab.config.schema.Trial").fields[group]
    target = options.get("_target_") or f"prunelab.config.schema.{group.title().replace('_', '')}"
    return None if group == "stages" else read_class(str(target)).fields.get(name)


@pytest.mark.parametrize("walk", WALKS, ids=lambda words: words or "defaults")
def test_two_values_of_a_key(
    walk: str, composer: Composer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(place)
    base = [f"paths.root={place}/home", *walk.replace("{0}", str(place)).split()]
    config = composer.trial(base)
    swept = [key for group in WALKS[walk].split() for key in leaves(config[group], group)]
    for key in swept:
        value = next(v for k, v in leaves(config[key.split(".")[0]], key.split(".")[0]).items() if k == key)
        words = second(key, value, field_of(key, config), place)
        refused = of(REFUSED, key)
        trials, refusal = planned(composer, base, [*base, *words])
        if refusal:
            assert refused is not None, f"{key} by {words}: {refusal}"
            assert refused in refusal
            assert key.partition(".")[0] in refusal
            continue
        if len(trials) == 1:
            assert is_still(key) or key in SELDOM, f"{key} by {words}: one trial, and no reason"
            continue
        assert not is_still(key), f"{key} by {words}: STILL says that it makes no other trial"
        one, two = trials
        assert one.name != two.name, key
        shown = [(*label[:2], t.config.sparsity.ratio, t.config.seed) for t, label in labelled(trials)]
        assert shown[0] != shown[1], f"{key} by {words}: shown as {shown[0]}"


def planned(composer: Composer, *jobs: list[str]) -> tuple[tuple[Trial, ...], str]:
    """Return the trials, or the words in which they are refused."""
    try:
        return plan_study(composer, jobs, []).trials, ""
    except StudyError as error:
        return (), str(error)


def labelled(trials):
    labels = label_trials([plain(trial.config) for trial in trials])
    return [(trial, (label.facet, label.variant)) for trial, label in zip(trials, labels, strict=True)]


def test_the_walks_have_every_option(composer: Composer) -> None:
    groups = (
        "method",
        "between_shots",
        "reconstruction",
        "reconstruction_data",
        "allocation",
        "sparsity",
        "tracking",
    )
    walked = [composer.trial(walk.replace("{0}", "/x").split()) for walk in WALKS]
    for group in groups:
        for name in composer.options(group):
            keys = {key for key in composer.option(group, name) if key != "_target_"}
            covered = {key for config in walked for key in config[group]}
            assert keys <= covered, f"no walk has {keys - covered} of {group}={name}"


def test_every_reason_is_for_a_key_that_there_is(composer: Composer) -> None:
    keys = list(leaves(composer.trial([]), ""))
    for pattern, reason in {**STILL, **SELDOM}.items():
        assert reason
        assert any(fnmatch(key.lstrip("."), pattern) for key in keys), pattern


@pytest.mark.parametrize("word", ["hydra/launcher=inline,local", "hydra.launcher.dry_run=true,false"])
def test_launchers_are_no_axis(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prunelab", word]) == 1
    assert word in capsys.readouterr().err
