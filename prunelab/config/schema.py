"""The fixed parts of a trial's config: what each key is and what it may be.

These classes are read by :mod:`prunelab.config.field`, like those of the methods; they are the one
place that says which keys a group has. Values are plain data everywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Trial:
    """Top level: names, seed, and the groups."""

    study: str
    seed: Annotated[int, "0 <= x < 4294967296"]
    model: dict
    calibration: dict
    sparsity: dict
    allocation: dict
    method: dict
    reconstruction: dict
    reconstruction_data: dict
    evaluation: dict
    tracking: dict
    runtime: dict
    paths: dict
    stages: dict  # name -> class and fields; see prunelab/stages/outside.py


@dataclass(frozen=True)
class Model:
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
class Calibration:
    """Which text or tokens, and how samples are drawn from it."""

    name: str
    source: Annotated[str, "embedded | hub | text | tokens"]
    revision: str | None
    split: str | dict | None
    sampler: Annotated[str, "random_windows | sequential | documents | rows"]
    n_samples: Annotated[int, "x >= 1"]
    seq_len: Annotated[int, "x >= 2"]
    joiner: str | dict | None
    digest: str | dict | None
    id: str | None = None
    path: str | None = None
    files: dict | None = None  # split -> file of a hub repository
    column: str = "text"
    max_documents: int | dict | None = None


@dataclass(frozen=True)
class Sparsity:
    """What is removed together, and which fraction of the prunable weights goes."""

    pattern: Annotated[str, "rows_columns | unstructured | n:m"]
    ratio: Annotated[float | None, "0 <= x < 1"]  # null: what n:m removes
    n: Annotated[int | None, "x >= 1"] = None  # kept of every m consecutive inputs
    m: Annotated[int | None, "x >= 2"] = None
    within: Annotated[str | None, "row | matrix"] = None  # where scores compete; null: as the method's paper
    rounding: Annotated[str | None, "exact | published"] = None  # of counts; null: exact
    propagation: Annotated[str, "pruned | dense"] = "pruned"  # which stream gives a block its statistics


@dataclass(frozen=True)
class Allocation:
    """How the ratio is spread over the layers."""

    name: Annotated[str, "by_pattern | global | uniform"]


@dataclass(frozen=True)
class Reconstruction:
    """What is repaired after pruning."""

    name: Annotated[str, "none"]


@dataclass(frozen=True)
class ReconstructionData:
    """Which tokens a repair fits to. ``parts``: windows of each source; null: the mask's own tokens.

    A part is ``same`` (the mask's tokens, null: all of them), ``self_generated``, or a calibration option; with 0
    windows it is left out. The
    other fields say how the dense model writes: see :mod:`prunelab.calibration.generated`.
    """

    name: str
    parts: dict | None = None
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
class Evaluation:
    """Corpora for perplexity (test split) and for reconstruction error on text held out (validation split); tasks.

    ``tasks``: zero-shot tasks of lm-evaluation-harness by name, or ``continuation_<embedded corpus>``;
    ``task_limit``: documents of each, null = all. ``metrics``: more to measure on the test corpora, by classes of one's
    own, name -> class and fields; see prunelab/stages/measured.py.
    """

    name: str
    corpora: list
    held_out: list
    seq_len: Annotated[int, "x >= 2"]
    max_samples: Annotated[int | None, "x >= 1"]
    error_samples: Annotated[int, "x >= 1"]
    tasks: list
    task_limit: Annotated[int | None, "x >= 1"]
    metrics: dict


@dataclass(frozen=True)
class Tracking:
    """Where metrics are mirrored."""

    name: Annotated[str, "none | wandb"]
    project: str | None
    entity: str | None
    mode: Annotated[str | None, "online | offline"]
    base_url: str | None
    tags: list
    finish_timeout: Annotated[int, "x >= 1"]


@dataclass(frozen=True)
class Runtime:
    """Placement and batching: may change the clock, never the key, but for ``activation_dtype``, which moves numbers."""

    device: str
    workers: Annotated[int | None, "x >= 1"]
    threads: Annotated[int | None, "x >= 1"]
    batch_tokens: Annotated[int, "x >= 1"]
    activation_place: Annotated[str, "auto | device | ram | disk"]
    activation_gib: Annotated[float | None, "x > 0"]
    activation_dtype: Annotated[str | None, "float32 | bfloat16 | float16"]


@dataclass(frozen=True)
class Paths:
    """Where results go."""

    root: str
    store: str
    study: str
