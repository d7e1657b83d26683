"""The Surgeon's update of single weights: half of a layer's gone, by conjugate gradients and in the published groups.

    python experiments/benchmarks/surgeon_update.py [ROWS] [COLUMNS] [ITERATIONS]    # 1024 4096 60

Random factors with spectra that fall as 1/i, damped as the paper does single weights. The published scheme multiplies whole
matrices for every group of at most 2000 weights, or a row with more: as many groups as fit into a minute are timed and the
rest is counted. Its result, for the quadratic loss, comes from the same scheme with the products cut to the group's rows.
"""

from __future__ import annotations

import sys
import time

import torch
from torch import Tensor

from prunelab.linalg import obs
from prunelab.linalg.factor import cholesky, damped

LIMIT = 2000  # removed weights of a group


def factor(n: int, damping: float, seed: int) -> Tensor:
    """A covariance (n, n) with eigenvalues that fall as 1/i, in a random basis."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(2 * n, n, generator=generator) * torch.arange(1, n + 1) ** -0.5
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator))[0]
    X = X @ basis
    return damped((X.T @ X / n).double(), damping)


def published_seconds(W: Tensor, G: Tensor, A: Tensor, keep: Tensor) -> tuple[float, int, int]:
    """Seconds that the published scheme takes, from those of its first groups; how many were run, and of how many."""
    started = time.perf_counter()
    Gi, Ai = (torch.cholesky_inverse(cholesky(one, "factor")) for one in (G, A))
    inverses = time.perf_counter() - started
    groups = list(obs._row_groups((~keep).sum(1).tolist(), LIMIT))
    update, spent, done = torch.zeros_like(W), 0.0, 0
    for first, last in groups:
        started = time.perf_counter()
        rows, columns = (~keep[first:last]).nonzero(as_tuple=True)
        rows = rows + first
        S = Gi[rows[:, None], rows] * Ai[columns[:, None], columns]
        Z = torch.zeros_like(W)
        Z[rows, columns] = torch.linalg.solve(S, (W + update)[rows, columns])
        update -= Gi @ Z @ Ai
        spent, done = spent + time.perf_counter() - started, done + 1
        if spent > 60:
            break
    return inverses + spent / done * len(groups), done, len(groups)


def main() -> None:
    """Print one table."""
    given = [int(word) for word in sys.argv[1:]]
    R, C, iterations = (*given, *(1024, 4096, 60)[len(given) :])
    G, A = factor(R, 0.1, 0), factor(C, 0.01, 1)
    W = torch.randn(R, C, generator=torch.Generator().manual_seed(2)).double()
    diagonals = [torch.cholesky_inverse(cholesky(one, "factor")).diagonal() for one in (G, A)]
    cost = W.square() / diagonals[0][:, None] / diagonals[1]
    keep = torch.ones(R * C, dtype=torch.bool)
    keep[cost.flatten().argsort()[: R * C // 2]] = False
    keep = keep.view(R, C)

    def loss(X: Tensor) -> float:
        D = X - W
        return float(((G @ D @ A) * D).sum() / 2)

    print(f"{R} x {C}, half removed, {torch.get_num_threads()} threads")
    print(f"no update                      loss {loss(W * keep):.4f}")
    started = time.perf_counter()
    found = obs.remove_elements(W, G, A, keep, tolerance=0.1, iterations=iterations)
    ours = time.perf_counter() - started
    print(
        f"conjugate gradients  {ours:8.1f} s  loss {loss(found.X):.4f}  {found.iterations} iterations, gap {found.gap:.2g}"
    )
    started = time.perf_counter()
    grouped = obs.remove_elements_in_groups(W, G, A, keep, LIMIT)
    cut = time.perf_counter() - started
    print(f"groups, rows alone   {cut:8.1f} s  loss {loss(grouped):.4f}")
    theirs, done, n = published_seconds(W, G, A, keep)
    print(f"groups as published  {theirs:8.1f} s  the same; {done} of {n} groups timed")
    print(f"published / conjugate gradients: {theirs / ours:.1f}")


if __name__ == "__main__":
    main()
