"""One spelling of a number."""

from __future__ import annotations

import pytest

from prunelab.config.compose import Composer
from prunelab.config.fingerprint import canonical
from prunelab.config.number import canonical_numbers


@pytest.mark.parametrize(
    ("value", "one"),
    [(0.1 + 0.2, 0.3), (1 - 0.9, 0.1), (-0.0, 0.0), (1e-9 / 3, 3.33333333333e-10), (2.5e300, 2.5e300), (7, 7), (True, True)],
)  # fmt: skip
def test_numbers_that_look_alike_are_one(value: float, one: float) -> None:
    assert repr(canonical_numbers(value)) == repr(one)
    assert canonical(value) == canonical(one)


def test_containers_are_copied() -> None:
    given = {"a": [0.1 + 0.2, {"b": (1 - 0.9,)}], "c": "0.30000000000000004"}
    found = canonical_numbers(given)
    assert found == {"a": [0.3, {"b": [0.1]}], "c": "0.30000000000000004"}
    assert found["a"] is not given["a"]


def test_a_swept_range_has_the_ratios_that_were_meant(composer: Composer) -> None:
    for steps, ratio in ((0.1 + 0.2, 0.3), (0.7 - 0.1, 0.6)):
        config = composer.trial([f"sparsity.ratio={steps!r}", "method.step=null"])
        assert config["sparsity"]["ratio"] == ratio
