"""Names that W&B would refuse are told with their key, before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from prunelab.config.tracking import tracking_errors

WANDB = {"name": "wandb", "project": "prunelab", "entity": None, "tags": ["a", "b" * 64]}


def keys(tracking: dict[str, Any], **config: Any) -> list[str]:
    return [error.key for error in tracking_errors({"tracking": WANDB | tracking, "study": "lab", **config})]


def test_what_it_takes() -> None:
    assert keys({}) == []
    assert keys({"name": "none", "project": "team/name", "tags": ["x" * 65]}) == []


@pytest.mark.parametrize(
    ("tracking", "key"),
    [({"tags": ["x" * 65]}, "tracking.tags"), ({"tags": [""]}, "tracking.tags"), ({"project": "team/name"}, "tracking.project"),
     ({"project": "a" * 129}, "tracking.project"), ({"project": "50%"}, "tracking.project"),
     ({"entity": "e" * 129}, "tracking.entity")],
)  # fmt: skip
def test_what_it_refuses(tracking: dict[str, Any], key: str) -> None:
    assert keys(tracking) == [key]


def test_names_that_become_tags_and_the_group() -> None:
    assert keys({}, method={"name": "m" * 65}) == ["method.name"]
    assert keys({}, study="s" * 129) == ["study"]


def test_a_team_in_the_project_is_told_where_it_goes() -> None:
    (error,) = tracking_errors({"tracking": WANDB | {"project": "team/name"}})
    assert "tracking.entity" in str(error)
