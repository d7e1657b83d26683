"""The width of the kernels, one for all neurons of a layer. arXiv:2406.00030 has a rule of its own, which is not public.

Widths are in the unit of the samples (standard deviations where columns are standardised). Rules:

- ``silverman``: ``gamma n^(-1/(4 + d))`` times the deviation; gamma 1.06, d channels per variable, 1 for a neuron;
- ``median``: the median distance of two samples of a variable, over sqrt(2);
- ``contrast``, a reconstruction of "a width is good if it separates full dependence from none": over a grid, the
  largest ``J = mean_k [I(k, k) - weight I(k, shuffled k)]``. Both terms tend to log2 n for a narrow kernel and to 0 for
  a wide one; weight 1 picks a narrow kernel with a high floor, 3 one near Silverman's;
- ``alignment``: over the grid, the largest mean alignment ``<K_k, K_Y> / (|K_k| |K_Y|)`` with the kernel of the layer's
  output vectors, which stand for labels (after the information-plane work the estimator comes from);
- a number: itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.errors import ConfigError, nearest
from prunelab.information.renyi import Renyi

RULES = ("silverman", "median", "contrast", "alignment")
GRID = tuple(torch.logspace(-1.30103, 0.30103, 13, dtype=torch.float64).tolist())  # 0.05 to 2
GAMMA = 1.06
SHUFFLES = 4  # per neuron, for the second term of the contrast


@dataclass(frozen=True)
class Width:
    """The chosen ``sigma``, by which ``rule``; of a rule with a grid each width's ``objective``, as (sigma, J)."""

    sigma: float
    rule: str
    objective: tuple[tuple[float, float], ...] = ()


def choose_width(
    rule: str | float,
    Z: Tensor,
    alpha: float,
    generator: torch.Generator,
    *,
    outputs: Tensor | None = None,
    n_neurons: int = 64,
    null_weight: float = 3.0,
) -> Width:
    """Return the width for samples ``Z``, (n, m) or (n, m, d), of live neurons, centred, by ``rule``: a name or a
    number > 0.

    ``alpha``: the order of the entropy in ``contrast``. ``n_neurons`` random columns stand for the layer. ``outputs``
    (n, R): the layer's output vectors, for ``alignment``. Raises ConfigError for another rule, or ``alignment``
    without outputs.
    """
    if not isinstance(rule, str):
        if not rule > 0:
            raise ConfigError("method.bandwidth", rule, f"a number > 0, or one of {', '.join(RULES)}")
        return Width(float(rule), "number")
    if rule not in RULES:
        raise ConfigError(
            "method.bandwidth", rule, f"a number > 0, or one of {', '.join(RULES)}", nearest(rule, RULES)
        )
    some = torch.randperm(Z.shape[1], generator=generator)[:n_neurons].to(Z.device)
    columns = (Z[:, :, None] if Z.ndim == 2 else Z)[:, some].double()
    if rule == "silverman":
        d = columns.shape[2]
        return Width(GAMMA * float(_spread(columns)) / d**0.5 * len(Z) ** (-1 / (4 + d)), rule)
    if rule == "median":
        return Width(float(_median_distance(columns)) / 2**0.5, rule)
    if rule == "contrast":
        orders = torch.rand(SHUFFLES, *columns.shape[:2], generator=generator).argsort(1).to(Z.device)
        objective = [_contrast(s, columns, orders, alpha, null_weight) for s in _grid(columns)]
    else:
        if outputs is None:
            raise ConfigError(
                "method.bandwidth",
                rule,
                "a rule that looks at the neurons only, where a layer's outputs are not known",
            )
        target = _vector_kernel(outputs.double())
        objective = [_alignment(s, columns, target) for s in _grid(columns)]
    best = max(range(len(GRID)), key=lambda index: objective[index])
    return Width(_grid(columns)[best], rule, tuple(zip(_grid(columns), objective, strict=True)))


def _spread(columns: Tensor) -> Tensor:
    """Return the root mean square length of centred samples (n, m, d): the deviation where d is 1."""
    return columns.square().sum(-1).mean().sqrt()


def _grid(columns: Tensor) -> list[float]:
    spread = float(_spread(columns))
    return [spread * factor for factor in GRID]


def _median_distance(columns: Tensor) -> Tensor:
    first, second = torch.triu_indices(len(columns), len(columns), 1)
    return torch.linalg.vector_norm(columns[first] - columns[second], dim=-1).median()


def _contrast(sigma: float, columns: Tensor, orders: Tensor, alpha: float, weight: float) -> float:
    """J of one width; ``orders`` (draws, n, m) shuffle every variable by itself."""
    m = columns.shape[1]
    every = torch.arange(m, device=columns.device)
    estimator = Renyi(sigma, alpha)
    entropy = estimator.entropies(columns)
    own = estimator.information(columns, torch.stack([every, every], 1), entropy)
    null = torch.zeros_like(own)
    for order in orders:
        both = torch.cat([columns, columns.gather(0, order[:, :, None].expand_as(columns))], 1)
        pairs = torch.stack([every, every + m], 1)
        null += estimator.information(both, pairs, torch.cat([entropy, entropy])) / len(orders)
    return float((own - weight * null).mean())


def _vector_kernel(Y: Tensor) -> Tensor:
    """Return the Gaussian kernel (n, n) of vectors (n, d), each entry standardised, of width median distance/sqrt(2)."""
    deviation = Y.std(0, correction=0)
    Y = (Y - Y.mean(0)) / torch.where(deviation > 0, deviation, 1.0)
    square = torch.cdist(Y, Y, compute_mode="donot_use_mm_for_euclid_dist").square()
    first, second = torch.triu_indices(len(Y), len(Y), 1)
    width = square[first, second].sqrt().median()
    return torch.exp(-square / torch.where(width > 0, width, 1.0).square())


def _alignment(sigma: float, columns: Tensor, target: Tensor) -> float:
    rows = columns.transpose(0, 1)
    kernels = torch.exp(
        torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square() / (-2 * sigma**2)
    )
    product = (kernels * target).sum((1, 2))
    return float((product / torch.linalg.matrix_norm(kernels) / torch.linalg.matrix_norm(target)).mean())
