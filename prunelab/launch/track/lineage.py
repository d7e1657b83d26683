"""A trial's inputs and products as artefacts, from the plan and the store's records alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prunelab.files import sha256
from prunelab.plan.kind import kind_of
from prunelab.plan.stage import Stage
from prunelab.plan.study import Plan, Trial
from prunelab.store.layout import OUTPUTS, RECORD, is_done, locate
from prunelab.store.record import read_record
from prunelab.tracking.base import Artefact


def lineage(plan: Plan, trial: Trial) -> Iterator[tuple[Artefact, bool]]:
    """Yield (artefact, whether the trial's run uses it): its checkpoint is made, all else it builds on is used.

    The checkpoint is the last stage that leaves weights; the pruned state of a repaired one is an input of it.
    """
    made = [key for key in trial.stages.values() if kind_of(plan.stages[key].kind).weights][-1]
    for key in dict.fromkeys(trial.stages.values()):
        stage = plan.stages[key]
        folder = locate(plan.store, stage.kind, key, stage.folder)
        artifact = kind_of(stage.kind).artifact
        if artifact and is_done(folder):
            yield _artefact(stage, folder, artifact), key != made


def artefact_name(stage: Stage) -> str:
    """Return the name of a stage's artefact: its kind and the first digits of its key."""
    return f"{stage.kind}-{stage.key[:16]}"


def _artefact(stage: Stage, folder: Path, artifact: str) -> Artefact:
    outputs = read_record(folder, stage.key).outputs
    files = {name: folder / OUTPUTS / name for name in outputs}
    digests = {name: str(output["sha256"]) for name, output in outputs.items()}
    sizes = {name: int(output["bytes"]) for name, output in outputs.items()}
    if not files:  # the dense model leaves numbers only
        files, digests = {RECORD: folder / RECORD}, {RECORD: sha256(folder / RECORD)}
        sizes = {RECORD: (folder / RECORD).stat().st_size}
    metadata = {"key": stage.key, "kind": stage.kind, "label": stage.label, "sha256": digests, "bytes": sizes}
    return Artefact(artefact_name(stage), artifact, files, metadata)
