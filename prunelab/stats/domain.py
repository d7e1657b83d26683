"""What a method that compares kinds of text sees of one: a layer's statistics on both halves of its token set.

Halves tell what differs from text to text from what differs between two draws of one text.
"""

from __future__ import annotations

from dataclasses import dataclass

from prunelab.stats.base import Values

DOMAINS = "domains"  # the name under which a view has a tuple of Domain, the mask's own text first


@dataclass(frozen=True, eq=False)
class Domain:
    """``halves``: the statistics of one layer on the even and on the odd sequences of a token set; ``n_tokens`` of each.

    An average over all tokens is that of the halves, weighted by their tokens.
    """

    halves: tuple[Values, Values]
    n_tokens: tuple[int, int]
