"""Methods that ask the whole model before they choose: shares that are learned, blends that are fitted, runs that are compared.

arXiv:2603.13418 (step 3), arXiv:2403.10799 and arXiv:2412.15127, arXiv:2406.00030.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.evaluation.integrity import check
from prunelab.generalization import learned
from prunelab.importance.fusion import build_population
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.passes.shots import prune
from prunelab.passes.step import StepReport
from prunelab.pattern.units import Units
from prunelab.stats.judge import Priced
from prunelab.structures.state import State, open_state, save_state, state_digest

CONF = Path(__file__).parents[2] / "conf" / "method"


def build(name: str, **fields: Any) -> Any:
    config = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    module, _, kind = config.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), kind)(**{**config, **fields})


GPRUNE = build("gprune_learned", steps=12, every=4, batch=2)
LEARNED = build("fusion_learned", probes=16, steps=50)
UNCERTAIN = build("fusion_uncertainty", probes=16, steps=50)
# correlations: eigenvalues would take the time of all other tests
PAPER = build(
    "mi_paper", estimator="gaussian", normalize="none", n_samples=40, max_trials=100, floor_deviations=0.0
)
each = pytest.mark.parametrize("method", [GPRUNE, LEARNED, UNCERTAIN, PAPER], ids=lambda method: method.name)


@dataclass
class Run:
    """What a pruning left."""

    decoder: Decoder
    state: State
    reports: list[StepReport] = field(default_factory=list)
    states: list[State] = field(default_factory=list)

    def table(self, name: str) -> list[dict[str, Any]]:
        return [row for report in self.reports for row in report.tables.get(f"units/{name}", [])]


def run(
    method: Any, tokens: Tensor, schedule: Sequence[float] = (0.3,), *, family: str = "llama", allocation: str | None = None,
    batch_size: int = 2, seed: int = 0, units: Mapping[str, Any] | None = None, **options: Any,
) -> Run:  # fmt: skip
    reports, states = list[StepReport](), list[State]()

    def on_step(report: StepReport, state: State) -> None:
        reports.append(report)
        states.append(state.clone())

    fields = {"kinds": getattr(method, "kinds", ("neurons", "heads")), **(units or {})}
    allocation = allocation or getattr(method, "allocation", "global")
    others = [tokens.flip(1)] if hasattr(method, "domains") else []
    decoder = random_decoder(family)
    state = prune(
        decoder, method, tokens, list(schedule), pattern=Units(**fields), seed=seed, batch_size=batch_size,
        allocation=allocation, propagation="dense", domains=others, on_step=on_step, **options,
    )  # fmt: skip
    return Run(decoder, state, reports, states)


@each
def test_the_budget_is_met_the_rest_stays_and_shots_resume(
    method: Any, tokens: Tensor, tmp_path: Path
) -> None:
    dense = {site.name: site.linear.weight.clone() for site in random_decoder("llama").sites()}
    found = run(method, tokens, [0.15, 0.3])
    total = sum(row["total"] for row in found.reports[-1].sites)
    for report, target in zip(found.reports, (0.15, 0.3), strict=True):
        dearest = 512 if "heads" in Units().kinds and method.name != "mi_paper" else 48
        assert abs(report.achieved - target) * total <= dearest + 1
    assert check(found.decoder, found.state)["integrity/violations"] == 0
    for name, weight in dense.items():  # nothing was trained
        keep = found.state.site(name).mask.keep()
        assert torch.equal(found.state.site(name).weight[keep], weight[keep])
    save_state(found.states[0], tmp_path / "step.safetensors")
    start = open_state(tmp_path / "step.safetensors")
    resumed = run(method, tokens, [0.15, 0.3], start=start, start_step=1)
    assert state_digest(resumed.state) == state_digest(found.state)
    assert resumed.reports[0].tables == found.reports[1].tables


@each
def test_a_ratio_of_zero_leaves_every_bit(method: Any, tokens: Tensor) -> None:
    found = run(method, tokens, [0.0])
    assert all(site.mask.removed == 0 for _, site in found.state.sites())


def test_shares_meet_the_budget_at_every_step_and_hard_ones_do_not_end_above_uniform(
    tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[float] = []
    exact = learned.shares

    def listening(theta: Tensor, modules: Any, budget: float) -> Tensor:
        found = exact(theta, modules, budget)
        met.append(abs(float((found.detach() * modules.sizes).sum()) - budget) / budget)
        assert bool(((found >= 0) & (found <= GPRUNE.s_max)).all())
        return found

    monkeypatch.setattr(learned, "shares", listening)
    found = run(GPRUNE, tokens)
    assert len(met) == 12 + 4  # steps, and looks at hard masks: the start and after 4, 8 and 12
    assert max(met) < 1e-6
    (row,) = found.table("learning")
    assert row["steps"] == 12
    assert row["learned"] <= row["uniform"]
    gone = sum(module["gone"] for module in found.table("modules"))
    assert gone > 0
    for module in found.table("modules"):  # every module loses its lowest
        assert module["share"] <= GPRUNE.s_max + 0.5 / module["units"]


@pytest.mark.parametrize("mixture", ["mean", "worst", "mean_plus_std"])
@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_every_loss_of_all_texts_can_be_learned_on(mixture: str, loss: str, tokens: Tensor) -> None:
    method = replace(GPRUNE, steps=4, every=2, mixture=mixture, loss=loss)
    (row,) = run(method, tokens, family="opt").table("learning")
    assert row["learned"] <= row["uniform"]


def test_learned_shares_protect_blocks_and_count_units(tokens: Tensor) -> None:
    found = run(GPRUNE, tokens, [0.2], units={"protect_first": 1, "counts": "units"})
    changed = {name.split(".")[2] for name, site in found.state.sites() if site.mask.removed}
    assert changed == {"1"}
    again = run(GPRUNE, tokens, [0.2], units={"protect_first": 1, "counts": "units"})
    assert state_digest(again.state) == state_digest(found.state)


def test_a_share_beyond_what_modules_may_lose_is_told(tokens: Tensor) -> None:
    with pytest.raises(ConfigError, match="s_max"):
        run(replace(GPRUNE, s_max=0.2), tokens, [0.4])


@pytest.mark.parametrize("method", [LEARNED, UNCERTAIN], ids=lambda method: method.name)
def test_fits_are_told_and_scales_order_nothing_inside_a_block(method: Any, tokens: Tensor) -> None:
    found = run(method, tokens)
    (told,) = found.table("fit")
    assert told["probes"] == 16
    assert told["used"] in ("learned", "attention", "uncertainty")
    rows = found.table("blend")
    assert sum(row["probes"] for row in rows) == 16
    assert all(0 < row["weight"] < 1 and row["scale"] > 0 for row in rows)
    assert state_digest(run(method, tokens).state) == state_digest(found.state)
    wide = run(method, tokens, batch_size=5)
    assert state_digest(wide.state) == state_digest(found.state)
    if told["used"] == "attention":  # equal shares of the same order
        plain = run(replace(method, mode="attention"), tokens, allocation="uniform")
        assert state_digest(run(method, tokens, allocation="uniform").state) == state_digest(plain.state)


@dataclass
class Said:
    """A judge whose changes of the loss are those of a formula."""

    change: Callable[[str, Tensor], float]
    budget: float = 1.0
    min_units: int = 1
    n_texts: int = 1

    def say(self, *_: Any) -> None:
        """Nobody listens."""

    def generator(self, what: str) -> torch.Generator:
        return torch.Generator().manual_seed(len(what))

    def changes(self, removals: Sequence[tuple[str, Tensor]]) -> list[float]:
        return [self.change(name, units) for name, units in removals]


def estimates(count: int = 60) -> dict[str, Priced]:
    """Coarse and fine estimates that have nothing to do with each other."""
    draw, found = torch.Generator().manual_seed(1), {}
    for block in range(3):
        C, E = (torch.rand(count, 3, generator=draw, dtype=torch.float64).square() for _ in range(2))
        name, alive = f"neurons of block {block}", torch.ones(count, dtype=torch.bool)
        found[name] = Priced(name, block, "neurons", block / 2, 7.0, alive, True, torch.zeros(count), (C, E))
    return found


def test_a_blend_is_recovered_from_probes_and_noise_falls_back() -> None:
    priced, method = estimates(), build("fusion_learned")
    populations = {name: build_population(*one.evidence, "mean", one.kind) for name, one in priced.items()}

    def change(name: str, units: Tensor) -> float:
        one = populations[name]
        return float((0.8 * one.coarse + 0.2 * one.fine)[units].sum())

    found = method.weigh(list(priced.values()), Said(change))
    assert found.tables["fit"][0]["used"] == "learned"
    weights = [row["weight"] for row in found.tables["blend"]]
    assert sum(weights) / 3 == pytest.approx(0.8, abs=0.1)
    for row, (name, one) in zip(found.tables["blend"], populations.items(), strict=True):
        scores = found.importance[name] * 7 / row["scale"]  # of one parameter, in nats
        low, high = torch.minimum(one.coarse, one.fine), torch.maximum(one.coarse, one.fine)
        assert bool(((scores >= low - 1e-9) & (scores <= high + 1e-9)).all())
    draw = torch.Generator().manual_seed(5)
    noise = method.weigh(list(priced.values()), Said(lambda *_: float(torch.randn((), generator=draw))))
    assert noise.tables["fit"][0]["used"] == "attention"
    sigma = build("fusion_uncertainty").weigh(list(priced.values()), Said(change))
    weights = [row["weight"] for row in sigma.tables["blend"]]
    assert sum(weights) / 3 == pytest.approx(0.8, abs=0.1)


def test_the_log_term_moves_a_population_as_a_whole() -> None:
    priced = list(estimates().values())
    judge = Said(lambda name, units: float(len(units)) * (1 + int(name[-1])))
    without = build("fusion_uncertainty").weigh(priced, judge)
    with_it = build("fusion_uncertainty", log_term=True).weigh(priced, judge)
    for name, importance in without.importance.items():
        apart = with_it.importance[name] - importance
        torch.testing.assert_close(apart, apart[0].expand(len(apart)))
    whole = build("fusion_uncertainty", per_parameter=False).weigh(priced, judge)
    for name, importance in without.importance.items():
        torch.testing.assert_close(whole.importance[name], importance * 7)


def test_the_run_that_moves_the_model_least_is_kept(tokens: Tensor) -> None:
    found = run(PAPER, tokens)
    rows = found.table("runs")
    assert [row["run"] for row in rows] == [0, 1, 2, 3]
    assert len({row["kl"] for row in rows}) > 1
    (kept,) = [row for row in rows if row["kept"]]
    assert kept["kl"] == min(row["kl"] for row in rows)

    # what was pruned is that far from the dense model on the window that was held out
    def logits(state: State | None) -> Tensor:
        decoder = random_decoder("llama")
        if state is not None:
            for name, site in state.sites():
                decoder.site(name).linear.weight.copy_(site.weight)
        return decoder.model(input_ids=tokens[-1:], use_cache=False).logits.log_softmax(-1)

    with torch.no_grad():
        p, q = logits(None), logits(found.state)
    assert kept["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    wide = run(PAPER, tokens, batch_size=5)
    assert state_digest(wide.state) == state_digest(found.state)
    assert state_digest(run(PAPER, tokens, seed=1).state) != state_digest(found.state)
    other = run(replace(PAPER, kl_direction="pruned_to_dense"), tokens).table("runs")
    assert [row["kl"] for row in other] != [row["kl"] for row in rows]


def test_several_runs_are_of_random_pairs_and_compared(tokens: Tensor) -> None:
    for fields in ({"select": "first"}, {"search": "all_pairs_greedy"}):
        with pytest.raises(ConfigError, match=r"method\.n_seeds"):
            run(replace(PAPER, **fields), tokens)
    one = run(replace(PAPER, n_seeds=1), tokens)
    assert [row["kept"] for row in one.table("runs")] == [True]


@pytest.mark.parametrize("method", [GPRUNE, PAPER], ids=lambda method: method.name)
def test_windows_that_are_held_out_are_in_no_statistic(method: Any, tokens: Tensor) -> None:
    """Other text there changes what is judged, and of what was ranked nothing."""
    changed = tokens.clone()
    changed[-1] = (changed[-1] + 7) % 60 + 2
    one, other = (run(method, text) for text in (tokens, changed))
    name = "modules" if method is GPRUNE else "redundancy"
    drop = ("gone", "share", "floor", "threshold", "redundant")
    ranked = [
        [{k: v for k, v in row.items() if k not in drop} for row in found.table(name)]
        for found in (one, other)
    ]
    if method is GPRUNE:
        assert ranked[0] == ranked[1]
        assert one.table("learning") != other.table("learning")
    else:
        assert [row["kl"] for row in one.table("runs")] != [row["kl"] for row in other.table("runs")]
        assert [row["samples"] for row in one.table("redundancy")] == [40, 40]


def test_too_few_windows_and_stored_statistics_are_told(tokens: Tensor) -> None:
    with pytest.raises(ConfigError, match="3 or more"):
        run(GPRUNE, tokens[:2])
    with pytest.raises(ConfigError, match="global with these fields"):
        run(GPRUNE, tokens, allocation="uniform")
