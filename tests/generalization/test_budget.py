"""Shares of modules and whole units under an exact budget; what is learned meets it at every step. arXiv:2603.13418."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunelab.errors import ConfigError, ModelError
from prunelab.generalization.budget import Modules, dead_first, lowest, proportional, uniform, whole
from prunelab.generalization.curve import by_curves, drop_curve, lower_hull, output_power, prices
from prunelab.generalization.learned import Schedule, learn, mixed, offset, shares, soft_masks
from prunelab.generalization.reliability import module_percentiles

COUNTS = (40, 12, 30, 2, 4)
MODULES = Modules(
    torch.tensor(COUNTS), torch.tensor([24.0, 24, 24, 512, 512]).double(), torch.tensor([0, 0, 1, 2, 3])
)
TOTAL = float(MODULES.sizes.sum())
SCHEDULE = Schedule(steps=40, lr=0.05, tau_start=0.1, tau_end=0.01, every=5, patience=30)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spent(found: Tensor, modules: Modules = MODULES) -> float:
    return float((found * modules.sizes).sum())


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5, 0.94])
def test_plain_rules_meet_the_budget(ratio: float) -> None:
    budget = ratio * TOTAL
    found = uniform(MODULES, budget)
    assert spent(found) == pytest.approx(budget)
    assert len(set(found.tolist())) == 1
    V = torch.tensor([0.1, 0.3, 0.2, 0.15, 0.05], dtype=torch.float64)
    for slope in (-0.4, 0.4):
        sloped = proportional(MODULES, budget, V, slope)
        assert spent(sloped) == pytest.approx(budget, abs=1e-6)
        assert bool(((sloped >= 0) & (sloped <= 0.95)).all())
        differences = (sloped[1] - sloped[4]) * (1 if slope > 0 else -1)
        assert 0 <= float(differences) <= 0.4 * 0.25 + 1e-9
    if ratio == 0.5:  # nothing is cut at a bound: linear
        torch.testing.assert_close(sloped - sloped[4], 0.4 * (V - V[4]))
    with pytest.raises(ConfigError, match="budget"):
        uniform(MODULES, 0.96 * TOTAL)


@pytest.mark.parametrize("seed", range(20))
def test_whole_units_cost_the_budget(seed: int) -> None:
    found = torch.sigmoid(random(5, seed=seed)) * 0.95
    budget = spent(found)
    taken = whole(found, MODULES, budget)
    cost = float((taken * MODULES.costs).sum())
    assert abs(cost - budget) <= 24  # one neuron, the smallest unit
    assert bool(((taken >= 0) & (taken <= MODULES.counts)).all())
    for layer in range(4):
        mine = MODULES.layers == layer
        assert int((MODULES.counts - taken)[mine].sum()) >= 1


def test_what_has_to_stay_stays_or_is_told() -> None:
    one = Modules(torch.tensor([4, 4]), torch.tensor([10.0, 10.0]).double(), torch.tensor([0, 0]), high=1.0)
    assert whole(torch.tensor([1.0, 0.9]).double(), one, 76.0, 1).tolist() == [4, 3]
    with pytest.raises(ConfigError, match="min_units=3"):
        whole(torch.tensor([1.0, 0.9]).double(), one, 76.0, 3)
    even = Modules(torch.tensor([10, 20]), torch.ones(2).double(), torch.tensor([0, 1]))
    assert whole(uniform(even, 15.0), even, 15.0).tolist() == [5, 10]


def test_the_lowest_of_each_module_go() -> None:
    scores, labels = torch.tensor([3.0, 1.0, 1.0, 9.0, 8.0, 7.0]), torch.tensor([0, 0, 0, 1, 1, 1])
    assert lowest(scores, labels, torch.tensor([1, 2])).tolist() == [True, False, True, True, False, False]


def test_strong_sensitive_units_do_not_crowd_out_robust_ones() -> None:
    scores, labels = torch.tensor([1.0, 2.0, 100.0, 101.0, 102.0, 103.0]), torch.tensor([0, 0, 1, 1, 1, 1])
    alone = lowest(scores, torch.zeros(6, dtype=torch.int64), torch.tensor([3]))
    assert alone.tolist() == [False, False, False, True, True, True]
    assert lowest(scores, labels, torch.tensor([1, 2])).tolist() == [False, True, False, False, True, True]


def test_one_module_is_the_base_metric() -> None:
    scores = random(2, 24).abs()
    one = Modules(torch.tensor([24, 24]), torch.full((2,), 7.0).double(), torch.tensor([0, 1]))
    taken = whole(uniform(one, 0.25 * 48 * 7), one, 0.25 * 48 * 7)
    for layer, k in zip(scores, taken.tolist(), strict=True):
        labels = torch.zeros(24, dtype=torch.int64)
        keep = lowest(module_percentiles(layer, labels), labels, torch.tensor([k]))
        assert torch.equal(keep, layer > layer.sort().values[5])


def test_dead_units_go_before_all_others() -> None:
    dead = torch.tensor([True, False, True, True, False, True])
    costs, layers = torch.tensor([3.0, 3, 3, 3, 3, 8]), torch.tensor([0, 0, 0, 0, 0, 1])
    gone, left = dead_first(dead, costs, layers, 7.0)
    assert gone.tolist() == [
        True,
        False,
        True,
        False,
        False,
        False,
    ]  # 6 is nearer to 7 than 9; layer 1 keeps its only unit
    assert left == 1
    gone, left = dead_first(dead, costs, layers, 30.0)
    assert gone.tolist() == [True, False, True, True, False, False]
    assert left == 21


def curve_of(W: Tensor, Z: Tensor, columns: Tensor, centred: bool) -> list[float]:
    whole_power = (Z @ W.T).square().sum()
    found = []
    for share in [i / 10 for i in range(10)]:
        gone = columns[: round(share * len(columns))].reshape(-1)
        lost = Z[:, gone] - Z[:, gone].mean(0) if centred else Z[:, gone]
        found.append(float((lost @ W[:, gone].T).square().sum() / whole_power))
    return found


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("lines", [1, 3])
def test_curves_are_the_error_of_the_output(centred: bool, lines: int) -> None:
    Z, W = random(50, 24) + 0.5, random(5, 24, seed=1)
    moment, mean = Z.T @ Z / 50, Z.mean(0)
    units = torch.randperm(24 // lines, generator=torch.Generator().manual_seed(2))[:7]
    columns = units[:, None] * lines + torch.arange(lines)
    power = output_power(W, moment)
    found = drop_curve(W, moment, columns, power, mean=mean if centred else None)
    torch.testing.assert_close(found, torch.tensor(curve_of(W, Z, columns, centred)).double())
    assert found[0] == 0
    hull = lower_hull([i / 10 for i in range(10)], found)
    steps = hull[1:] - hull[:-1]
    assert bool((steps >= -1e-15).all())
    assert bool((steps[1:] >= steps[:-1] - 1e-12).all())
    assert bool((hull <= found + 1e-15).all())
    with pytest.raises(ModelError, match="0 for all tokens"):
        drop_curve(W, moment, columns, 0.0)


def test_the_hull_is_the_largest_convex_curve_below() -> None:
    grid, errors = [0.0, 0.25, 0.5, 1.0], torch.tensor([0.0, 3.0, 1.0, 4.0]).double()
    assert lower_hull(grid, errors).tolist() == [0, 0.5, 1, 4]


def test_the_budget_is_spent_at_equal_marginal_errors() -> None:
    sizes, alpha = MODULES.sizes, torch.tensor([1.0, 3.0, 2.0, 0.5, 4.0]).double()
    grid = [i / 400 for i in range(381)]
    errors = alpha[:, None] * torch.tensor(grid).double() ** 2
    budget = 0.3 * TOTAL
    found = by_curves(MODULES, budget, errors, grid=grid)
    assert spent(found) == pytest.approx(budget)
    weight = sizes / alpha  # from 2 alpha_c s_c = lambda n_c kappa_c
    exact = budget / float((weight * sizes).sum()) * weight
    assert float(exact.max()) < 0.95
    torch.testing.assert_close(found, exact, atol=1 / 400, rtol=0)
    weighted = by_curves(MODULES, budget, errors, grid=grid, weights=1 / alpha)
    torch.testing.assert_close(weighted, by_curves(MODULES, budget, errors / alpha[:, None], grid=grid))
    with pytest.raises(ConfigError, match="budget"):
        by_curves(MODULES, 0.93 * TOTAL, errors[:, :361], grid=grid[:361])


def test_ranking_by_price_spends_as_the_curves_do() -> None:
    counts = (100, 100, 200)
    modules = Modules(torch.tensor(counts), torch.tensor([3.0, 3.0, 3.0]).double(), torch.tensor([0, 0, 1]))
    grid = [i / 10 for i in range(10)]
    errors = torch.tensor([1.0, 2.5, 1.7]).double()[:, None] * torch.tensor(grid).double() ** 2
    budget = 0.4 * float(modules.sizes.sum())
    found = by_curves(modules, budget, errors)
    q = [(torch.arange(n) + 0.5) / n for n in counts]
    price = torch.cat([prices(errors[c], float(modules.sizes[c]), q[c]) for c in range(3)])
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    gone = torch.argsort(price, stable=True)[: round(budget / 3)]
    torch.testing.assert_close(
        torch.bincount(labels[gone]).double() / modules.counts, found, atol=0.011, rtol=0
    )
    for c in range(3):
        assert bool((prices(errors[c], 1.0, q[c]).diff() > 0).all())


@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.9])
def test_shares_of_any_parameters_meet_the_budget_within_bounds(ratio: float) -> None:
    modules = Modules(MODULES.counts, MODULES.costs, MODULES.layers, 0.02, 0.95)
    for seed in range(5):
        theta = 6 * random(5, seed=seed)
        found = shares(theta, modules, ratio * TOTAL)
        assert abs(spent(found, modules) - ratio * TOTAL) <= 1e-9 * TOTAL
        assert bool(((found >= 0.02) & (found <= 0.95)).all())
    with pytest.raises(ConfigError, match="budget"):
        shares(theta, modules, 0.95 * TOTAL)


def test_gradients_pass_through_the_offset() -> None:
    budget, theta = 0.4 * TOTAL, random(5).requires_grad_()
    (slope,) = torch.autograd.grad(offset(theta, MODULES, budget), theta)
    s = torch.sigmoid(theta + offset(theta, MODULES, budget)).detach()
    share = MODULES.sizes * s * (1 - s)
    torch.testing.assert_close(slope, -share / share.sum())
    weights = random(5, seed=1)
    (found,) = torch.autograd.grad((weights * shares(theta, MODULES, budget).square()).sum(), theta)
    for c in range(5):
        moved = []
        for step in (1e-4, -1e-4):
            there = theta.detach().clone()
            there[c] += step
            moved.append(float((weights * shares(there, MODULES, budget).square()).sum()))
        assert float(found[c]) == pytest.approx((moved[0] - moved[1]) / 2e-4, rel=1e-4, abs=1e-8)


def test_soft_masks_become_hard() -> None:
    q = module_percentiles(random(200), torch.zeros(200, dtype=torch.int64))
    labels, s = torch.zeros(200, dtype=torch.int64), torch.tensor([0.4]).double()
    hard = (q > 0.4).double()
    apart = [
        float(((soft_masks(q, labels, s, tau) - hard).abs() > 0.01).double().mean())
        for tau in (0.1, 0.01, 1e-3, 1e-4)
    ]
    assert apart == sorted(apart, reverse=True)
    assert apart[0] > 0.5
    assert apart[-1] == 0
    assert torch.equal(lowest(q, labels, torch.tensor([80])).double(), hard)


def test_the_temperature_falls_geometrically() -> None:
    taus = [SCHEDULE.tau(step) for step in range(40)]
    assert taus[0] == pytest.approx(0.1)
    assert taus[-1] == pytest.approx(0.01)
    assert taus[1] / taus[0] == pytest.approx(taus[21] / taus[20])


def test_losses_of_several_datasets_become_one() -> None:
    losses = torch.tensor([1.0, 2.0, 6.0]).double()
    assert float(mixed(losses, "mean")) == 3
    assert float(mixed(losses, "worst")) == 6
    assert float(mixed(losses, "mean_plus_std", 0.1)) == pytest.approx(
        3 + 0.1 * float(losses.std(correction=0))
    )
    even = torch.ones(3).double().requires_grad_()
    (slope,) = torch.autograd.grad(mixed(even), even)
    torch.testing.assert_close(slope, torch.full((3,), 1 / 3).double())
    with pytest.raises(ConfigError, match="mixture"):
        mixed(losses, "median")


def test_learning_finds_the_modules_that_hurt_less_and_never_ends_above_the_start() -> None:
    counts = torch.tensor([40, 40, 40])
    modules = Modules(counts, torch.full((3,), 3.0).double(), torch.tensor([0, 0, 1]))
    labels = torch.repeat_interleave(torch.arange(3), counts)
    q = module_percentiles(random(120, seed=3), labels)
    harm = torch.tensor([0.1, 1.0, 3.0]).double()[labels]
    budget, met = 0.4 * 360, []

    def objective(masks: Tensor, step: int) -> Tensor:
        met.append(step)
        return (harm * (1 - masks)).square().sum()

    def judge(keep: Tensor) -> float:
        assert abs(3 * int((~keep).sum()) - budget) <= 3
        return float((harm * (~keep)).square().sum())

    found = learn(objective, judge, q, labels, modules, budget, SCHEDULE)
    start = judge(lowest(q, labels, whole(uniform(modules, budget), modules, budget)))
    assert found.loss < start
    assert found.shares[0] > found.shares[1] > found.shares[2]
    assert met == list(range(40))
    assert len(found.losses) == 40
    assert judge(lowest(q, labels, found.taken)) == found.loss
    worse = learn(objective, lambda keep: -judge(keep), q, labels, modules, budget, SCHEDULE)
    assert worse.loss == -start
    assert worse.step == 0
    assert len(worse.losses) == 30  # no better hard masks for so many steps
    torch.testing.assert_close(worse.shares, uniform(modules, budget))
    with pytest.raises(ModelError, match="is nan"):
        learn(lambda masks, step: masks.sum() * float("nan"), judge, q, labels, modules, budget, SCHEDULE)
