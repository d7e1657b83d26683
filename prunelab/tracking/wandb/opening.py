"""Open a W&B run, online if that works within its time, else offline (wandb 0.31).

Measured: a plain SIGTERM or SIGKILL loses a short run unless the transaction log is flushed each second and the
process leaves through ``atexit``; an online ``init`` against a dead server takes 102 s unless bounded; an
outage blocks ``finish`` for ever unless ``finish_timeout`` is set; ``step=`` breaks requeued runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunelab.tracking.base import RunInfo
from prunelab.tracking.secret import one_line
from prunelab.tracking.wandb.probe import Decision
from prunelab.tracking.wandb.row import flat_config

INIT_TIMEOUT_S = (10.0, 30.0)  # least and most; a server that does not answer at all is known before
FLUSH_S = 0.5


def end_timeout(config: Mapping[str, Any]) -> float:
    """Return half of ``finish_timeout``: tables and artefacts get one half, the upload the other."""
    return float(config.get("finish_timeout") or 300) / 2


def open_run(
    config: Mapping[str, Any], run: RunInfo, decision: Decision, *, strict: bool
) -> tuple[Any, str, str]:
    """Return a live run, its mode and why; a server that stops answering meanwhile means offline.

    With ``strict`` nothing but the mode that was decided will do, and the SDK's error travels on.
    """
    try:
        return _init(config, run, decision.mode, decision.base_url), decision.mode, decision.reason
    except Exception as error:
        if decision.mode != "online" or strict:
            raise
        import wandb

        wandb.teardown()  # the failed attempt keeps the id "in use" otherwise
        return _init(config, run, "offline", decision.base_url), "offline", one_line(error)


def _init(config: Mapping[str, Any], run: RunInfo, mode: str, base_url: str) -> Any:
    import wandb  # 0.5 s: only a trial that is tracked pays for it

    settings = wandb.Settings(
        base_url=base_url,
        console="off",
        disable_git=True,
        finish_timeout=end_timeout(config),
        finish_timeout_raises=True,
        init_timeout=min(max(INIT_TIMEOUT_S[0], end_timeout(config)), INIT_TIMEOUT_S[1]),
        save_code=False,
        silent=True,
        x_transaction_log_flush_interval=FLUSH_S,
    )
    return wandb.init(
        project=config.get("project") or "prunelab",
        entity=config.get("entity"),
        id=run.id,
        name=run.name,
        group=run.group,
        job_type=run.job_type,
        tags=list(dict.fromkeys([*run.tags, *(str(tag) for tag in config.get("tags") or ())])),
        config=flat_config(run.config),
        dir=str(run.folder),
        mode="offline" if mode == "offline" else "online",
        reinit="create_new",  # several trials may follow each other in one process
        resume="allow",
        settings=settings,
    )
