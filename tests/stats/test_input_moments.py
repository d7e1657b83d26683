"""Mean and variance of channels: two passes over all tokens, whatever the batches."""

from __future__ import annotations

import torch

from prunelab.stats.input_moments import InputMoments


def test_any_split_equals_two_passes() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 5, 4, generator=generator) * torch.tensor([1.0, 0.1, 10, 0]) + torch.tensor(
        [0, 100.0, -5, 2]
    )
    statistic, found = InputMoments(), []
    for split in (1, 2, 9):
        total = statistic.start("a layer", 4, ones=False, device=torch.device("cpu"))
        for part in x.split(split):
            total.add(part)
        found.append(total.finish())
    tokens = x.double().reshape(-1, 4)
    for one in found:
        torch.testing.assert_close(one.mean.double(), tokens.mean(0), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(one.variance.double(), tokens.var(0), rtol=1e-5, atol=1e-9)
        assert torch.equal(one.mean, found[0].mean)
        assert torch.equal(one.variance, found[0].variance)
    again = statistic.unpack(statistic.pack(found[0]), 4, "a layer")
    assert torch.equal(again.variance, found[0].variance)
    cut = statistic.restrict(
        found[0], torch.tensor([True, False, True, True, True])
    )  # the last one: a bias' input
    assert torch.equal(cut.mean, found[0].mean[[0, 2, 3]])
    assert statistic.live(found[0]).tolist() == [True] * 4
