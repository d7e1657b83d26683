"""The fixed parts of a trial's config: what each key is and what it may be.

These classes are read by :mod:`prunelab.config.field`, like those of the methods; they are the one
place that says which keys a group has. From the check on a trial is made of them (:mod:`prunelab.config.trial`);
plain data are what Hydra composes, and what is written to files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any


class Group:
    """What is a mapping in YAML and in files. Made by :mod:`prunelab.config.trial`, which knows the keys as written."""


@dataclass(frozen=True)
class Option(Group):
    """An option that may bring a class, which says what its fields are; ``target`` is None where it brings none.

    ``fields``: its keys as written, ``_target_`` among them. One that is called by its key has no ``name`` there.
    """

    name: str
    target: str | None
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Trial(Group):
    """Top level: names, seed, and the groups."""

    study: str
    seed: Annotated[int, "0 <= x < 4294967296"]
    model: Model
    calibration: Calibration
    sparsity: Sparsity
    allocation: Option  # what it is without a class: Allocation
    method: Option
    reconstruction: Option  # what it is without a class: Reconstruction
    reconstruction_data: ReconstructionData
    evaluation: Evaluation
    tracking: Tracking
    runtime: Runtime
    paths: Paths
    domains: list[str]  # names of calibration options; see prunelab/config/domain.py
    stages: dict[str, Option]  # name -> class and fields; see prunelab/stages/outside.py
    between_shots: Option | None = None  # what it is without a class: BetweenShots


@dataclass(frozen=True)
class Model(Group):
    """Which weights. ``digest`` is the sha256 that the file must have; ``revision`` a hub commit.

    ``name``: null takes the folder's or the repository's.
    """

    name: str | None
    source: Annotated[str, "embedded | wheel | hub | local | random"]
    id: str
    revision: str | None
    digest: str | None
    dtype: Annotated[str, "float32 | bfloat16 | float16"]
    max_len: Annotated[int | None, "x >= 2"]
    trust_remote_code: bool
    family: str | None = None  # YAML file of an architecture that prunelab/families.yaml lacks


@dataclass(frozen=True)
class Calibration(Group):
    """Which text or tokens, and how samples are drawn from it."""

    name: str
    source: Annotated[str, "embedded | hub | text | tokens"]
    revision: str | None
    split: str | dict[str, Any] | None
    sampler: Annotated[str, "random_windows | sequential | documents | rows"]
    n_samples: Annotated[int, "x >= 1"]
    seq_len: Annotated[int, "x >= 2"]
    joiner: str | dict[str, Any] | None
    digest: str | dict[str, Any] | None
    id: str | None = None
    path: str | None = None
    files: dict[str, Any] | None = None  # split -> file of a hub repository
    column: str = "text"
    max_documents: int | dict[str, Any] | None = None


@dataclass(frozen=True)
class Sparsity(Group):
    """What is removed together, and which fraction of the prunable weights goes."""

    pattern: Annotated[str, "rows_columns | unstructured | n:m | units"]
    ratio: Annotated[float | None, "0 <= x < 1"]  # null: what n:m removes
    n: Annotated[int | None, "x >= 1"] = None  # kept of every m consecutive inputs
    m: Annotated[int | None, "x >= 2"] = None
    within: Annotated[str | None, "row | matrix"] = None  # where scores compete; null: as the method's paper
    rounding: Annotated[str | None, "exact | published"] = None  # of counts; null: exact
    # which stream gives a block its statistics; by_method: units only
    propagation: Annotated[str, "pruned | dense | by_method"] = "pruned"
    # of units, see prunelab.pattern.units.Units
    kinds: list[str] | None = None
    counts: Annotated[str | None, "units | decoder | model"] = None
    head_ratio: Annotated[float | None, "0 <= x < 1"] = None
    protect_first: Annotated[int | None, "x >= 0"] = None
    protect_last: Annotated[int | None, "x >= 0"] = None
    min_units: Annotated[int | None, "x >= 1"] = None
    compensation: Annotated[str | None, "none | bias | least_squares | merge | by_method"] = None
    round_to: Annotated[int | None, "x >= 2"] = None


@dataclass(frozen=True)
class Allocation:
    """How the ratio is spread over the layers."""

    name: Annotated[str, "by_pattern | global | by_kind | uniform"]


@dataclass(frozen=True)
class BetweenShots:
    """What corrects the model between the shots of a pruning: a repair of the whole model."""

    name: Annotated[str, "none"]


@dataclass(frozen=True)
class Reconstruction:
    """What is repaired after pruning."""

    name: Annotated[str, "none"]


@dataclass(frozen=True)
class ReconstructionData(Group):
    """Which tokens a repair fits to. ``parts``: windows of each source; null: the mask's own tokens.

    A part is ``same`` (the mask's tokens, null: all of them), ``self_generated``, or a calibration option; with 0
    windows it is left out. The
    other fields say how the dense model writes: see :mod:`prunelab.calibration.generated`.
    """

    name: str
    parts: dict[str, Any] | None = None
    revision: Annotated[int | None, "x >= 1"] = None
    random_tokens: Annotated[int | None, "x >= 1"] = None
    greedy_tokens: Annotated[int | None, "x >= 0"] = None
    temperature: Annotated[float | None, "x > 0"] = None
    top_k: Annotated[int | None, "x >= 1"] = None
    top_p: Annotated[float | None, "0 < x <= 1"] = None
    language: Annotated[str | None, "english | any"] = None
    min_distinct: Annotated[float | None, "0 <= x <= 1"] = None
    text_len: Annotated[int | None, "x >= 2"] = None
    batch: Annotated[int | None, "x >= 1"] = None


@dataclass(frozen=True)
class Evaluation(Group):
    """Corpora for perplexity (test split) and for reconstruction error on text held out (validation split); tasks.

    ``tasks``: zero-shot tasks of lm-evaluation-harness by name, or ``continuation_<embedded corpus>``;
    ``task_limit``: documents of each, null = all. ``metrics``: more to measure on the test corpora, by classes of one's
    own, name -> class and fields; see prunelab/stages/measured.py. ``speed``: whether the compacted model is timed beside
    the dense one, null = where whole units go; ``speed_batch`` sequences at once, of ``speed_prompt`` tokens that are
    read and ``speed_tokens`` that are written, in ``speed_rounds`` rounds.
    """

    name: str
    corpora: list[str]
    held_out: list[str]
    seq_len: Annotated[int, "x >= 2"]
    max_samples: Annotated[int | None, "x >= 1"]
    error_samples: Annotated[int, "x >= 1"]
    tasks: list[str]
    task_limit: Annotated[int | None, "x >= 1"]
    metrics: dict[str, Option]
    speed: bool | None = None
    speed_batch: Annotated[int, "x >= 1"] = 1
    speed_prompt: Annotated[int, "x >= 1"] = 128
    speed_tokens: Annotated[int, "x >= 1"] = 32
    speed_rounds: Annotated[int, "x >= 1"] = 11


@dataclass(frozen=True)
class Tracking(Group):
    """Where metrics are mirrored."""

    name: Annotated[str, "none | wandb"]
    project: str | None
    entity: str | None
    mode: Annotated[str | None, "online | offline"]
    base_url: str | None
    tags: list[str]
    finish_timeout: Annotated[int, "x >= 1"]


@dataclass(frozen=True)
class Runtime(Group):
    """Placement and batching: may change the clock, never the key, but for ``activation_dtype``, which moves numbers."""

    device: str
    workers: Annotated[int | None, "x >= 1"]
    threads: Annotated[int | None, "x >= 1"]
    batch_tokens: Annotated[int, "x >= 1"]
    activation_place: Annotated[str, "auto | device | ram | disk"]
    activation_gib: Annotated[float | None, "x > 0"]
    activation_dtype: Annotated[str | None, "float32 | bfloat16 | float16"]


@dataclass(frozen=True)
class Paths(Group):
    """Where results go."""

    root: str
    store: str
    study: str
