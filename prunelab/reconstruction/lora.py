"""LoRA recovery: low-rank additions trained on text, then merged into what pruning left (arXiv:2305.11627, section 3.3).

Defaults are those of LLM-Pruner's scripts and of what its code leaves to the Hugging Face Trainer: rank 8, alpha 16,
dropout 0.05 on the input of every addition, AdamW (betas 0.9 and 0.999, epsilon 1e-8, no decay) at 1e-4, gradients
clipped at norm 1, 2 epochs of batches of 64 sequences. The rate of update t (from 0) of T is, as in the Trainer, ``t / warmup``
of the full one while t < warmup, 100, and then ``(T - t) / (T - warmup)``: the first update is made at 0.

The Surgeon's first-order correction (arXiv:2312.17244, the interleaved low-rank updates of its appendix) is the same training
by other settings, conf/reconstruction/lora_surgeon.yaml and conf/between_shots/lora_surgeon.yaml: ``init=normal``, A from
N(0, 1); ``alpha=null``, additions are not scaled; ``decay=epoch``, the rate falls to 0 by a step after every epoch; batches
of one sequence, no dropout, no clipping; between shots one epoch on a random 2.5 % of the sequences (``share``), after the
last one five on all. Its published code makes additions to the attention of OPT only, and never puts them into the
model; here all linear layers of every family get one, and single weights that are gone stay so, which it has not.

Reconstruction, where this departs from LLM-Pruner's code. The text is the trial's (``reconstruction_data``) in windows of one
length, with the loss on all tokens; the code's is Alpaca, with the loss on answers only. Batches are reshuffled every
epoch with the rest dropped. Nothing is scaled for float16, which is refused. The loss is that of the language model
alone: a distance to the dense model's logits would need the dense model beside this one.

Randomness. What a layer drops of a sequence's input is drawn from (seed, layer, update, sequence), the order of an epoch from
(seed, epoch): so it does not matter how many sequences a forward takes, how ranks share them, or where a killed
attempt is taken up. The size of a forward moves roundings only, and is in no key.

Peak memory: the model's weights, which get no gradients; four numbers (value, gradient, two moments) for each of the
additions' r (R + C), another value with ``keep=best``; of the sequences of one forward the inputs of all blocks, the
graph of one block, and a chunk of logits; where single weights are masked on the way (``masked=through``), a byte per
weight of the model, and in the graph of a block two float32 numbers per weight of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from prunelab.errors import ConfigError, ModelError
from prunelab.family import Family
from prunelab.reconstruction.adapter import Adapter, adapted, begin_adapter
from prunelab.reconstruction.base import Whole
from prunelab.reconstruction.fit import Say, clip
from prunelab.reconstruction.model_loss import backward, in_parts, mean_loss
from prunelab.stats.view import site_generator

_EPS = 1e-8


@dataclass(frozen=True)
class LoRA:
    """``sites``: which maps get an addition, by what they do; a map that does several things at once gets one.

    ``masks``: chosen before; a model is trained as a whole once all of it is pruned. ``masked``: where single weights are
    gone, the product of the factors is masked in every forward (through), so that merging changes nothing, or at the
    end only (project). ``share`` of the sequences, drawn at random, at least one: those that are trained on. ``init`` of the
    factor A, ``alpha`` (null: additions are not scaled): see adapter.py. ``decay``: the rate falls after every update or epoch.
    ``batch``: sequences of an update, all of them if they are fewer. ``clipping`` of the gradients' norm
    at ``max_norm``. ``save_every``: updates from one part on disk to the next. ``held_out``: share of the sequences, the last
    ones, that are not trained on; their loss is looked at before training, every ``look_every`` updates and at the end.
    ``keep``: the last additions, or the best, those with the lowest of these losses (as pruned, if training only harms); the
    published code keeps the best of its looks.

    At ratio 0 nothing is gone, and this is the fine-tuning of a dense model: what recovery has to be compared with.
    """

    name: str
    revision: int
    masks: Annotated[str, "before"]
    sites: Annotated[list[str], "query | key | value | output | gate | up | down"]
    rank: Annotated[int, "x >= 1"]
    alpha: Annotated[float | None, "x > 0"]
    init: Annotated[str, "kaiming | normal"]
    dropout: Annotated[float, "0 <= x < 1"]
    masked: Annotated[str, "through | project"]
    share: Annotated[float, "0 < x <= 1"]
    epochs: Annotated[int, "x >= 0"]
    batch: Annotated[int, "x >= 1"]
    learning_rate: Annotated[float, "x > 0"]
    warmup: Annotated[int, "x >= 0"]
    decay: Annotated[str, "update | epoch"]
    beta1: Annotated[float, "0 <= x < 1"]
    beta2: Annotated[float, "0 <= x < 1"]
    weight_decay: Annotated[float, "x >= 0"]
    clipping: Annotated[str, "none | norm"]
    max_norm: Annotated[float, "x > 0"]
    held_out: Annotated[float, "0 <= x < 1"]
    look_every: Annotated[int, "x >= 1"]
    keep: Annotated[str, "last | best"]
    save_every: Annotated[int, "x >= 1"]

    scope = "model"
    trains = "adapters"  # planning checks the fields above against widths and sequences, see prunelab/config/repair.py
    dtypes = ("float32", "bfloat16")  # of the model; gradients through blocks underflow float16

    def repair(self, whole: Whole, say: Say) -> dict[str, float]:
        """Train and merge; return the updates, the numbers trained, with held-out text the loss on it of what was kept.

        Raises ConfigError for what does not go with the model or the tokens, ModelError where training diverges.
        """
        if whole.decoder.dtype == torch.float16:
            raise ConfigError("model.dtype", "float16", " | ".join(self.dtypes))
        apart = math.ceil(self.held_out * len(whole.tokens))
        tokens, held_out = (
            whole.tokens[: len(whole.tokens) - apart],
            whole.tokens[len(whole.tokens) - apart :],
        )
        if not len(tokens):
            raise ConfigError(
                "reconstruction.held_out", self.held_out, "a share that leaves sequences to train on"
            )
        if self.share < 1:
            tokens = tokens[self._drawn(len(tokens), whole.seed).to(tokens.device)]
        updates = self.epochs * (len(tokens) // min(self.batch, len(tokens)))
        if updates and self.warmup >= updates:
            raise ConfigError(
                "reconstruction.warmup", self.warmup, f"less than {updates}, the number of updates"
            )
        adapters = self.adapters(whole)
        count = sum(one.A.numel() + one.B.numel() for one in adapters)
        if not updates or not adapters:
            return {"updates": 0, "adapters": count}
        run = _Run(self, whole, adapters, tokens, held_out, updates)
        run.train(say)
        kept = run.settle()
        for one in adapters:
            one.merge()
        return {"updates": updates, "adapters": count, **kept}

    def _drawn(self, n: int, seed: int) -> Tensor:
        """Return which of ``n`` sequences are trained on, in their order."""
        count = max(1, math.floor(self.share * n + 1e-9))
        return torch.randperm(n, generator=site_generator(seed, "lora: share", 0))[:count].sort().values

    def adapters(self, whole: Whole) -> list[Adapter]:
        """Return the additions as they begin, in forward order; layers of which nothing is left get none."""
        paths, made = named_paths(whole.decoder.family, self.sites), []
        if not paths:
            allowed = f"maps that family {whole.decoder.family.name!r} has"
            raise ConfigError("reconstruction.sites", list(self.sites), allowed)
        for site in whole.decoder.sites():
            mask = whole.masks[site.name]
            if site.path not in paths or not bool(mask.keep().any()):
                continue
            narrowest = min(site.linear.weight.shape)
            if self.rank > narrowest:
                raise ConfigError(
                    "reconstruction.rank", self.rank, f"at most {narrowest}, the width of {site.name}"
                )
            generator = site_generator(whole.seed, f"lora {site.name}", 1)
            alpha = self.rank if self.alpha is None else self.alpha
            through = self.masked == "through"
            made.append(
                begin_adapter(site, mask, self.rank, alpha, generator, through=through, init=self.init)
            )
        return made


def named_paths(family: Family, roles: list[str]) -> set[str]:
    """Return the paths inside a block of the maps that do what ``roles`` say; of an MLP without a gate, or whose gate lies
    in the same map, the writer is ``up``."""
    known: dict[str, str] = {}
    if family.attention is not None:
        known |= dict(zip(("query", "key", "value", "output"), family.attention, strict=True))
    if family.mlp is not None:
        writers, known["down"] = family.mlp
        known["up"] = writers[-1]
        if len(writers) == 2 or family.halves:
            known["gate"] = writers[0]
    return {known[role] for role in roles if role in known}


def rate(update: int, total: int, warmup: int) -> float:
    """Return the share of the learning rate at update ``update`` (from 0) of ``total``: up, then down, both linearly."""
    if update < warmup:
        return update / warmup
    return (total - update) / max(1, total - warmup)


@dataclass(eq=False)
class _Run:
    """Training under way. ``best``: the lowest held-out loss, after how many updates, and the factors of then."""

    spec: LoRA
    whole: Whole
    adapters: list[Adapter]
    tokens: Tensor
    held_out: Tensor
    updates: int
    best: tuple[float, int] = (math.inf, 0)
    held: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spec = self.spec
        self.parameters = {
            f"{one.site.name}.{part}": getattr(one, part) for one in self.adapters for part in "AB"
        }
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=spec.learning_rate, betas=(spec.beta1, spec.beta2), eps=_EPS,
            weight_decay=spec.weight_decay, fused=True,
        )  # fmt: skip
        self.first = min(one.site.block for one in self.adapters)
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)

    def train(self, say: Say) -> None:
        """Make the updates that an earlier attempt has not made."""
        spec, whole = self.spec, self.whole
        self._resume()
        if not whole.done:
            self._look(0)
        batch = min(spec.batch, len(self.tokens))
        per_epoch = len(self.tokens) // batch
        order = torch.arange(0)
        for update in range(whole.done, self.updates):
            epoch, place = divmod(update, per_epoch)
            if place == 0 or update == whole.done:
                generator = site_generator(whole.seed, "lora: order of an epoch", epoch)
                order = torch.randperm(len(self.tokens), generator=generator)
            loss, lr = self._update(update, order[place * batch : (place + 1) * batch])
            done = update + 1
            whole.log({"event": "train", "step": done, "loss": loss, "learning_rate": lr})
            say({"event": "progress", "phase": "updates", "done": done, "total": self.updates})
            if done % spec.look_every == 0 or done == self.updates:
                self._look(done)
            if done % spec.save_every == 0 and done < self.updates:
                whole.save(done, self._part())

    def _update(self, update: int, rows: Tensor) -> tuple[float, float]:
        """Make one update on the sequences ``rows``; return the batch's mean loss and the learning rate."""
        spec, whole = self.spec, self.whole
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        for gradient in gradients:
            gradient.zero_()
        total = torch.zeros(1, dtype=torch.float64, device=whole.decoder.device)
        for part in in_parts(rows[whole.group.share(len(rows))], whole.batch_size):
            with adapted(self.adapters, self.tokens.shape[1], self._drop(update, part)):
                total += backward(whole.decoder, self.tokens[part], 1 / len(rows), self.first).sum()
        whole.group.sum([*gradients, total])
        loss = float(total) / len(rows)
        if not math.isfinite(loss):
            hint = "Lower reconstruction.learning_rate, or use model.dtype=float32."
            raise ModelError(
                f"reconstruction={spec.name} diverged at update {update + 1} (loss {loss}). {hint}"
            )
        clip(list(self.parameters.values()), spec, update)
        at = update
        if spec.decay == "epoch" and update >= spec.warmup:
            at = max(spec.warmup, update - update % (self.updates // spec.epochs))
        lr = spec.learning_rate * rate(at, self.updates, spec.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        with torch.enable_grad():
            self.optimiser.step()
        return loss, lr

    def _drop(self, update: int, sequences: Tensor) -> Callable[[str, Tensor], Tensor] | None:
        """Return what takes inputs away from the additions in a forward of ``sequences``, the same ones in a second."""
        share, seed = self.spec.dropout, self.whole.seed
        if not share:
            return None
        numbers = sequences.tolist()
        generator = torch.Generator(self.whole.decoder.device)

        def drop(name: str, x: Tensor) -> Tensor:
            kept = torch.empty(x.shape, device=x.device)
            for number, place in zip(numbers, kept, strict=True):
                digest = hashlib.sha256(f"{seed}/{name}/{update}/{number}".encode()).digest()
                place.bernoulli_(
                    1 - share, generator=generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
                )
            return x * (kept / (1 - share)).to(torch.promote_types(x.dtype, torch.float32))

        return drop

    def _look(self, done: int) -> None:
        """Measure the held-out loss after ``done`` updates, if there is such text, and keep the best factors."""
        whole, best = self.whole, self.spec.keep == "best"
        if not len(self.held_out):
            return
        with adapted(self.adapters, self.tokens.shape[1]):
            loss = mean_loss(whole.decoder, self.held_out, whole.batch_size, whole.group)
        whole.log({"event": "held_out", "step": done, "loss": loss})
        if not best or loss < self.best[0]:
            self.best = loss, done
            if best:
                self.held = {name: value.detach().clone() for name, value in self.parameters.items()}

    @torch.no_grad()
    def settle(self) -> dict[str, float]:
        """Put the factors in place that shall be kept; return what is known of them."""
        for name, value in self.held.items():
            self.parameters[name].copy_(value)
        loss, update = self.best
        return {"lm_loss_held_out": loss, "kept_update": update} if len(self.held_out) else {}

    def _part(self) -> Mapping[str, Tensor]:
        """Return all that later updates depend on: factors, moments, and the best so far."""
        found: dict[str, Tensor] = {}
        for name, value in self.parameters.items():
            state: Mapping[str, Any] = self.optimiser.state[value]
            found |= {
                name: value.detach(),
                f"{name}.mean": state["exp_avg"],
                f"{name}.square": state["exp_avg_sq"],
            }
        found |= {f"best/{name}": value for name, value in self.held.items()}
        return found | {"best": torch.tensor(self.best, dtype=torch.float64)}

    @torch.no_grad()
    def _resume(self) -> None:
        """Go on from what an earlier attempt saved."""
        start = self.whole.start
        if start is None:
            return
        for name, value in self.parameters.items():
            value.copy_(start.parameter(name))
            self.optimiser.state[value] = {
                "step": torch.tensor(float(self.whole.done), device=value.device),
                "exp_avg": start.parameter(f"{name}.mean").to(value.device),
                "exp_avg_sq": start.parameter(f"{name}.square").to(value.device),
            }
            if f"best/{name}" in start.parameter_names:
                self.held[name] = start.parameter(f"best/{name}").to(value.device)
        loss, done = start.parameter("best").tolist()
        self.best = loss, int(done)
