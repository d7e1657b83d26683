"""LoRA recovery: what is merged is what was trained, structure stays, one update by hand, resumed or not the same bits."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import get_linear_schedule_with_warmup

from prunelab.distributed.group import ALONE
from prunelab.errors import ConfigError, ModelError
from prunelab.evaluation.integrity import check
from prunelab.methods.magnitude import Magnitude
from prunelab.methods.magnitude_sp import MagnitudeSP
from prunelab.models.decoder import Decoder
from prunelab.models.random import random_decoder
from prunelab.passes.shots import prune
from prunelab.pattern.table import build_pattern
from prunelab.reconstruction.adapter import Adapter, adapted
from prunelab.reconstruction.base import Whole
from prunelab.reconstruction.lora import LoRA, _Run, named_paths, rate
from prunelab.reconstruction.model_loss import backward, mean_loss
from prunelab.reconstruction.whole import repair_whole
from prunelab.sparsity.mask import violations
from prunelab.structures.state import State, apply_state, open_state, save_state, state_digest

Make = Callable[..., Any]
SHORT = {"epochs": 3, "batch": 2, "warmup": 0, "learning_rate": 3e-3, "rank": 2, "save_every": 2}
PATTERNS = ("units", "rows_columns", "2:4", "unstructured")
ROLES = ["query", "key", "value", "output", "gate", "up", "down"]
SMALL_AND_TYPICAL = ("llama", "opt", "falcon")


@pytest.fixture
def lora(option: Make) -> Make:
    """The repair with short training; keyword arguments replace fields."""
    return lambda **changes: option("reconstruction", "lora", **SHORT | changes)


def pruned(family: str, pattern: str = "units", ratio: float = 0.3, **config: Any) -> State:
    """A state of a fresh random decoder that shares nothing with it."""
    form = build_pattern(pattern, kinds=["neurons"]) if pattern == "units" else build_pattern(pattern)
    method = (
        MagnitudeSP("magnitude_sp", 1, None, "all", 2)
        if pattern == "units"
        else Magnitude("magnitude", 1, None)
    )
    options = {"allocation": "uniform", "propagation": "dense"} if pattern == "units" else {}
    target = form.fixed_ratio or ratio
    decoder = random_decoder(family, **config)
    return prune(decoder, method, None, [target], pattern=form, seed=0, batch_size=2, **options).clone()


def run(decoder: Decoder, state: Any, tokens: Tensor, spec: LoRA, **options: Any) -> State:
    return repair_whole(decoder, state, tokens, spec, **{"seed": 0, "batch_size": 3} | options)[0]


def whole(decoder: Decoder, state: State, tokens: Tensor, **options: Any) -> Whole:
    """The model as a repair gets it."""
    apply_state(decoder, state)
    masks = {name: state.site(name).mask for name in state.names}
    given = {"batch_size": 2, "seed": 0, "group": ALONE, "done": 0, "start": None} | options
    return Whole(decoder, masks, tokens, save=lambda *_: None, log=lambda *_: None, **given)


def random_factors(adapters: list[Adapter]) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for one in adapters:
            for factor in (one.A, one.B):
                factor.copy_(torch.randn(factor.shape, generator=generator) * 0.1)


def logits(decoder: Decoder, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return decoder.model(input_ids=tokens, use_cache=False).logits


def check_promises(family: str, decoder: Decoder, tokens: Tensor, spec: LoRA) -> None:
    """The loss falls, removed weights stay zero, nothing outside the linear layers moves."""
    state = pruned(family)
    before = {key: value.clone() for key, value in decoder.model.state_dict().items()}
    found, numbers = repair_whole(decoder, state, tokens, spec, seed=0, batch_size=3)
    assert numbers["lm_loss_after"] < numbers["lm_loss_before"]
    assert check(decoder, found)["integrity/violations"] == 0
    assert not found.parameters
    paths = named_paths(decoder.family, spec.sites)
    for site in decoder.sites():
        assert torch.equal(found.site(site.name).mask.keep(), state.site(site.name).mask.keep())
        moved = not torch.equal(found.site(site.name).weight, state.site(site.name).weight)
        assert moved == (site.path in paths)
    linear = {f"{site.name}.{part}" for site in decoder.sites() for part in ("weight", "bias")}
    assert all(torch.equal(v, before[k]) for k, v in decoder.model.state_dict().items() if k not in linear)
    assert not any(value.requires_grad for value in decoder.model.parameters())
    assert not any(site.linear._forward_hooks for site in decoder.sites())


@pytest.mark.parametrize("family", SMALL_AND_TYPICAL)
def test_promises(family: str, tokens: Tensor, lora: Make) -> None:
    check_promises(family, random_decoder(family), tokens, lora())


@pytest.mark.slow
def test_promises_on_every_family(decoder: Decoder, family_name: str, tokens: Tensor, lora: Make) -> None:
    check_promises(family_name, decoder, tokens, lora())
    check_promises(family_name, random_decoder(family_name), tokens, lora(sites=["down"], dropout=0.0))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_merged_is_the_forward_with_additions(
    pattern: str, dtype: torch.dtype, near: float, tokens: Tensor, lora: Make
) -> None:
    state, decoder = pruned("opt", pattern, dtype=dtype), random_decoder("opt", dtype=dtype)
    adapters = lora(rank=3).adapters(whole(decoder, state, tokens))
    assert len(adapters) == len(decoder.sites())
    random_factors(adapters)
    with adapted(adapters, tokens.shape[1]):
        expected = logits(decoder, tokens)
    for one in adapters:
        sum_of_both = one.site.linear.weight + one.mask.keep() * (one.B @ one.A) * (16 / 3)
        one.merge()
        torch.testing.assert_close(one.site.linear.weight, sum_of_both, rtol=near, atol=near)
        assert violations(one.mask, one.site.linear.weight, one.site.linear.bias) == 0
    found = logits(decoder, tokens)
    assert float((found - expected).abs().max() / expected.abs().max()) < near
    assert not torch.equal(found, logits(random_decoder("opt", dtype=dtype), tokens))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("masked", ["through", "project"])
def test_structure_stays_to_the_bit(pattern: str, masked: str, tokens: Tensor, lora: Make) -> None:
    state, decoder = pruned("llama", pattern), random_decoder("llama")
    found = run(decoder, state, tokens, lora(masked=masked))
    assert check(decoder, found)["integrity/masked"] > 0
    for name, site in found.sites():
        gone = site.weight[~site.mask.keep()]
        assert torch.equal(gone.view(torch.int32), torch.zeros_like(gone).view(torch.int32))
        assert torch.equal(site.mask.keep(), state.site(name).mask.keep())


def test_projecting_is_another_training_for_single_weights_alone(tokens: Tensor, lora: Make) -> None:
    for pattern in ("unstructured", "units"):
        state = pruned("llama", pattern)
        ways = [
            state_digest(run(random_decoder("llama"), state, tokens, lora(masked=way)))
            for way in ("through", "project")
        ]
        assert (len(set(ways)) == 1) == (pattern == "units")


def test_no_updates_and_zero_factors_leave_every_bit(tokens: Tensor, lora: Make) -> None:
    state, decoder = pruned("opt", "unstructured"), random_decoder("opt")
    found, numbers = repair_whole(decoder, state, tokens, lora(epochs=0), seed=0, batch_size=2)
    assert state_digest(found) == state_digest(state)
    assert numbers["updates"] == 0
    assert numbers["lm_loss_before"] == numbers["lm_loss_after"]
    adapters = lora().adapters(whole(decoder, state, tokens))
    plain = logits(decoder, tokens)
    with adapted(adapters, tokens.shape[1]):
        assert torch.equal(logits(decoder, tokens), plain)


def test_a_dense_model_is_fine_tuned(tokens: Tensor, lora: Make) -> None:
    state = pruned("llama", "unstructured", ratio=0.0)
    _, numbers = repair_whole(random_decoder("llama"), state, tokens, lora(), seed=0, batch_size=2)
    assert numbers["lm_loss_after"] < numbers["lm_loss_before"]


@pytest.mark.parametrize("masked", ["through", "project"])
def test_one_update_is_that_of_a_loop_by_hand(masked: str, tokens: Tensor, lora: Make) -> None:
    """Rank 1, float64, all sequences: gradients by autograd through the whole model, AdamW and clipping as written down."""
    spec = lora(
        rank=1, epochs=1, batch=5, dropout=0.0, weight_decay=0.1, masked=masked, sites=["query", "down"]
    )
    state = pruned("llama", "unstructured", dtype=torch.float64)
    decoder = random_decoder("llama", dtype=torch.float64)
    adapters = spec.adapters(whole(decoder, state, tokens))
    start = [(one.A.detach().clone(), one.B.detach().clone()) for one in adapters]
    leaves = [factor.clone().requires_grad_() for pair in start for factor in pair]
    values = {}
    for one, A, B in zip(adapters, leaves[::2], leaves[1::2], strict=True):
        product = 16.0 * B @ A * (one.mask.keep() if masked == "through" else 1)
        values[f"{one.site.name}.weight"] = one.site.linear.weight + product
    out = torch.func.functional_call(
        decoder.model, values, kwargs={"input_ids": tokens, "use_cache": False}
    ).logits
    F.cross_entropy(out[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    assert norm > 0
    after = []
    for leaf, gradient in zip(leaves, gradients, strict=True):
        g = gradient * min(1.0, 1.0 / (float(norm) + 1e-6))
        mean, square = (1 - 0.9) * g / (1 - 0.9), (1 - 0.999) * g.square() / (1 - 0.999)
        decayed = leaf.detach() * (1 - 3e-3 * 0.1)
        after.append(decayed - 3e-3 * mean / (square.sqrt() + 1e-8))
    found = run(decoder, state, tokens, spec)
    for one, A, B in zip(adapters, after[::2], after[1::2], strict=True):
        site = state.site(one.site.name)
        wanted = (site.weight + 16.0 * B @ A) * site.mask.keep()
        assert not torch.equal(wanted, site.weight)
        torch.testing.assert_close(found.site(one.site.name).weight, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.typical_families
def test_gradients_block_by_block_are_those_of_the_model(
    decoder: Decoder, family_name: str, tokens: Tensor, lora: Make
) -> None:
    adapters = lora().adapters(whole(decoder, pruned(family_name), tokens))
    random_factors(adapters)
    factors = [factor for one in adapters for factor in (one.A, one.B)]
    with adapted(adapters, tokens.shape[1]):
        losses = backward(decoder, tokens, 1 / len(tokens))
        found = [factor.grad.clone() for factor in factors if factor.grad is not None]
        out = decoder.model(input_ids=tokens, use_cache=False).logits.float()
        loss = F.cross_entropy(out[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        wanted = torch.autograd.grad(loss, factors)
        assert mean_loss(decoder, tokens, 2) == pytest.approx(float(loss.detach()), rel=1e-6)
    assert float(losses.mean()) == pytest.approx(float(loss.detach()), rel=1e-6)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_additions_begin_as_the_code_draws_them(tokens: Tensor, lora: Make) -> None:
    """Kaiming-uniform with a = sqrt(5): the bound is one over the root of the inputs, of those that are left."""
    state = pruned("llama", "units", ratio=0.4)
    decoder = random_decoder("llama")
    for one in lora(rank=8).adapters(whole(decoder, state, tokens)):
        left = int(one.mask.keep().any(0).sum())
        reference = nn.Linear(left, 8, bias=False)
        nn.init.kaiming_uniform_(reference.weight, a=math.sqrt(5))
        bound = left**-0.5
        assert float(reference.weight.detach().abs().max()) <= bound
        assert 0.8 * bound < float(one.A.detach().abs().max()) <= bound
        assert not one.B.detach().any()
        rows = one.factors()[1].detach() + 1
        assert rows.shape == one.B.shape


def test_the_rate_is_the_trainers() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.AdamW([parameter], lr=1.0)
    for total, warmup in ((10, 3), (7, 0), (5, 4)):
        theirs = get_linear_schedule_with_warmup(optimiser, warmup, total).lr_lambdas[0]
        assert [rate(t, total, warmup) for t in range(total)] == [theirs(t) for t in range(total)]


@pytest.mark.parametrize("changes", [{}, {"held_out": 0.3, "keep": "best", "look_every": 2}])
def test_resumed_after_any_part_the_rest_gives_the_same_bits(
    changes: dict[str, Any], tokens: Tensor, lora: Make, tmp_path: Any
) -> None:
    state, parts = pruned("opt"), list[tuple[int, State]]()
    spec = lora(save_every=1, **changes)
    expected, numbers = repair_whole(
        random_decoder("opt"), state, tokens, spec, seed=0, batch_size=3,
        save=lambda done, part: parts.append((done, part.clone())),
    )  # fmt: skip
    assert [done for done, _ in parts] == list(range(1, int(numbers["updates"])))
    for done, part in parts:
        save_state(part, tmp_path / "part.safetensors")
        rows: list[Any] = []
        again, same = repair_whole(
            random_decoder("opt"), state, tokens, spec, seed=0, batch_size=3, done=done,
            start=open_state(tmp_path / "part.safetensors"), log=rows.append,
        )  # fmt: skip
        assert state_digest(again) == state_digest(expected)
        assert same == numbers
        assert next(row["step"] for row in rows if row["event"] == "train") == done + 1


def test_the_size_of_a_forward_moves_roundings_only(tokens: Tensor, lora: Make) -> None:
    state = pruned("opt")
    found = [run(random_decoder("opt"), state, tokens, lora(batch=4), batch_size=size) for size in (1, 3, 16)]
    for name, site in found[0].sites():
        for other in found[1:]:
            torch.testing.assert_close(other.site(name).weight, site.weight, rtol=1e-4, atol=2e-5)


def test_seeds_differ_and_one_seed_is_the_same(tokens: Tensor, lora: Make) -> None:
    state = pruned("llama")
    digests = [
        state_digest(run(random_decoder("llama"), state, tokens, lora(), seed=seed)) for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]
    dry = state_digest(run(random_decoder("llama"), state, tokens, lora(dropout=0.0)))
    assert dry != digests[0]


def test_what_is_dropped_is_the_share_and_the_same_twice(tokens: Tensor, lora: Make) -> None:
    spec = lora(dropout=0.25)
    work = whole(random_decoder("llama"), pruned("llama"), tokens)
    training = _Run(spec, work, spec.adapters(work), tokens, tokens[:0], 1)
    x = torch.ones(2, 50, 40)
    one = training._drop(3, torch.tensor([4, 1]))
    assert one is not None
    first = one("layer", x)
    assert torch.equal(first, one("layer", x))
    assert first.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert float((first == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    alone = training._drop(3, torch.tensor([1]))
    assert alone is not None
    assert torch.equal(first[1:], alone("layer", x[1:]))  # a sequence's own, whatever goes beside it
    assert not torch.equal(first, one("other", x))


def test_held_out_sequences_are_not_trained_on_and_the_best_returns(tokens: Tensor, lora: Make) -> None:
    state = pruned("llama")
    harmful = {"learning_rate": 0.5, "epochs": 4, "held_out": 0.35, "look_every": 1}
    rows: list[Any] = []
    kept, numbers = repair_whole(
        random_decoder("llama"),
        state,
        tokens,
        lora(keep="best", **harmful),
        seed=0,
        batch_size=2,
        log=rows.append,
    )
    looks = {row["step"]: row["loss"] for row in rows if row["event"] == "held_out"}
    assert sorted(looks) == list(range(len(looks)))
    assert numbers["lm_loss_held_out"] == min(looks.values()) == looks[int(numbers["kept_update"])]
    assert numbers["kept_update"] == 0
    held_out = random_decoder("llama")
    apply_state(held_out, kept)
    assert mean_loss(held_out, tokens[3:], 2) == pytest.approx(min(looks.values()), rel=1e-6)
    last, numbers = repair_whole(
        random_decoder("llama"), state, tokens, lora(**harmful), seed=0, batch_size=2
    )
    assert numbers["kept_update"] == numbers["updates"]
    assert state_digest(last) != state_digest(kept)
    other = torch.cat([tokens[:3], tokens[3:].flip(1)])
    again = run(random_decoder("llama"), state, other, lora(**harmful), batch_size=2)
    assert state_digest(again) == state_digest(last)


def test_rows_of_every_update_and_progress_for_people(tokens: Tensor, lora: Make) -> None:
    rows, said = list[Any](), list[Any]()
    run(
        random_decoder("llama"),
        pruned("llama"),
        tokens,
        lora(warmup=2),
        log=rows.append,
        progress=said.append,
    )
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert [row["learning_rate"] for row in rows] == pytest.approx(
        [3e-3 * f for f in (0, 0.5, 1, 0.75, 0.5, 0.25)]
    )
    assert all(row["loss"] > 0 for row in rows)
    assert [(row["done"], row["total"]) for row in said] == [(n, 6) for n in range(1, 7)]


def test_the_graph_in_memory_is_that_of_one_block(tokens: Tensor, lora: Make) -> None:
    """Bytes kept for the backward at a time do not grow with blocks, and are fewer than those of a model's whole graph."""
    peaks = {}
    for n_blocks in (2, 6):
        config = {"num_hidden_layers": n_blocks}
        decoder = random_decoder("llama", **config)
        adapters = lora().adapters(whole(decoder, pruned("llama", **config), tokens))
        known = {value.untyped_storage().data_ptr() for value in decoder.model.parameters()}
        with adapted(adapters, tokens.shape[1]):
            peaks[n_blocks] = peak(lambda d=decoder: backward(d, tokens, 1.0), known)
            full = peak(
                lambda d=decoder: d.model(input_ids=tokens, use_cache=False).logits.sum().backward(), known
            )
        assert all(value.grad is None for value in decoder.model.parameters())
    assert peaks[6] <= 1.05 * peaks[2]
    assert full > 3 * peaks[6]


def peak(work: Callable[[], Any], known: set[int]) -> int:
    """Return the most bytes that autograd kept at a time while ``work`` ran; storages in ``known`` do not count."""
    alive: dict[int, int] = {}
    most = 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def pack(tensor: Tensor) -> Kept:
        nonlocal most
        kept = Kept(tensor)
        if tensor.untyped_storage().data_ptr() not in known:
            alive[id(kept)] = tensor.numel() * tensor.element_size()
            weakref.finalize(kept, alive.pop, id(kept), None)
            most = max(most, sum(alive.values()))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        work()
    return most


def test_roles_name_the_maps_of_every_family(decoder: Decoder, family_name: str) -> None:
    family = decoder.family
    paths = {path for group in family.inputs for path in group}
    assert named_paths(family, ROLES) == paths
    for role in ROLES:
        assert named_paths(family, [role]) <= paths
    assert bool(named_paths(family, ["gate"])) == (family.halves or len(family.mlp[0]) == 2)  # type: ignore[index]


def test_what_does_not_go_together_is_named(tokens: Tensor, lora: Make) -> None:
    state = pruned("opt")
    for changes, message in (
        (
            {"rank": 25},
            r"reconstruction\.rank=25: allowed is at most 24, the width of model\.decoder\.layers\.0",
        ),
        ({"sites": ["gate"]}, r"reconstruction\.sites=\['gate'\]: allowed is maps that family 'opt' has"),
        ({"warmup": 6}, r"reconstruction\.warmup=6: allowed is less than 6"),
        ({"held_out": 0.99}, r"reconstruction\.held_out=0\.99"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(random_decoder("opt"), state, tokens, lora(**changes))
    half = pruned("opt", dtype=torch.float16)
    with pytest.raises(ConfigError, match=r"float32 \| bfloat16"):
        run(random_decoder("opt", dtype=torch.float16), half, tokens, lora())


def test_training_that_diverges_is_an_error(tokens: Tensor, lora: Make) -> None:
    wild = lora(learning_rate=1e30, clipping="none", alpha=1e30)
    with pytest.raises(ModelError, match=r"diverged at update \d+ .*Lower reconstruction\.learning_rate"):
        run(random_decoder("llama"), pruned("llama"), tokens, wild)


def test_bfloat16(tokens: Tensor, lora: Make) -> None:
    decoder = random_decoder("llama", dtype=torch.bfloat16)
    found = run(decoder, pruned("llama", dtype=torch.bfloat16), tokens, lora(learning_rate=0.02))
    check(decoder, found)
    assert {site.weight.dtype for _, site in found.sites()} == {torch.bfloat16}


def test_a_block_that_is_gone_gets_no_addition(tokens: Tensor, lora: Make) -> None:
    state = pruned("llama")
    gone = {}
    for name, site in state.sites():
        if ".0." in name:
            site.mask.keep_rows[:] = False  # type: ignore[attr-defined]
            gone[name] = site.weight.zero_()
    decoder = random_decoder("llama")
    found = run(decoder, state, tokens, lora())
    assert gone
    assert all(not found.site(name).weight.any() for name in gone)
    assert check(decoder, found)["integrity/violations"] == 0


def test_the_rate_of_the_surgeon_falls_after_every_epoch(tokens: Tensor, option: Make) -> None:
    """From the full rate to 0 behind the last epoch, as its published code steps it."""
    spec = option("reconstruction", "lora_surgeon", rank=2)
    rows: list[Any] = []
    state = pruned("opt", "unstructured")
    repair_whole(random_decoder("opt"), state, tokens, spec, seed=0, batch_size=2, log=rows.append)
    found = [row["learning_rate"] for row in rows if row["event"] == "train"]
    wanted = [1e-4 * (1 - epoch / 5) for epoch in range(5) for _ in range(len(tokens))]
    assert found == pytest.approx(wanted, rel=1e-12)


def test_additions_that_are_not_scaled(tokens: Tensor, option: Make) -> None:
    decoder = random_decoder("llama")
    spec = option("reconstruction", "lora_surgeon")
    adapters = spec.adapters(whole(decoder, pruned("llama", "rows_columns"), tokens))
    assert len(adapters) == len(decoder.sites())  # all linear layers
    assert {one.scale for one in adapters} == {1.0}
    drawn = torch.cat([one.A.detach().flatten() for one in adapters])
    assert float(drawn.mean()) == pytest.approx(0, abs=0.05)
    assert float(drawn.std()) == pytest.approx(1, abs=0.05)


def test_a_share_is_drawn_and_at_least_one(lora: Make) -> None:
    drawn = lora(share=0.025)._drawn(128, 0)
    assert drawn.shape == (3,)  # as the paper's 128 sequences
    assert drawn.unique(sorted=True).tolist() == drawn.tolist()
    assert lora(share=0.025)._drawn(8, 0).shape == (1,)
    assert lora(share=0.3)._drawn(10, 0).shape == (3,)
    assert lora(share=0.5)._drawn(64, 0).tolist() != lora(share=0.5)._drawn(64, 1).tolist()
