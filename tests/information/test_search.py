"""Who goes: greedy search against a search by looking at everything, random pairs, clusters, and who stays for whom."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunelab.errors import ConfigError
from prunelab.information.cluster import cluster, clustered
from prunelab.information.gaussian import Gaussian
from prunelab.information.pairs import chance, lookup, remembered
from prunelab.information.plan import first, resolve
from prunelab.information.renyi import Renyi
from prunelab.information.samples import standardised
from prunelab.information.search import Neurons, Removals, all_pairs_greedy, quantile_of, random_pairs

RENYI = Renyi(0.4)


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _raw(n: int = 64, m: int = 16, seed: int = 0) -> Tensor:
    """Columns some of which depend on each other."""
    generator = _rng(seed)
    Z = torch.randn(n, m, generator=generator).double()
    Z[:, 1 : m // 2] += 0.7 * Z[:, :1] * torch.randn(m // 2 - 1, generator=generator)
    return Z


def _neurons(
    Z: Tensor, victim: str = "lower_norm", norm: Tensor | None = None, min_active: int = 0
) -> Neurons:
    samples = standardised(Z, min_active=min_active)
    if norm is None:
        norm = samples.deviation * torch.rand(Z.shape[1], generator=_rng(9)).double()
    entropy = RENYI.entropies(samples.columns)
    return Neurons(samples.columns, samples.dead, samples.rare, norm, entropy, victim)


def _greedy(Z: Tensor, count: int, victim: str = "lower_norm", **other: object) -> Removals:
    neurons = _neurons(Z, victim, **other)  # pyright: ignore[reportArgumentType]
    return all_pairs_greedy(RENYI.matrix(neurons.columns), neurons, count, _rng(), threshold=0.2)


@pytest.mark.parametrize("victim", ["lower_norm", "lower_entropy", "central"])
def test_greedy_is_what_looking_at_all_pairs_every_time_finds(victim: str) -> None:
    Z = _raw()
    neurons = _neurons(Z, victim)
    M = RENYI.matrix(neurons.columns)
    found = _greedy(Z, 12, victim)
    left = list(range(16))
    for number, (x, p, value) in enumerate(zip(found.order, found.partner, found.value, strict=True)):
        pairs = [(float(M[k, l]), k, l) for k in left for l in left if k < l]
        best, k, l = max(pairs)
        assert (float(value), {int(x), int(p)}) == (best, {k, l}), number
        several = {i: sum(float(M[i, j]) > 0.2 for j in left if j != i) for i in (k, l)}
        measure = {
            "lower_norm": lambda i: float(neurons.norm[i]),
            "lower_entropy": lambda i: float(neurons.entropy[i]),
            "central": lambda i, several=several: (-several[i], float(neurons.norm[i])),
        }[victim]
        assert int(x) == min((k, l), key=measure)
        rho = torch.corrcoef(Z[:, [int(x), int(p)]].T)[0, 1]
        torch.testing.assert_close(found.r2[number], rho.square())
        assert int(found.sign[number]) == int(rho.sign())
        left.remove(int(x))
    assert found.reason == (victim,) * 12
    assert found.shortfall == 0
    assert bool((found.value.diff() <= 0).all())


def test_random_victims_are_either_of_the_two_and_the_generators() -> None:
    goes = [int(_random_first(seed).order[0]) for seed in range(20)]
    assert len(set(goes)) == 2
    assert goes == [int(_random_first(seed).order[0]) for seed in range(20)]


def _random_first(seed: int) -> Removals:
    neurons = _neurons(_raw(), "random")
    return all_pairs_greedy(RENYI.matrix(neurons.columns), neurons, 1, _rng(seed))


@pytest.mark.parametrize("scale", [2.5, -2.5])
def test_a_planted_duplicate_goes_first_and_random_pairs_find_it(scale: float) -> None:
    Z = _raw()
    Z[:, 11] = scale * Z[:, 13] + 1
    neurons = _neurons(Z)
    M = RENYI.matrix(neurons.columns)
    found = _greedy(Z, 3)
    assert {int(found.order[0]), int(found.partner[0])} == {11, 13}
    assert float(found.value[0]) == pytest.approx(1)
    assert int(found.sign[0]) == (1 if scale > 0 else -1)
    by_chance = random_pairs(lookup(M), neurons, 1, _rng(), threshold=0.9, floor=0.9)
    assert {int(by_chance.order[0]), int(by_chance.partner[0])} == {11, 13}


def test_dead_neurons_go_before_any_other() -> None:
    Z = _raw()
    Z[:, 4], Z[:, 9], Z[:, 12] = 3.0, 0.0, Z[:, 0]
    found = _greedy(Z, 3)
    assert found.order[:2].tolist() == [4, 9]
    assert found.partner[:2].tolist() == [-1, -1]
    assert found.reason[:2] == ("dead", "dead")
    assert {int(found.order[2]), int(found.partner[2])} == {0, 12}
    assert _greedy(Z, 1).order.tolist() == [4]
    neurons = _neurons(Z)
    values = lookup(RENYI.matrix(neurons.columns))
    assert random_pairs(values, neurons, 2, _rng(), threshold=2.0, floor=2.0).order.tolist() == [4, 9]


@pytest.mark.parametrize("search", ["greedy", "cluster"])
def test_of_p_planted_copies_exactly_p_go_before_any_other_pair(search: str) -> None:
    Z = _raw()
    copies = [3, 5, 10, 15]
    for number, copy in enumerate(copies):
        Z[:, copy] = (number - 1.5) * Z[:, 8]
    neurons = _neurons(Z)
    if search == "greedy":
        found = _greedy(Z, 8)
    else:
        found = clustered(RENYI, neurons, 8, _rng(), n_clusters=2)
    planted = {8, *copies}
    assert set(found.order[:4].tolist()) < planted
    assert not set(found.order[4:5].tolist()) & planted
    assert bool((found.value[:4] > 1 - 1e-6).all())
    assert float(found.value[4]) < 0.9
    assert len(set(first(found, 4).partner.tolist())) == 1  # the one that is left


@pytest.mark.parametrize("q", [0, 1, 5, 15])
def test_who_takes_over_is_never_removed_itself(q: int) -> None:
    Z = _raw()
    found = _greedy(Z, 15)
    plan = first(found, q)
    assert plan.removed.tolist() == found.order[:q].tolist()
    assert not set(plan.partner.tolist()) & set(plan.removed.tolist())
    assert all(partner >= 0 for partner in plan.partner.tolist())
    towards = dict(zip(found.order.tolist(), found.partner.tolist(), strict=True))
    for x, p in zip(plan.removed.tolist(), plan.partner.tolist(), strict=True):
        chain = [x]
        while chain[-1] != p:  # p is on the way of partners from x
            chain.append(towards[chain[-1]])
        assert all(number in plan.removed for number in chain[:-1])


def test_neurons_that_somebody_else_chose_have_partners_as_far_as_there_are_any() -> None:
    order, partner = torch.tensor([0, 1, 2]), torch.tensor([-1, 2, 3])
    nothing = torch.zeros(3)
    found = Removals(order, partner, nothing, nothing, nothing, ("dead", "random", "random"), 0, None)
    plan = resolve(found, torch.tensor([5, 2, 0, 1]))
    assert plan.partner.tolist() == [-1, 3, -1, 3]
    assert resolve(found, torch.tensor([1])).partner.tolist() == [2]
    assert resolve(found, torch.tensor([1, 2, 3])).partner.tolist() == [-1, -1, -1]


def test_permuting_neurons_permutes_the_result_and_rescaling_changes_nothing() -> None:
    Z = _raw()
    norm = torch.rand(16, generator=_rng(9)).double()
    found = _greedy(Z, 12, norm=norm)
    order = torch.randperm(16, generator=_rng(3))
    moved = _greedy(Z[:, order], 12, norm=norm[order])
    assert order[moved.order].tolist() == found.order.tolist()
    assert order[moved.partner].tolist() == found.partner.tolist()
    # input rows times c, output column over c: the norm ||W_out|| std stays
    scaled = _greedy(Z * torch.linspace(0.1, 7, 16).double(), 12, norm=norm)
    assert scaled.order.tolist() == found.order.tolist()
    assert scaled.partner.tolist() == found.partner.tolist()


def test_of_independent_neurons_hardly_any_go_and_the_shortfall_is_said() -> None:
    Z = torch.randn(128, 24, generator=_rng(4)).double()
    neurons = _neurons(Z, "random")
    M = RENYI.matrix(neurons.columns)
    null = chance(neurons.columns, RENYI, neurons.live, 500, _rng(5))
    floor = float(null.mean() + 3 * null.std())
    assert float(null.mean()) == pytest.approx(float(M[~torch.eye(24).bool()].mean()), rel=0.2)
    threshold = quantile_of(lookup(M), neurons.live, 0.99, _rng(6))
    at_random = random_pairs(lookup(M), neurons, 12, _rng(7), threshold=threshold, floor=floor)
    by_greed = all_pairs_greedy(M, neurons, 12, _rng(7), floor=floor)
    grouped = clustered(RENYI, neurons, 12, _rng(7), n_clusters=2, floor=floor)
    for found in (at_random, by_greed, grouped):
        assert bool((found.value > floor).all())
        assert len(found.order) + found.shortfall == 12
        assert found.shortfall >= 9
    assert at_random.threshold == floor


def test_random_pairs_take_only_what_is_above_and_lower_the_threshold_step_by_step() -> None:
    Z = _raw()
    neurons = _neurons(Z, "random")
    values = lookup(RENYI.matrix(neurons.columns))
    found = random_pairs(values, neurons, 10, _rng(1), threshold=0.5, floor=0.01, max_trials=200)
    again = random_pairs(values, neurons, 10, _rng(1), threshold=0.5, floor=0.01, max_trials=200)
    assert found.order.tolist() == again.order.tolist()
    other = random_pairs(values, neurons, 10, _rng(2), threshold=0.5, floor=0.01, max_trials=200)
    assert found.order.tolist() != other.order.tolist()
    assert found.shortfall == 0
    assert len(set(found.order.tolist())) == 10
    assert found.threshold is not None
    assert 0.01 <= found.threshold < 0.5
    gone: set[int] = set()
    for x, p, value in zip(found.order.tolist(), found.partner.tolist(), found.value, strict=True):
        assert not {x, p} & gone
        assert float(values(torch.tensor([[x, p]]))) == float(value) > found.threshold
        gone.add(x)
    asked: list[int] = []

    def counting(pairs: Tensor) -> Tensor:
        asked.append(len(pairs))
        return values(pairs)

    kept = remembered(counting, 16)
    same = random_pairs(kept, neurons, 10, _rng(1), threshold=0.5, floor=0.01, max_trials=200)
    assert same.order.tolist() == found.order.tolist()
    assert sum(asked) <= 16 * 15 // 2
    lazily = random_pairs(
        RENYI.values(neurons.columns), neurons, 10, _rng(1), threshold=0.5, floor=0.01, max_trials=200
    )
    assert lazily.order.tolist() == found.order.tolist()


def test_the_last_neuron_stays_and_a_rare_one_is_judged_by_its_norm() -> None:
    Z = _raw()
    with pytest.raises(ConfigError, match="at least one neuron stays"):
        _greedy(Z, 16)
    Z[:, 2] = 0
    Z[:3, 2] = torch.tensor([1.0, 5.0, -2.0]).double()
    found = _greedy(Z, 15, "lower_entropy", min_active=4)
    rules = [
        reason
        for x, p, reason in zip(found.order.tolist(), found.partner.tolist(), found.reason, strict=True)
        if 2 in (x, p)
    ]
    assert rules
    assert set(rules) == {"lower_norm"}
    assert "lower_entropy" in found.reason


def test_a_quantile_is_one_of_random_pairs_and_what_cannot_be_is_refused() -> None:
    neurons = _neurons(_raw())
    M = RENYI.matrix(neurons.columns)
    off = M[~torch.eye(16).bool()]
    found = quantile_of(lookup(M), torch.arange(16), 0.9, _rng())
    assert float(off.quantile(0.85)) <= found <= float(off.quantile(0.95))
    with pytest.raises(ConfigError, match="Did you mean 'central'"):
        _neurons(_raw(), "centrall")
    with pytest.raises(ConfigError, match="victim=central"):
        all_pairs_greedy(M, _neurons(_raw(), "central"), 1, _rng())
    with pytest.raises(ConfigError, match="a floor > 0"):  # the threshold would fall for ever
        random_pairs(lookup(M), neurons, 1, _rng(), threshold=0.5, floor=0.0)


def test_clusters_put_what_is_alike_up_to_sign_together() -> None:
    generator = _rng()
    centres = torch.randn(64, 3, generator=generator).double()
    kind = torch.tensor([0, 1, 2] * 6)
    sign = torch.where(torch.rand(18, generator=generator) < 0.5, -1.0, 1.0)
    Z = standardised(centres[:, kind] * sign + 0.1 * torch.randn(64, 18, generator=generator)).columns
    best = max((cluster(Z, 3, _rng(seed)) for seed in range(5)), key=len)
    assert sorted(torch.cat(best).tolist()) == list(range(18))
    assert all(len(set(kind[group].tolist())) == 1 for group in best)
    assert [group.tolist() for group in cluster(Z, 3, _rng(1))] == [
        g.tolist() for g in cluster(Z, 3, _rng(1))
    ]
    with pytest.raises(ConfigError, match="1 <= x <= 18"):
        cluster(Z, 19, _rng())


def test_clustered_search_is_greedy_inside_clusters_and_stops_at_one_each() -> None:
    neurons = _neurons(_raw())
    whole = clustered(RENYI, neurons, 10, _rng(), n_clusters=1)
    assert whole.order.tolist() == _greedy(_raw(), 10).order.tolist()
    groups = cluster(neurons.columns, 4, _rng())
    found = clustered(RENYI, neurons, 15, _rng(), n_clusters=4)
    assert found.shortfall == len(groups) - 1
    where = {number: index for index, group in enumerate(groups) for number in group.tolist()}
    assert all(
        where[x] == where[p] for x, p in zip(found.order.tolist(), found.partner.tolist(), strict=True)
    )
    silent = _neurons(torch.zeros(8, 4))
    assert clustered(RENYI, silent, 2, _rng()).reason == ("dead", "dead")


def test_variables_of_several_channels_are_searched_alike_but_have_no_linear_fit() -> None:
    Z = torch.randn(32, 6, 3, generator=_rng()).double()
    Z[:, 4] = Z[:, 1].flip(1)  # distances between the samples are the same
    plain = torch.zeros(6)
    neurons = Neurons(Z, plain.bool(), plain.bool(), torch.arange(6).double(), plain, "lower_norm")
    found = all_pairs_greedy(Renyi(1.0).matrix(Z), neurons, 2, _rng())
    assert (int(found.order[0]), int(found.partner[0])) == (1, 4)
    assert bool(found.r2.isnan().all())
    assert found.sign.tolist() == [0, 0]
    null = chance(Z, Renyi(1.0), torch.arange(6), 200, _rng())
    assert float(null.mean()) < 0.8 < float(found.value[0])
    with pytest.raises(ConfigError, match="renyi_matrix for variables of several channels"):
        Gaussian().matrix(Z)
