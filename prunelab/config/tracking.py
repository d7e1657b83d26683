"""What W&B takes as names, checked before anything starts: it refuses a run at its beginning, when a study is under way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prunelab.errors import ConfigError

TAG, NAME = 64, 128  # characters
_PROJECT = r"/\#?%:"  # what a project's name must not hold
_TAGGED = ("method", "model", "calibration")  # their names are tags of every trial


def tracking_errors(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Yield every name in a trial's config that W&B would refuse; none where the trial is not tracked."""
    tracking = config.get("tracking")
    if not isinstance(tracking, Mapping) or tracking.get("name") != "wandb":
        return
    tags = tracking.get("tags")
    names = [(f"{group}.name", (config.get(group) or {}).get("name")) for group in _TAGGED]
    for key, tag in [
        *(("tracking.tags", tag) for tag in (tags if isinstance(tags, list | tuple) else ())),
        *names,
    ]:
        if tag is not None and not 1 <= len(str(tag)) <= TAG:
            yield ConfigError(
                key, tag, f"1 to {TAG} characters, as a tag of W&B", "Shorten it, or set tracking=none."
            )
    project = tracking.get("project")
    if isinstance(project, str) and (len(project) > NAME or set(project) & set(_PROJECT)):
        hint = (
            "The team before the / goes into tracking.entity." if "/" in project else "Choose another name."
        )
        yield ConfigError(
            "tracking.project", project, f"at most {NAME} characters, none of {' '.join(_PROJECT)}", hint
        )
    for key, name in (("tracking.entity", tracking.get("entity")), ("study", config.get("study"))):
        if isinstance(name, str) and len(name) > NAME:
            yield ConfigError(
                key, name, f"at most {NAME} characters, as W&B takes", "Shorten it, or set tracking=none."
            )
