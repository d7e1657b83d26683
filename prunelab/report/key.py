"""How variants look: one look each, or, where repairs are compared, one channel for each thing that varies.

Colour says the repair: a ramp from dark to light, since repairs have an order; ink for none. The marker says the mask, fill and
dashes what a repair fits to. Where only one repair occurs, masks take the colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.lines import Line2D

from prunelab.report.collect import Study
from prunelab.report.derive import chosen, distinct
from prunelab.report.figure import COLOURS, DASHES, GREY, INK, MARKERS, Group, looks, short
from prunelab.report.label import NO_REPAIR

SAME_TEXT = "the mask's tokens"
FILLS: tuple[Mapping[str, Any], ...] = (
    {"fillstyle": "full"},
    {"fillstyle": "full", "markerfacecolor": "white"},
    {"fillstyle": "left", "markerfacecoloralt": "white"},
    {"fillstyle": "bottom", "markerfacecoloralt": "white"},
)
Look = dict[str, Any]


@dataclass(frozen=True)
class Factors:
    """The values of three things that vary, in order: ``repairs``, ``masks``, and ``others`` (named by
    ``title``). Of each, one may be alone.
    """

    repairs: tuple[str, ...]
    masks: tuple[str, ...]
    others: tuple[str, ...]
    title: str = "fitted to"

    def look(self, repair: str, mask: str, other: str) -> Look:
        """Colour, marker, fill and dashes of one combination."""
        at = (self.repairs.index(repair), self.masks.index(mask), self.others.index(other))
        colour = self._colour(*at)
        marker = at[1] if len(self.masks) > 1 else at[0] if len(self.repairs) > 1 else at[2]
        dash, fill = DASHES[at[2] % len(DASHES)], FILLS[at[2] % len(FILLS)]
        return {"color": colour, "marker": MARKERS[marker % len(MARKERS)], "linestyle": dash, **fill}

    @property
    def groups(self) -> list[Group]:
        """The legend: what varies, a line each."""
        bars = [
            Line2D([], [], color=self._colour(i, 0, 0), linewidth=5, label=short(name, 42))
            for i, name in enumerate(self.repairs)
        ]
        one, only = len(self.repairs) == 1, len(self.masks) == 1
        masks = [self._handle(name, name, self.others[0], coloured=one) for name in self.masks]
        others = [self._handle(name, self.masks[0], name, coloured=one and only) for name in self.others]
        found = [("repair", bars), ("mask", masks), (self.title, others)]
        return [(title, handles) for title, handles in found if len(handles) > 1]

    def _colour(self, repair: int, mask: int, other: int) -> str | tuple[float, ...]:
        if len(self.repairs) > 1:
            fitted = [name for name in self.repairs if name != NO_REPAIR]
            if self.repairs[repair] == NO_REPAIR:
                return INK
            ramp = colormaps["viridis"](np.linspace(0.08, 0.88, len(fitted)))
            return tuple(ramp[fitted.index(self.repairs[repair])])
        return COLOURS[(mask if len(self.masks) > 1 else other) % len(COLOURS)]

    def _handle(self, name: str, mask: str, other: str, *, coloured: bool) -> Line2D:
        look = self.look(self.repairs[0], mask, other)
        if not coloured:  # the colour speaks of something else
            look["color"] = GREY
        return Line2D([], [], label=short(name or SAME_TEXT, 42), **look)


@dataclass(frozen=True, eq=False)
class Key:
    """``looks`` of each variant; ``groups`` of the legend; ``factors``: None where each variant has its own."""

    looks: Mapping[str, Look]
    groups: Sequence[Group]
    factors: Factors | None


def key_of(study: Study) -> Key:
    """Channels where repairs or what they fit to vary, else a look for each variant."""
    rows = study.frame.assign(mask=chosen(study.frame)).drop_duplicates("variant")
    repairs, masks, data = (distinct(rows[name]) for name in ("repair", "mask", "data"))
    if len(repairs) == 1 and len(data) == 1:
        own = {name: looks(index) for index, name in enumerate(study.variants)}
        return Key(own, [("", [Line2D([], [], label=short(n), **look) for n, look in own.items()])], None)
    factors = Factors(repairs, masks, data)
    own = {
        row["variant"]: factors.look(row["repair"], row["mask"], row["data"])
        for row in rows.to_dict("records")
    }
    return Key(own, factors.groups, factors)


def tracks(study: Study, key: Key) -> list[tuple[list[str], Look]]:
    """Variants that differ in the repair alone, from the bare mask on in the order of the study, and the look
    of the line that joins them; none where repairs are not compared.
    """
    if key.factors is None or len(key.factors.repairs) == 1:
        return []
    rows = study.frame.assign(mask=chosen(study.frame)).drop_duplicates("variant")
    order = {name: place for place, name in enumerate(key.factors.repairs)}
    rows = rows.sort_values("repair", key=lambda names: names.map(order), kind="stable")
    found = []
    for (_, data), own in rows.groupby(["mask", "data"], sort=False):
        bare = rows[(rows["mask"] == own["mask"].iloc[0]) & (rows["repair"] == NO_REPAIR)]
        names = list(dict.fromkeys([*bare["variant"], *own["variant"]]))
        dash = DASHES[key.factors.others.index(data) % len(DASHES)]
        found.append((names, {"color": "#aab4be", "linewidth": 1.0, "linestyle": dash}))
    return found
