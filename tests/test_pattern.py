"""Patterns: how they are built, and every rule of a run, each with its message."""

from __future__ import annotations

from typing import Any

import pytest

from prunelab.errors import ConfigError
from prunelab.pattern.base import MethodFacts, Run
from prunelab.pattern.table import PATTERNS, build_pattern, pattern_of

WANDA = {
    "name": "wanda", "scope": "linear", "supports": ("unstructured", "n:m"), "needs": ("input_norm",), "step": None,
    "functions": frozenset({"score"}), "reads": frozenset({"input"}),
}  # fmt: skip
SPARSEGPT = WANDA | {"name": "sparsegpt", "needs": ("input_gram",), "functions": frozenset({"prune"})}
UPDATES = WANDA | {"functions": frozenset({"score", "update_kept"})}
UNITS = WANDA | {
    "name": "flap", "scope": "unit", "supports": ("units",), "functions": frozenset({"importance"}),
}  # fmt: skip
SURGEON = WANDA | {
    "name": "surgeon", "supports": ("rows_columns",), "needs": ("input_gram", "output_gram"), "step": 0.1,
    "functions": frozenset({"costs", "update"}), "reads": frozenset({"input", "output_gradient"}),
}  # fmt: skip


def mistakes(pattern: str, method: dict[str, Any], **choices: Any) -> list[str]:
    shape = {key: choices.pop(key) for key in ("n", "m", "within") if key in choices}
    built = build_pattern(pattern, **shape)
    ratio = built.fixed_ratio if built.fixed_ratio is not None else 0.5
    whole = {"ratio": ratio, "allocation": built.default_allocation, "propagation": "pruned"} | choices
    return [str(error) for error in built.check(Run(MethodFacts(**method), **whole))]


def test_patterns_are_built_and_checked() -> None:
    assert build_pattern("2:4") == build_pattern("n:m", n=2, m=4)
    assert build_pattern("1:4").fixed_ratio == 0.75
    assert build_pattern("unstructured", within="row").fixed_ratio is None
    for wrong in (
        {"name": "block"},
        {"name": "n:m"},
        {"name": "4:4"},
        {"name": "n:m", "n": 0, "m": 4},
        {"name": "unstructured", "n": 2},
        {"name": "unstructured", "within": "model"},
        {"name": "2:4", "within": "matrix"},
        {"name": "rows_columns", "m": 4},
        {"name": "rows_columns", "within": "row"},
    ):
        with pytest.raises(ConfigError, match="sparsity"):
            build_pattern(**wrong)


def test_an_identity_gives_its_pattern_back() -> None:
    for pattern in (
        build_pattern("2:4"),
        build_pattern("unstructured", within="row"),
        build_pattern("rows_columns"),
    ):
        assert pattern_of(pattern.identity()) == pattern
        assert PATTERNS[pattern.name] is type(pattern)


def test_what_fits_together_has_no_mistakes() -> None:
    assert mistakes("unstructured", WANDA) == []
    assert mistakes("2:4", SPARSEGPT, widths=[("down_proj", 1536)]) == []
    assert mistakes("rows_columns", SURGEON) == []
    assert mistakes("unstructured", WANDA, allocation="global", propagation="dense") == []
    assert mistakes("unstructured", WANDA | {"needs": ()}, allocation="global") == []
    assert mistakes("2:4", UPDATES | {"step": 0.1}, allocation="global", propagation="dense") == []


@pytest.mark.parametrize(
    ("pattern", "method", "choices", "message"),
    [
        ("unstructured", SURGEON, {}, "what method=surgeon can do: rows_columns"),
        ("rows_columns", WANDA, {}, "what method=wanda can do: unstructured, n:m"),
        ("unstructured", WANDA | {"scope": "page"}, {}, "method.scope='page'"),
        ("unstructured", WANDA | {"functions": frozenset()}, {}, "a class with score or prune"),
        ("unstructured", WANDA | {"needs": ("input_nrom",)}, {}, "Did you mean 'input_norm'?"),
        ("unstructured", WANDA | {"step": 0.1}, {}, "dense with method.step"),
        ("unstructured", WANDA | {"step": 0.1}, {"allocation": "owl", "propagation": "dense"}, "uniform | global"),
        ("2:4", SPARSEGPT | {"step": 0.1}, {"propagation": "dense"}, "null without scores to compare"),
        ("unstructured", UPDATES, {}, "dense with method.step"),
        ("unstructured", WANDA, {"ratio": 1.0}, "sparsity.ratio=1.0"),
        ("2:4", WANDA, {"ratio": 0.6}, "0.5, what 2:4 removes"),
        ("2:4", WANDA, {"widths": [("down_proj", 11006)]}, "down_proj has 11006 inputs"),
        ("2:4", WANDA, {"allocation": "owl"}, "n:m fixes every layer's ratio"),
        ("unstructured", WANDA, {"propagation": "both"}, "pruned | dense"),
        ("unstructured", WANDA, {"allocation": "global"}, "dense with allocation=global"),
        ("unstructured", WANDA | {"reads": frozenset({"output_gradient"})}, {}, "dense with method=wanda"),
        ("unstructured", WANDA | {"reads": frozenset({"weight_gradient"})}, {}, "dense with method=wanda"),
        ("unstructured", SPARSEGPT, {"within": "row"}, "sparsegpt chooses in its own way"),
        ("unstructured", SPARSEGPT, {"allocation": "global", "propagation": "dense"}, "without scores to compare"),
        ("rows_columns", SURGEON, {"allocation": "owl"}, "global or uniform"),
        ("rows_columns", SURGEON, {"propagation": "dense"}, "Each shot looks at the model as it is"),
    ],
)  # fmt: skip
def test_every_rule_says_what_is_wrong_once(pattern: str, method: Any, choices: Any, message: str) -> None:
    (said,) = mistakes(pattern, method, **choices)
    assert message in said


def test_protecting_every_block_is_told_where_their_number_is_known() -> None:
    pattern = build_pattern("units", protect_first=3, protect_last=1)
    for blocks, said in ((4, "fewer than the model's 4 blocks together"), (5, ""), (None, "")):
        run = Run(MethodFacts(**UNITS), 0.2, "uniform", "dense", (), blocks)
        assert [str(error).partition("allowed is ")[2] for error in pattern.check(run)] == (
            [f"{said}."] if said else []
        )


def test_multiples_of_neurons_that_no_block_has_are_told_where_the_width_is_known() -> None:
    pattern = build_pattern("units", round_to=64)
    assert pattern_of(pattern.identity()) == pattern
    assert "round_to" not in build_pattern("units").identity()  # keys from before it stay
    for neurons, wrong in (((64,), True), ((65, 640), False), ((48, 640), True), ((), False)):
        run = Run(MethodFacts(**UNITS), 0.2, "uniform", "dense", neurons=neurons)
        said = [str(error) for error in pattern.check(run)]
        assert len(said) == wrong
        assert all("less than the model's" in one for one in said)
    for kinds in (["heads"], ["blocks"]):
        with pytest.raises(ConfigError, match="null without neurons"):
            build_pattern("units", kinds=kinds, round_to=64)
