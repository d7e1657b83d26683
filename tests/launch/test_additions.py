"""What people add from outside the package, a file and a YAML each: three sweeps run them all, and all is shown everywhere.

Of each part: a linear method with a statistic of its own, a method of rows and columns, one of whole units that says why
they go, an allocation, a repair of blocks and one of the whole model, a kind of stage, a metric, a corpus, a family of
models. That such files reach the workers of a pool is in test_sweep.py.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prunelab.launch.track.mirror import Mirror, run_info
from prunelab.plan.study import Plan, Trial, load_plan
from prunelab.tracking.base import Artefact

Run = Callable[..., subprocess.CompletedProcess[str]]
Row = Mapping[str, str]
LINEAR = '''
"""Single weights by their size times the largest input their channel saw."""
from dataclasses import dataclass
import torch

class Peak:
    """The largest size of every input channel in each sequence, summed over sequences, (C,)."""
    name = "mine_linear.Peak"
    reads = "input"

    def start(self, name, width, *, ones, device):
        return Running(width, device)

    def live(self, value):
        return None

    def restrict(self, value, kept):
        return value[kept]

    def is_finite(self, value):
        return bool(torch.isfinite(value).all())

    def pack(self, value):
        return value

    def unpack(self, stored, width, name):
        return stored

class Running:
    def __init__(self, width, device):
        self.total, self.n_tokens = torch.zeros(width, dtype=torch.float64, device=device), 0

    def add(self, x):
        for sequence in x:
            self.total += sequence.abs().amax(0).double()
            self.n_tokens += len(sequence)

    def finish(self):
        return self.total.float()

@dataclass(frozen=True)
class Peaks:
    name: str
    revision: int
    step: None
    scope = "linear"
    needs = ("mine_linear.Peak",)
    supports = ("unstructured", "n:m")
    within = "row"

    def score(self, view):
        return view.W.abs().float() * view.value("mine_linear.Peak")
'''
LINES = '''
"""Rows and columns by the power of their inputs."""
from dataclasses import dataclass
from typing import Annotated

@dataclass(frozen=True)
class InputPower:
    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]
    power: Annotated[float, "x > 0"]
    scope = "linear"
    needs = ("input_gram",)
    supports = ("rows_columns",)

    def costs(self, view):
        energy = view.A.diagonal() ** self.power
        return (view.W.square() * energy).sum(1), view.W.square().sum(0) * energy

    def update(self, view, keep_rows, keep_columns):
        return None
'''
UNITS = '''
"""Whole neurons and heads by how much they move, and who moved how much."""
from __future__ import annotations
from dataclasses import dataclass
from typing import Annotated

@dataclass(frozen=True)
class Swing:
    name: str
    revision: int
    step: Annotated[float | None, "0 < x <= 1"]
    power: Annotated[float, "x > 0"]
    scope = "unit"
    needs = ("input_moments",)
    supports = ("units",)
    compensation = "bias"

    def importance(self, view):
        return self.study(view)[0]

    def study(self, view):
        swing = view.output.per_unit(view.value(view.output, "input_moments").variance.double() ** self.power)
        return swing, swing

    def explain(self, evidence, gone):
        return {"swings": [{"unit": unit, "swing": float(evidence[unit])} for unit in gone.nonzero()[:, 0].tolist()]}
'''
ALLOCATION = '''
"""Early blocks keep more."""
from dataclasses import dataclass

@dataclass(frozen=True)
class Slope:
    name: str
    revision: int

    def share(self, scores):
        return 0.0

    def ratios(self, shares, ratio):
        middle = (len(shares) - 1) / 2
        return [ratio + 0.05 * (index - middle) / middle for index in range(len(shares))]
'''
REPAIR = '''
"""Gives the rows of pruned layers back some of their length."""
from __future__ import annotations
from dataclasses import dataclass
from typing import Annotated

@dataclass(frozen=True)
class Rescale:
    name: str
    revision: int
    masks: Annotated[str, "before | between"]
    share: Annotated[float, "0 <= x <= 1"]
    window = 1
    stride = 1
    early_stop = False

    def repair(self, unit, say):
        longest = 0.0
        for layer in unit.layers:
            lost = layer.weight.norm(dim=1) / layer.linear.weight.norm(dim=1).clamp_min(1e-12)
            factor = 1 + self.share * (lost - 1)
            layer.linear.weight.mul_(factor[:, None])
            longest = max(longest, float(factor.max()))
        return {"factor": longest}
'''
WHOLE = '''
"""Takes a small step down the language-model loss with the gains of the norms, one text at a time."""
from __future__ import annotations
from dataclasses import dataclass
from typing import Annotated
import torch

@dataclass(frozen=True)
class Gains:
    name: str
    revision: int
    rate: Annotated[float, "x > 0"]
    scope = "model"

    def repair(self, whole, say):
        gains = whole.decoder.other_parameters()
        for name, gain in gains.items():
            if whole.start is not None:
                gain.copy_(whole.start.parameter(name))
        for step in range(whole.done + 1, len(whole.tokens) + 1):
            text = whole.tokens[step - 1 : step]
            with torch.enable_grad():
                leaves = {name: gain.detach().requires_grad_() for name, gain in gains.items()}
                words = {"input_ids": text, "labels": text, "use_cache": False}
                loss = torch.func.functional_call(whole.decoder.model, leaves, kwargs=words).loss
                slopes = torch.autograd.grad(loss, list(leaves.values()))
            for gain, slope in zip(gains.values(), slopes):
                gain.sub_(self.rate * slope)
            whole.log({"event": "gains", "step": step, "loss": float(loss)})
            say({"phase": "texts", "done": step, "total": len(whole.tokens)})
            whole.save(step, gains)
        return {"texts": len(whole.tokens)}
'''
STAGE = '''
"""Counts what is left of the weights, and the tokens it was given."""
from __future__ import annotations
from dataclasses import dataclass
from typing import Annotated

@dataclass(frozen=True)
class Census:
    above: Annotated[float, "x >= 0"]
    reads = ("test",)

    def run(self, trial):
        alive = sum(int((site.linear.weight.abs() > self.above).sum()) for site in trial.decoder.sites())
        trial.context.progress("counting", 1, 1)
        return {"alive": alive, "tokens": sum(text.numel() for text in trial.tokens.values())}
'''
METRIC = '''
"""Share of next tokens that are among the k likeliest."""
from __future__ import annotations
from dataclasses import dataclass
from typing import Annotated
import torch

@dataclass(frozen=True)
class TopK:
    k: Annotated[int, "x >= 1"]
    title = "next token among the k likeliest"
    better = "higher"
    form = "percent"

    @torch.no_grad()
    def measure(self, decoder, tokens, batch_size):
        hits = 0
        for batch in tokens.split(batch_size):
            likeliest = decoder.model(batch).logits[:, :-1].topk(self.k).indices
            hits += int((likeliest == batch[:, 1:, None]).any(-1).sum())
        return hits / tokens[:, 1:].numel()
'''
CORPUS = """
name: diary
source: text
path: {path}
revision: null
column: text
split: {{mask: train, held_out: validation, test: test}}
sampler: random_windows
n_samples: 4
seq_len: 32
joiner: " "
digest: null
"""
FAMILY = """
model_types: [starcoder2]
blocks: model.layers
inputs:
  - [self_attn.q_proj, self_attn.k_proj, self_attn.v_proj]
  - [self_attn.o_proj]
  - [mlp.c_fc]
  - [mlp.c_proj]
mlp: {writers: [mlp.c_fc], reader: mlp.c_proj}
attention: {query: self_attn.q_proj, key: self_attn.k_proj, value: self_attn.v_proj, output: self_attn.o_proj}
"""
FILES = {
    "mine_linear.py": LINEAR, "mine_lines.py": LINES, "mine_units.py": UNITS,
    "mine_spread.py": ALLOCATION, "own_repair.py": REPAIR,
    "mine.py": STAGE, "own_metric.py": METRIC, "starcoder2.yaml": FAMILY,
    "conf/method/peaks.yaml": "_target_: mine_linear.Peaks\nname: peaks\nrevision: 1\nstep: null\n",
    "conf/method/power.yaml": "_target_: mine_lines.InputPower\nname: power\nrevision: 1\nstep: null\npower: 1.0\n",
    "conf/method/swing.yaml": "_target_: mine_units.Swing\nname: swing\nrevision: 1\nstep: null\npower: 1.0\n",
    "conf/allocation/slope.yaml": "_target_: mine_spread.Slope\nname: slope\nrevision: 1\n",
    "conf/reconstruction/rescale.yaml":
        "_target_: own_repair.Rescale\nname: rescale\nrevision: 1\nmasks: before\nshare: 0.5\n",
    "conf/evaluation/likely.yaml":
        "defaults: [embedded]\nname: likely\nmetrics: {top: {_target_: own_metric.TopK, k: 5}}\n",
    "own_whole.py": WHOLE,
    "conf/reconstruction/gains.yaml": "_target_: own_whole.Gains\nname: gains\nrevision: 1\nrate: 0.01\n",
    "conf/stages/census.yaml": "census:\n  _target_: mine.Census\n  above: 0.0\n",
}  # fmt: skip
LINEAR_WORDS = [
    "study=linear", "method=peaks", "sparsity=unstructured", "sparsity.ratio=0.5", "allocation=slope,uniform",
    "reconstruction=rescale", "reconstruction.masks=before,between", "+stages=census", "calibration=diary",
    "evaluation=likely", "evaluation.corpora=[austen,diary]", "-m", "--config-dir", "conf",
]  # fmt: skip
LINES_WORDS = [
    "study=lines", "method=power,surgeon", "sparsity.ratio=0.1,0.2", "model=local", "model.id=tiny",
    "model.family=starcoder2.yaml", "calibration=tokens", "calibration.path=ids.npy", "evaluation.corpora=[tokens]",
    "evaluation.held_out=[tokens]", "+stages=census", "stages.census.above=0.01", "reconstruction=gains", "-m",
    "--config-dir", "conf",
]  # fmt: skip

UNITS_WORDS = [
    "study=units", "method=swing,wanda_sp", "sparsity=units", "sparsity.ratio=0.3", "evaluation.speed=false",
    *(word for word in LINES_WORDS if word.startswith(("model", "calibration", "evaluation", "-", "conf"))),
]  # fmt: skip

PEAKS = ["method=peaks", "sparsity=unstructured"]
CENSUS = ["method=magnitude", "+stages=census"]


@dataclass
class Recorder:
    """A tracker that keeps what it is told."""

    rows: list[Mapping[str, Any]] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)

    def log(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)

    def table(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        self.tables[name] = list(rows)

    def summary(self, values: Mapping[str, Any]) -> None:
        self.values |= values

    def artefact(self, item: Artefact, *, used: bool) -> None: ...

    def alert(self, title: str, text: str) -> None: ...

    def finish(self, ok: bool) -> None: ...


@dataclass
class Study:
    """A study that has run, and where it is shown."""

    said: str
    plan: Plan
    results: list[Row]
    status: str

    def row(self, trial: Trial) -> Row:
        """Its row of results.csv."""
        return next(row for row in self.results if row["name"] == trial.name)

    def told(self, trial: Trial) -> Recorder:
        """What a tracker is told of it."""
        recorder = Recorder()
        Mirror(self.plan, trial, own=(), tracker=recorder).finish(True)
        return recorder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of somebody's own, with the additions, a text, and a random checkpoint with tokens for it."""
    folder = tmp_path_factory.mktemp("own")
    days = (
        f'{{"text": "day {day}: the river was high and the mill stood still, we counted {day} boats"}}\n'
        for day in range(900)
    )
    (folder / "diary.jsonl").write_text("".join(days))
    for name, text in {
        **FILES,
        "conf/calibration/diary.yaml": CORPUS.format(path=folder / "diary.jsonl"),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    config = AutoConfig.for_model(
        "starcoder2", vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "tiny")
    np.save(folder / "ids.npy", np.random.RandomState(0).randint(3, 64, (60, 32)))
    return folder


def study(run_in: Run, folder: Path, name: str, words: list[str]) -> Study:
    """Run a study with its report; return what is shown of it."""
    done = run_in(folder, *words, "hydra.launcher.report=true")
    assert done.returncode == 0, done.stdout + done.stderr
    plan = load_plan(folder / "home" / "studies" / name)
    with (plan.folder / "report" / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    status = run_in(folder, "status", name, "--all", module="prunelab.cli")
    assert status.returncode == 0, status.stderr
    return Study(done.stdout, plan, rows, status.stdout)


@pytest.fixture(scope="module")
def linear(run_in: Run, folder: Path) -> Study:
    """Own linear method, statistic, allocation, repair, stage and corpus."""
    return study(run_in, folder, "linear", LINEAR_WORDS)


@pytest.fixture(scope="module")
def lines(run_in: Run, folder: Path) -> Study:
    """Own method of rows and columns and own stage on a model of an own family."""
    return study(run_in, folder, "lines", LINES_WORDS)


@pytest.fixture(scope="module")
def units(run_in: Run, folder: Path) -> Study:
    """Own method of whole units beside one of the package, on the model of an own family."""
    return study(run_in, folder, "units", UNITS_WORDS)


@pytest.fixture(params=["linear", "lines"])
def either(request: pytest.FixtureRequest) -> Study:
    """Each study in turn."""
    return request.getfixturevalue(request.param)


def test_every_trial_is_measured_and_shown_under_its_own_names(either: Study) -> None:
    assert len(either.plan.trials) == 4
    for trial in either.plan.trials:
        row = either.row(trial)
        assert row["method"] == trial.config.method.name
        assert row["calibration"] == trial.config.calibration.name
        ratio = trial.config.sparsity.ratio
        near = 2e-3 if row["method"] == "peaks" else 0.02  # whole rows of a tiny model
        assert float(row["ratio/weights"]) == pytest.approx(ratio, abs=near)
        assert trial.name in either.status
        info = run_info(either.plan, trial)
        assert info.config["method"] == trial.config.method.name
        assert info.config["allocation"] == trial.config.allocation.name
        assert info.config["reconstruction"] == trial.config.reconstruction.name
        assert either.told(trial).values["ratio/weights"] == pytest.approx(ratio, abs=near)
    assert "4 done" in either.status


def test_the_methods_remove_by_their_own_statistic_and_allocation(linear: Study, lines: Study) -> None:
    assert {trial.config.method.name for trial in linear.plan.trials} == {"peaks"}
    assert {trial.config.method.name for trial in lines.plan.trials} == {"power", "surgeon"}
    assert {row["allocation"] for row in linear.results if row["method"] == "peaks"} == {"slope", "uniform"}
    assert "2 prune" in linear.said  # one for each allocation: masks between repairs prune on their own
    errors = {row["error/calibration"] for row in linear.results if row["method"] == "peaks"}
    assert len(errors) == 4


def test_the_method_of_units_runs_beside_the_package_s_and_says_why_units_went(units: Study) -> None:
    own, other = units.plan.trials
    assert [own.config.method.name, other.config.method.name] == ["swing", "wanda_sp"]
    assert "2 prune" in units.said
    assert own.config.sparsity.compensation == "bias"  # its class says so
    assert units.row(own)["ppl/tokens"] != units.row(other)["ppl/tokens"]
    for trial in (own, other):
        row, info, told = units.row(trial), run_info(units.plan, trial), units.told(trial)
        assert trial.name in units.status
        assert info.config["method"] == row["method"] == trial.config.method.name
        assert float(row["ratio/units"]) == pytest.approx(0.3, abs=0.06)  # heads are few, and dear
        assert told.values["ratio/units"] == pytest.approx(float(row["ratio/units"]))
    rows = table(units, "units_swings.csv")
    assert {row["variant"] for row in rows} == {"swing"}
    assert {(row["block"], row["kind"]) for row in rows} >= {("0", "neurons"), ("1", "neurons")}
    assert units.told(own).tables["units/swings"]
    assert "swings" in (units.plan.folder / "report" / "index.html").read_text(encoding="utf-8")


def test_the_stage_is_shown_after_the_package_s_own(linear: Study, lines: Study) -> None:
    for study, above in ((linear, 0.0), (lines, 0.01)):
        assert "4 census" in study.said
        header = next(line for line in study.status.splitlines() if "census" in line)
        assert header.index("evaluate") < header.index("census")
        alive = {}
        for trial in study.plan.trials:
            assert trial.config.stages["census"].fields["above"] == above
            row, told = study.row(trial), study.told(trial)
            alive[trial.name] = float(row["census/alive"])
            tokens = 4 * 32 * len(trial.config.evaluation.corpora)
            assert float(row["census/tokens"]) == tokens
            assert told.values["census/alive"] == alive[trial.name]
            assert {"event": "census", "alive": alive[trial.name], "tokens": tokens} in told.rows
        if study is lines:
            few, more = (
                [alive[trial.name] for trial in study.plan.trials if trial.config.sparsity.ratio == ratio]
                for ratio in (0.1, 0.2)
            )
            assert min(few) > max(more) > 0


def test_a_repair_of_the_whole_model_is_shown_by_its_steps_and_losses(lines: Study) -> None:
    assert "4 reconstruct" in lines.said
    for trial in lines.plan.trials:
        row, told = lines.row(trial), lines.told(trial)
        assert float(row["repair/texts"]) == trial.config.calibration.n_samples
        assert float(row["repair/lm_loss_after"]) < float(row["repair/lm_loss_before"])
        assert told.values["repair/lm_loss_after"] == pytest.approx(float(row["repair/lm_loss_after"]))
        steps = [event["step"] for event in told.rows if event.get("event") == "gains"]
        assert steps == list(range(1, trial.config.calibration.n_samples + 1))
    page = (lines.plan.folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "language-model loss" in page


def test_the_repair_runs_with_masks_before_and_between(linear: Study) -> None:
    assert "4 reconstruct" in linear.said
    assert "reconstruct" in linear.status
    for allocation in ("slope", "uniform"):
        trials = [t for t in linear.plan.trials if t.config.allocation.name == allocation]
        rows = [linear.row(trial) for trial in trials]
        assert {t.config.reconstruction.fields["masks"] for t in trials} == {"before", "between"}
        for trial, row in zip(trials, rows, strict=True):
            assert float(row["repair/factor"]) > 1
            assert float(row["integrity/masked"]) > 0
            told = linear.told(trial)
            assert told.values["repair/factor"] > 1
            assert {"repair", "pruned"} <= {event.get("event") for event in told.rows}
        assert len({row["error/calibration"] for row in rows}) == 2
        assert len({row["integrity/masked"] for row in rows}) == 1
    report = linear.plan.folder / "report"
    with (report / "repairs.csv").open(encoding="utf-8") as file:
        assert {row["number"] for row in csv.DictReader(file)} == {"0", "1", "2", "3"}
    assert "rescale" in (report / "index.html").read_text(encoding="utf-8")


def table(study: Study, name: str) -> list[Row]:
    with (study.plan.folder / "report" / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_metric_is_measured_of_dense_and_pruned_with_its_protocol(linear: Study) -> None:
    title = "next token among the k likeliest"
    assert title in linear.said
    report = linear.plan.folder / "report"
    assert title in (report / "index.html").read_text(encoding="utf-8")
    protocols = {row["protocol"]: row for row in table(linear, "protocols.csv")}
    long = table(linear, "long.csv")
    for trial in linear.plan.trials:
        row, told = linear.row(trial), linear.told(trial)
        for corpus in ("austen", "diary"):
            dense, pruned = (float(row[f"{prefix}top/{corpus}"]) for prefix in ("dense/", ""))
            assert 1 > dense > 0
            assert 1 > pruned > 0
            assert told.values[f"top/{corpus}"] == pruned
            assert told.values[f"dense/top/{corpus}"] == dense
        whose = {f"ppl/{corpus}", f"top/{corpus}", f"dense/top/{corpus}", "ratio/weights"}
        assert whose <= {how["number"] for how in told.tables["protocols"]}
        own = {
            row["stage"]: row
            for row in long
            if (row["name"], row["metric"], row["of"]) == (trial.name, "top", "diary")
        }
        assert set(own) == {"dense", "evaluate"}
        assert {row["better"] for row in own.values()} == {"higher"}
        how = protocols[own["evaluate"]["protocol"]]
        assert how["metric"] == "top/diary"
        assert '"k": 5' in how["definition"]
        ppl = next(
            r
            for r in long
            if (r["name"], r["metric"], r["of"], r["stage"]) == (trial.name, "ppl", "diary", "evaluate")
        )
        for name in ("model", "text", "split", "windows", "context", "tokens"):
            assert protocols[ppl["protocol"]][name] == how[name] != ""


def test_the_corpus_is_calibrated_on_and_measured_on(linear: Study) -> None:
    assert all(float(row["ppl/diary"]) > 1 and float(row["ppl/austen"]) > 1 for row in linear.results)
    for trial in linear.plan.trials:
        assert linear.row(trial)["calibration"] == "diary"
        assert linear.told(trial).values["ppl/diary"] == float(linear.row(trial)["ppl/diary"])


def test_the_family_s_model_is_named_and_measured(lines: Study) -> None:
    assert all(float(row["ppl/tokens"]) > 1 for row in lines.results)
    assert all("tiny" in lines.row(trial)["model"] for trial in lines.plan.trials)


def test_the_same_words_run_nothing_and_a_change_runs_what_it_decides(
    run_in: Run, folder: Path, linear: Study, lines: Study
) -> None:
    again = run_in(folder, *LINEAR_WORDS)
    assert "ran no stage" in again.stdout, again.stdout + again.stderr
    # what the family's file says counts, not where it lies
    (folder / "other.yaml").write_text(FAMILY)
    moved = run_in(folder, *LINES_WORDS, "model.family=other.yaml")
    assert "ran no stage" in moved.stdout, moved.stdout + moved.stderr
    # a field of the stage is part of its key; all else stays
    other = run_in(folder, *LINES_WORDS, "stages.census.above=0.05")
    assert "ran 4 census in" in other.stdout, other.stdout + other.stderr


def test_the_corpus_is_swept_and_the_statistic_counts_by_its_source(run_in: Run, folder: Path) -> None:
    words = ["study=swept", "method=peaks", "sparsity=2of4", "calibration=austen,diary",
             "evaluation.corpora=[austen,diary]", "-m", "--config-dir", "conf"]  # fmt: skip
    first = run_in(folder, *words)
    assert "2 prune" in first.stdout, first.stdout + first.stderr
    trials = load_plan(folder / "home" / "studies" / "swept").trials
    assert [trial.config.calibration.name for trial in trials] == ["austen", "diary"]
    status = run_in(folder, "status", "swept", "--all", module="prunelab.cli").stdout
    assert all(trial.name in status for trial in trials)
    try:
        (folder / "mine_linear.py").write_text(LINEAR.replace("amax(0)", "mean(0)"))
        edited = run_in(folder, *words)
    finally:
        (folder / "mine_linear.py").write_text(LINEAR)
    assert "ran 2 prune, 2 evaluate in" in edited.stdout, edited.stdout + edited.stderr


TINY = [
    word for word in LINES_WORDS if not word.startswith(("+", "-", "conf", "method", "stages", "sparsity"))
]
TINY = [*TINY, "method=magnitude"]
# words of the command line, file, text in it, what stands there by mistake -> what is said
MISTAKES = [
    (PEAKS, "mine_linear.py", 'needs = ("mine_linear.Peak",)', 'needs = ("mine_linear.Peek",)',
     "a class of mine_linear.py: Peak"),
    (PEAKS, "mine_linear.py", 'needs = ("mine_linear.Peak",)', 'needs = ("peak",)',
     "or the dotted name of a statistic's class"),
    (PEAKS, "mine_linear.py", 'reads = "input"', 'reads = "inputs"',
     "a class with reads = one of input, output, block, parts, output_gradient, weight_gradient"),
    (PEAKS, "mine_linear.py", '    scope = "linear"\n', "", "method.scope='(nothing)'"),
    (PEAKS, "mine_linear.py", 'scope = "linear"', 'scope = "page"', "method.scope='page': allowed is linear"),
    (["method=swing", "sparsity=2of4"], "", "", "", "units"),
    (["method=power", "method.power=-1"], "", "", "", "method.power=-1: allowed is a number, x > 0"),
    (["method=wanda", "sparsity=unstructured", "reconstruction=rescale", "reconstruction.masks=after"], "", "", "",
     "reconstruction.masks='after': allowed is one of before, between"),
    (["reconstruction=gains"], "own_whole.py", 'scope = "model"', 'scope = "layer"',
     "reconstruction.scope='layer': allowed is block | model"),
    (["reconstruction=gains"], "own_whole.py", 'def repair(', 'def mend(', "allowed is a class with repair"),
    (["reconstruction=gains", "+reconstruction.masks=between"], "own_whole.py", "    rate:", "    masks: str\n    rate:",
     "It repairs the model as a whole, all of which is pruned by then."),
    ([*CENSUS, "stages.census.above=-1"], "", "", "", "stages.census.above=-1: allowed is a number, x >= 0"),
    ([*CENSUS, "+stages.census.abve=1"], "", "", "", "Did you mean 'above'?"),
    ([*CENSUS, "+stages.prune={_target_: mine.Census, above: 1}"], "", "", "", "'prune': allowed is small letters"),
    ([*CENSUS, "+stages.speed={_target_: mine.Speed}"], "", "", "", "a class of mine.py: Census"),
    ([*CENSUS, "+stages.speed=3"], "", "", "", "a mapping with _target_"),
    ([*CENSUS, "+stages.speed={_target_: prunelab.methods.wanda.Wanda}"], "", "", "",
     "a class with a method run(self, trial)"),
    (TINY, "starcoder2.yaml", "model_types: [starcoder2]", "model_types: [falcon]",
     "model_type='starcoder2': allowed is falcon"),
    (TINY, "starcoder2.yaml", "blocks: model.layers\n", "", "'blocks' is missing"),
    (TINY, "starcoder2.yaml", "reader: mlp.c_proj", "reader: mlp.down",
     "mlp.down of mlp, attention or transposed is not among the inputs"),
    (TINY, "starcoder2.yaml", "inputs:", "input:", "Did you mean 'inputs'?"),
    (TINY, "starcoder2.yaml", "model_types: [starcoder2]", "model_types: ]", "cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "file", "old", "new", "says"), MISTAKES, ids=[row[-1][:40] for row in MISTAKES]
)
def test_mistakes_are_told_before_anything_starts(
    here: Run,
    home: Path,
    tmp_path: Path,
    folder: Path,
    words: list[str],
    file: str,
    old: str,
    new: str,
    says: str,
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("home"))
    if file:
        text = (tmp_path / file).read_text()
        assert old in text
        (tmp_path / file).write_text(text.replace(old, new))
    done = here(*words, "--config-dir", "conf")
    assert done.returncode == 1
    assert says in done.stderr, done.stderr
    assert not (home / "store").exists()
