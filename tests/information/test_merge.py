"""What a removed neuron hands over: least squares written out, exact for affine copies, never worse than nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunelab.information.merge import merge, merge_jointly, moments_of


def _layer(n: int = 200, C: int = 6, R: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(C, C, generator=generator)
    Z = (torch.randn(n, C, generator=generator) @ mix + 1).double()
    return Z, torch.randn(R, C, generator=generator).double(), torch.randn(R, generator=generator).double()


def test_weights_bias_and_fit_are_those_of_least_squares() -> None:
    Z, W, b = _layer()
    found = merge(W, b, moments_of(Z), torch.tensor([1, 4]), torch.tensor([0, 3]), min_r2=0.0)
    new_W, new_b = W.clone(), b.clone()
    for row, (x, p) in enumerate([(1, 0), (4, 3)]):
        design = torch.stack([Z[:, p], torch.ones(len(Z)).double()], 1)
        beta, gamma = torch.linalg.lstsq(design, Z[:, x]).solution
        rest = Z[:, x] - beta * Z[:, p] - gamma
        r2 = 1 - rest.square().mean() / Z[:, x].var(correction=0)
        new_W[:, p] += beta * W[:, x]
        new_W[:, x] = 0
        new_b += gamma * W[:, x]
        for one, expected in ((found.beta, beta), (found.gamma, gamma), (found.r2, r2)):
            torch.testing.assert_close(one[row], expected)
    torch.testing.assert_close(found.W, new_W)
    torch.testing.assert_close(found.bias, new_b)


def test_below_the_gate_only_the_mean_moves() -> None:
    Z, W, b = _layer()
    moments, x, p = moments_of(Z), torch.tensor([1]), torch.tensor([0])
    r2 = float(merge(W, b, moments, x, p, 0.0).r2)
    assert float(merge(W, b, moments, x, p, r2 - 1e-9).beta) != 0
    gated = merge(W, b, moments, x, p, r2 + 1e-9)
    alone = merge(W, b, moments, x, torch.tensor([-1]), 0.0)
    for found in (gated, alone):
        expected = W.clone()
        expected[:, 1] = 0
        assert torch.equal(found.W, expected)
        torch.testing.assert_close(found.bias, b + Z[:, 1].mean() * W[:, 1])


@pytest.mark.parametrize(("x", "p"), [(1, 0), (0, 5), (4, 2)])
def test_one_removal_costs_its_residual_and_never_more_than_without(x: int, p: int) -> None:
    Z, W, b = _layer()
    found = merge(W, b, moments_of(Z), torch.tensor([x]), torch.tensor([p]), min_r2=0.0)
    dense = Z @ W.T + b
    cut = W.clone()
    cut[:, x] = 0
    error = (Z @ found.W.T + found.bias - dense).square().sum(1).mean()
    residual = Z[:, x] - found.beta * Z[:, p] - found.gamma
    torch.testing.assert_close(error, W[:, x].square().sum() * residual.square().mean())
    by_mean = merge(W, b, moments_of(Z), torch.tensor([x]), torch.tensor([-1]), min_r2=0.0)
    middle = (Z @ by_mean.W.T + by_mean.bias - dense).square().sum(1).mean()
    nothing = (Z @ cut.T + b - dense).square().sum(1).mean()
    assert error <= middle <= nothing


@pytest.mark.parametrize("gated", [False, True])
def test_affine_copies_and_constant_neurons_leave_the_outputs_as_they_were(gated: bool) -> None:
    """relu(c a) = c relu(a) for c > 0; with a gate the factor of the other half may have any sign."""
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(100, 5, generator=generator).double()
    up, gate = torch.randn(2, 8, 5, generator=generator).double()
    W = torch.randn(3, 8, generator=generator).double()
    up[3], gate[3] = (-2.5 if gated else 2.5) * up[0], gate[0]
    hidden = torch.nn.functional.silu(X @ gate.T) * (X @ up.T) if gated else (X @ up.T).relu()
    hidden[:, 6] = 0.7  # constant
    hidden[:, 7] = 0.0  # dead
    removed, partner = torch.tensor([7, 6, 3]), torch.tensor([-1, -1, 0])
    found = merge(W, None, moments_of(hidden), removed, partner, min_r2=0.5)
    torch.testing.assert_close(hidden @ found.W.T + found.bias, hidden @ W.T, rtol=0, atol=1e-10)
    assert not found.W[:, removed].any()
    bare = W.clone()
    bare[:, removed] = 0
    assert float((hidden @ bare.T - hidden @ W.T).abs().max()) > 0.1


def test_several_may_share_a_partner() -> None:
    Z, W, _ = _layer()
    Z[:, 1], Z[:, 2] = 2 * Z[:, 0] + 1, -Z[:, 0]
    found = merge(W, None, moments_of(Z), torch.tensor([1, 2]), torch.tensor([0, 0]), min_r2=0.5)
    torch.testing.assert_close(Z @ found.W.T + found.bias, Z @ W.T)


def test_a_joint_merge_is_least_squares_on_all_partners_and_no_residual_grows() -> None:
    Z, W, b = _layer()
    moments, removed, partners = moments_of(Z), torch.tensor([1, 4]), torch.tensor([0, 3])
    alone = torch.zeros(2, dtype=torch.bool)
    found = merge_jointly(W, b, moments, removed, alone, partners, 0.0)
    design = torch.cat([Z[:, partners], torch.ones(len(Z), 1).double()], 1)
    fit = torch.linalg.lstsq(design, Z[:, removed]).solution  # (3, 2)
    rest = Z[:, removed] - design @ fit
    new = W.clone()
    new[:, partners] += W[:, removed] @ fit[:2].T
    new[:, removed] = 0
    close = {"rtol": 1e-4, "atol": 1e-4}  # the damping
    torch.testing.assert_close(found.W, new, **close)
    torch.testing.assert_close(found.bias, b + W[:, removed] @ fit[2], **close)
    torch.testing.assert_close(found.beta, fit[:2].T, **close)
    r2 = 1 - rest.square().mean(0) / Z[:, removed].var(0, correction=0)
    torch.testing.assert_close(found.r2, r2, **close)
    assert torch.equal(found.W[:, [2, 5]], W[:, [2, 5]])
    assert bool((found.r2 > merge(W, b, moments, removed, partners, 0.0).r2).all())


def test_several_that_share_what_their_partners_say_do_not_add_up_their_errors_jointly() -> None:
    """Three sums of two sources: pairwise each is given to one of them, and what is missing adds up in the output."""
    generator = torch.Generator().manual_seed(2)
    sources = torch.randn(500, 2, generator=generator).double()
    Z = torch.cat([sources, sources.sum(1, keepdim=True).repeat(1, 3)], 1)
    W, moments, removed = torch.ones(1, 5).double(), moments_of(Z), torch.tensor([2, 3, 4])
    error = {}
    for name, found in {
        "pairwise": merge(W, None, moments, removed, torch.tensor([0, 0, 0]), 0.0),
        "joint": merge_jointly(
            W, None, moments, removed, torch.zeros(3, dtype=torch.bool), torch.tensor([0, 1]), 0.0
        ),
    }.items():
        error[name] = float((Z @ found.W.T + found.bias - Z @ W.T).square().mean())
    alone = float((Z[:, 2] - Z[:, 0]).var(correction=0))  # of one of the three
    assert error["pairwise"] > 7 * alone
    assert error["joint"] < 1e-8


@pytest.mark.parametrize("unmerged", ["mean", "nothing"])
def test_below_the_gate_and_alone_a_joint_merge_gives_the_mean_or_nothing(unmerged: str) -> None:
    Z, W, b = _layer()
    removed, alone = torch.tensor([1, 4]), torch.tensor([False, True])
    found = merge_jointly(W, b, moments_of(Z), removed, alone, torch.tensor([0, 3]), 1.0, unmerged)
    means = Z.mean(0)[removed] * (torch.ones(2) if unmerged == "mean" else torch.tensor([0.0, 1.0]))
    expected = W.clone()
    expected[:, removed] = 0
    assert torch.equal(found.W, expected)
    torch.testing.assert_close(found.bias, b + W[:, removed] @ means.double())
    pairwise = merge(W, b, moments_of(Z), removed, torch.tensor([0, -1]), 1.0, unmerged)
    torch.testing.assert_close(pairwise.bias, found.bias)
    nobody = torch.tensor([], dtype=torch.int64)
    without = merge_jointly(W, b, moments_of(Z), removed, alone, nobody, 0.5, unmerged)
    torch.testing.assert_close(without.bias, found.bias)
