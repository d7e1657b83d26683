"""A fabricated study with the shape of a real one: 4 methods x 5 ratios x 2 calibrations on 4 blocks."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from prunelab.config.fingerprint import fingerprint
from prunelab.config.version import SCHEMA

DENSE = {"austen": 21.4, "kjv": 14.9, "jargon": 48.7, "pydocs": 33.2}
DAMAGE = {"surgeon": 1.0, "kobd": 1.7, "lobd": 2.6, "magnitude": 4.4}
SITES = {f"self_attn.{n}_proj": (64, 64) for n in "qkvo"} | {
    f"mlp.{n}_proj": (176, 64) for n in ("gate", "up")
}
SITES["mlp.down_proj"] = (64, 176)
Fabricate = Callable[..., Path]


def noise(*words: object) -> float:
    """A number in [-1, 1) that depends on the words alone."""
    return int(hashlib.sha256(repr(words).encode()).hexdigest()[:8], 16) / 2**31 - 1


class Fabricator:
    """Writes plan.json and records under ``root``; ``skip`` and ``fail`` name trials."""

    def __init__(self, root: Path) -> None:
        self.store, self.study, self.stages = root / "store", root / "study", dict[str, dict[str, Any]]()

    def stage(self, kind: str, slug: str, inputs: dict[str, str], record: dict[str, Any] | None) -> str:
        key = fingerprint(kind, {"slug": slug}, inputs)
        if key in self.stages:
            return key
        folder = f"{kind}/{slug}-{key[:16]}"
        self.stages[key] = {
            "kind": kind,
            "slug": slug,
            "folder": folder,
            "identity": {"slug": slug},
            "inputs": inputs,
        }
        (self.store / folder).mkdir(parents=True)
        (self.store / folder / "spec.json").write_text("{}")
        if record is None:
            return key
        if "failure" in record:
            (self.study / "failures").mkdir(parents=True, exist_ok=True)
            (self.study / "failures" / f"{key[:16]}.json").write_text(json.dumps(record["failure"]))
            return key
        versions = {"torch": "2.9.1", "transformers": "5.20.0", "prunelab": "0.1.0"}
        provenance = {"commit": "b845685", "host": "node7", "versions": versions, "argv": []}
        seconds = round(3 + 40 * (kind == "prune") * (2 + noise(slug)) + 6 * (kind == "evaluate"), 2)
        cost = {"seconds": seconds, "peak_gib": round(0.8 + 0.2 * noise(kind, slug), 3), "threads": 1}
        whole = {
            "schema": SCHEMA,
            "kind": kind,
            "key": key,
            "slug": slug,
            "identity": {"slug": slug},
            "inputs": inputs,
            "tables": {},
        }
        whole |= {"cost": cost, "outputs": {}, "provenance": provenance} | record
        (self.store / folder / "record.json").write_text(json.dumps(whole))
        (self.store / folder / "DONE").touch()
        return key


def pruned(method: str, ratio: float, blocks: int) -> dict[str, Any]:
    sites = []
    for block in range(blocks):
        for number, (path, (rows, columns)) in enumerate(SITES.items()):
            uneven = 0.0 if method == "lobd" else 0.7 * math.sin(2.1 * number + block) * (1 - ratio)
            share = min(0.97, max(0.0, ratio * (1 + uneven)))
            total = rows * columns
            site = {"site": f"model.layers.{block}.{path}", "block": block, "path": path, "rows": rows}
            site |= {"columns": columns, "rows_removed": int(rows * share / 2), "removed": int(total * share)}
            sites.append(site | {"columns_removed": int(columns * share / 2), "total": total})
    removed = sum(site["removed"] for site in sites) / sum(site["total"] for site in sites)
    metrics = {"ratio/weights": removed, "ratio/parameters": removed * 0.94, "ratio/units": removed * 0.6}
    metrics |= {
        "parameters/dense": 1_240_320,
        "parameters/compact": int(1_240_320 * (1 - removed)),
        "shots": 6,
    }
    shots = [{"shot": 1, "target": ratio, "achieved": removed, "threshold": 0.1}]
    return {"metrics": metrics, "tables": {"sites": sites, "shots": shots}}


def evaluated(method: str, ratio: float, source: str, seed: int, blocks: int) -> dict[str, Any]:
    hurt = (
        DAMAGE.get(method, 2 + noise(method))
        * (ratio**2 * 3.2 + 0.12 * ratio)
        * (1 + 0.04 * noise(method, seed))
    )
    metrics: dict[str, Any] = {"integrity/masked": int(4e5 * ratio), "integrity/violations": 0}
    rows = []
    streams = {"calibration": 1.0} | {
        f"held_out/{c}": 1.06 if c == source else 1.5 + 0.3 * noise(c, source) for c in DENSE
    }
    for corpus, dense in DENSE.items():
        far = 1.0 if corpus == source else 1.6
        ppl = dense * math.exp(hurt * far * (1 + 0.06 * noise(corpus, method, ratio, seed)))
        metrics |= {f"ppl/{corpus}": ppl, f"delta/ppl/{corpus}": ppl / dense - 1}
    for stream, far in streams.items():
        far = 1 + (far - 1) * (1.7 if method == "surgeon" else 0.8)
        for block in range(blocks):
            error = 1 - math.exp(
                -0.25 * hurt * far * (1 + block) / blocks * (1 + 0.1 * noise(stream, method))
            )
            rows.append({"block": block, "stream": stream, "error": error})
        metrics[f"error/{stream}"] = rows[-1]["error"]
    return {"metrics": metrics, "tables": {"blocks": rows}}


@pytest.fixture
def fabricate(tmp_path: Path) -> Fabricate:
    """``fabricate(methods=…, ratios=…, sources=…, seeds=…, skip=…, fail=…)`` -> study folder."""
    return lambda **kwargs: fabricate_study(tmp_path / kwargs.pop("at", "lab"), **kwargs)


def fabricate_study(
    root: Path,
    methods: Sequence[str] = tuple(DAMAGE),
    ratios: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5),
    sources: Sequence[str] = ("austen", "kjv"),
    seeds: Sequence[int] = (0,),
    skip: Sequence[str] = (),
    fail: Sequence[str] = (),
    blocks: int = 4,
    extra: dict[str, Any] | None = None,
    change: Callable[[str, dict[str, Any]], None] = lambda name, record: None,
) -> Path:
    lab = Fabricator(root)
    trials = []
    dense = lab.stage("dense", "llama", {}, {"metrics": {f"ppl/{c}": p for c, p in DENSE.items()}})
    grid = [(m, s, q, r) for m in methods for s in seeds for q in sources for r in ratios]
    before: dict[tuple[str, int, str], str] = {}
    for number, (method, seed, source, ratio) in enumerate(grid):
        name = f"{method}-{ratio}-{source}-s{seed}"
        tokens = {"metrics": {"tokens": 4096, "digest": "ab" * 32}}
        calibrate = lab.stage("calibrate", f"{source}-s{seed}", {}, tokens)
        failure = {
            "failure": {"reason": "ModelError: A is <singular>\nafter damping", "log": f"/logs/{name}.out"}
        }
        inputs = {"tokens": calibrate} | (
            {"start": before[method, seed, source]} if (method, seed, source) in before else {}
        )
        record = None if name in skip else failure if name in fail else pruned(method, ratio, blocks)
        prune = lab.stage("prune", name, inputs, record)
        before[method, seed, source] = prune
        gone = name in skip or name in fail
        result = None if gone else evaluated(method, ratio, source, seed, blocks)
        if result is not None:
            change(name, result)
        evaluate = lab.stage("evaluate", name, {"dense": dense, "state": prune}, result)
        config: dict[str, Any] = {
            "study": "surgeon_sweep", "seed": seed, "model": {"name": "llama", "dtype": "float32"},
            "calibration": {"name": source, "n_samples": 32, "seq_len": 128},
            "sparsity": {"pattern": "rows_columns", "ratio": ratio}, "allocation": {"name": "global"},
            "method": {"name": method, "revision": 1, "step": {"surgeon": 0.05, "kobd": 0.05}.get(method)},
            "reconstruction": {"name": "none"}, "evaluation": {"corpora": list(DENSE), "seq_len": 128},
            "tracking": {"name": "none"}, "runtime": {"device": "cpu"}, "paths": {"study": str(lab.study)},
        }  # fmt: skip
        roles = {"dense": dense, "calibrate": calibrate, "prune": prune, "evaluate": evaluate}
        key = hashlib.sha256(repr(roles).encode()).hexdigest()
        over = [f"method={method}", f"sparsity.ratio={ratio}", f"calibration={source}"]
        trials.append(
            {"number": number, "name": name, "key": key, "overrides": over, "config": config | (extra or {})}
        )
        trials[-1]["stages"] = roles
    plan = {
        "schema": SCHEMA,
        "study": "surgeon_sweep",
        "created": "2026-01-05T20:11:00+00:00",
        "store": str(lab.store),
    }
    plan |= {"argv": ["prunelab", "+exp=surgeon_sweep", "-m"], "trials": trials, "stages": lab.stages}
    lab.study.mkdir(parents=True, exist_ok=True)
    (lab.study / "plan.json").write_text(json.dumps(plan))
    return lab.study


LEFT = {
    "none": 1.0,
    "layer": 0.5,
    "block": 0.4,
    "block_gp": 0.3,
    "cross_block": 0.2,
    "lora": 0.25,
}  # of a mask's error
MASKS = {"magnitude": 0.4, "wanda": 0.2}
PARTS = {"same": None, "mix": {"same": None, "self_generated": 16}}


@pytest.fixture
def repaired(tmp_path: Path) -> Fabricate:
    """``repaired(masks=…, repairs=…, data=…, sizes=…, seeds=…, ratios=…, skip=…, change=…)`` -> study folder."""
    return lambda **kwargs: repair_study(tmp_path / kwargs.pop("at", "lab"), **kwargs)


def stream_rows(error: float, streams: dict[str, float], blocks: int) -> list[dict[str, Any]]:
    """Errors that grow evenly over the blocks to ``error`` times the stream's factor; mse: seven times that."""
    return [
        {"block": block, "stream": name, "error": error * far * (block + 1) / blocks,
         "mse": 7 * error * far * (block + 1) / blocks}
        for name, far in streams.items() for block in range(blocks)
    ]  # fmt: skip


def repair_study(
    root: Path,
    masks: Sequence[str] = tuple(MASKS),
    repairs: Sequence[str] = ("none", "layer", "block_gp", "cross_block"),
    data: dict[str, dict[str, Any] | None] | None = None,
    sizes: Sequence[tuple[int, int]] = ((32, 128),),
    sources: Sequence[str] = ("austen",),
    seeds: Sequence[int] = (0,),
    ratios: Sequence[float] = (0.5,),
    skip: Sequence[str] = (),
    blocks: int = 3,
    change: Callable[[str, dict[str, Any]], None] = lambda name, record: None,
) -> Path:
    """Masks x repairs x what they fit to; a mixture halves held-out error and is fitted worse by a tenth."""
    lab, trials = Fabricator(root), []
    dense = lab.stage("dense", "llama", {}, {"metrics": {f"ppl/{c}": p for c, p in DENSE.items()}})
    for source, (n, length), seed, ratio, mask, repair, (name, parts) in itertools.product(
        sources, sizes, seeds, ratios, masks, repairs, (data or PARTS).items()
    ):
        if repair == "none" and name != next(iter(data or PARTS)):
            continue
        other = repair != "none" and bool(parts) and any(k != "same" and v for k, v in parts.items())
        calibrate = lab.stage("calibrate", f"{source}-{n}x{length}-s{seed}", {}, {"metrics": {"samples": n}})
        bare = f"{mask}-{ratio}-{source}-{n}x{length}-s{seed}"
        prune = lab.stage("prune", bare, {"calibrate": calibrate}, pruned(mask, ratio, blocks))
        trial, last = f"{repair}-{name}-{bare}", {"prune": prune}
        error = MASKS[mask] * LEFT[repair] * (1 + 0.1 * seed) * ratio
        if repair != "none":
            rows = stream_rows(error * (1.1 if other else 1.0), {"calibration": 1.0}, blocks)
            rows = [
                {"block": row["block"]} | {key: row[key] for key in ("error", "mse")}
                | {"error_before": 2 * row["error"], "mse_before": 2 * row["mse"]} for row in rows
            ]  # fmt: skip
            record: dict[str, Any] = {"metrics": {}, "tables": {"repair": rows}}
            if repair == "lora":  # the whole model at once: losses, and no rows of blocks
                record = {
                    "metrics": {"repair/lm_loss_before": 4.0, "repair/lm_loss_after": 3.0 + error},
                    "tables": {},
                }
            key = lab.stage("reconstruct", trial, last, record)
            last = {"reconstruct": key}
        near = {"calibration": 1.0} | ({"reconstruction": 1.1} if other else {})
        far = {f"held_out/{c}": (0.5 if other else 1.0) * (2 + k) for k, c in enumerate(("austen", "kjv"))}
        table = stream_rows(error, near | far, blocks)
        ends = [row for row in table if row["block"] == blocks - 1]
        metrics: dict[str, Any] = {f"ppl/{c}": p * (1 + error) for c, p in DENSE.items()}
        metrics |= {f"{kind}/{row['stream']}": row[kind] for kind in ("error", "mse") for row in ends}
        metrics |= {"integrity/masked": 9, "integrity/violations": 0}
        result: dict[str, Any] | None = {"metrics": metrics, "tables": {"blocks": table}}
        if trial in skip:
            result = None
        else:
            change(trial, result)  # type: ignore[arg-type]
        evaluate = lab.stage("evaluate", trial, {"dense": dense, **last}, result)
        config = {
            "study": "repairs", "seed": seed, "model": {"name": "llama"}, "method": {"name": mask},
            "calibration": {"name": source, "n_samples": n, "seq_len": length},
            "sparsity": {"pattern": "unstructured", "ratio": ratio}, "allocation": {"name": "uniform"},
            "reconstruction": {"name": repair}, "evaluation": {"seq_len": 128},
            "reconstruction_data": {"name": "same" if repair == "none" else name} | (
                {"parts": parts} if parts and repair != "none" else {}
            ),
        }  # fmt: skip
        test = lab.stage("calibrate", "austen-test", {}, {"metrics": {"samples": 4, "seq_len": 999}})
        roles = {"dense": dense, "calibrate": calibrate, "test/austen": test, "prune": prune, **last}
        roles |= {"evaluate": evaluate}
        trials.append({"number": len(trials), "name": trial, "key": trial, "config": config, "stages": roles})
    plan = {
        "schema": SCHEMA,
        "study": "repairs",
        "store": str(lab.store),
        "trials": trials,
        "stages": lab.stages,
    }
    lab.study.mkdir(parents=True, exist_ok=True)
    (lab.study / "plan.json").write_text(json.dumps(plan))
    return lab.study
