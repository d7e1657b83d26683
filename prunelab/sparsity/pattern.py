"""Which single weights may be removed together: any of them, or all but n of every m consecutive inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunelab.errors import ConfigError

Within = Literal["row", "matrix"]


@dataclass(frozen=True)
class Pattern:
    """A pattern of single weights. Make one with :func:`build_pattern`, which checks it.

    ``n``, ``m``: **keep** n of every m consecutive inputs of a row; both None for unstructured. ``within``:
    scores compete inside a ``row``, inside the whole ``matrix``, or as the method's paper does it (None).
    """

    kind: Literal["unstructured", "n:m"]
    n: int | None
    m: int | None
    within: Within | None

    @property
    def ratio(self) -> float | None:
        """The removed fraction that the pattern fixes, 1 - n/m; None where it is free."""
        return None if self.n is None or self.m is None else 1 - self.n / self.m


@dataclass(frozen=True)
class Budget:
    """What one layer may lose: a removed fraction ``ratio``, or the n of every m inputs that it keeps."""

    ratio: float
    n: int | None
    m: int | None


def build_pattern(
    kind: str, *, n: int | None = None, m: int | None = None, within: str | None = None
) -> Pattern:
    """Return the checked pattern. ``kind``: ``unstructured``, ``n:m`` with n and m given, or e.g. ``2:4``.

    Raises ConfigError for an unknown kind, for n or m where they have no meaning, unless 1 <= n < m.
    """
    first, colon, second = kind.partition(":")
    if colon and first.isdigit() and second.isdigit():
        kind, n, m = "n:m", int(first), int(second)
    if within not in (None, "row", "matrix"):
        raise ConfigError("sparsity.within", within, "row | matrix | null (as the method's paper does it)")
    if kind == "unstructured":
        if n is not None or m is not None:
            raise ConfigError("sparsity.n, sparsity.m", (n, m), "null for pattern=unstructured")
        return Pattern("unstructured", None, None, within)
    if kind != "n:m":
        raise ConfigError("sparsity.pattern", kind, "unstructured | n:m (with sparsity.n and sparsity.m)")
    if n is None or m is None or not 1 <= n < m:
        raise ConfigError("sparsity.n, sparsity.m", (n, m), "1 <= n < m: n of every m inputs are kept")
    if within == "matrix":
        raise ConfigError("sparsity.within", within, "null for pattern=n:m, where groups of m compete")
    return Pattern("n:m", n, m, None)


def check_shape(pattern: Pattern, name: str, columns: int) -> None:
    """Raise ConfigError unless a layer called ``name`` with ``columns`` inputs can have the pattern."""
    if pattern.m is not None and columns % pattern.m:
        raise ConfigError(
            "sparsity.m",
            pattern.m,
            "a divisor of every layer's number of inputs",
            f"{name} has {columns} inputs. Use sparsity=unstructured or another m.",
        )
