"""Send one offline run folder with ``wandb sync``, in a process of its own and within a time."""

from __future__ import annotations

import os
import subprocess
import sys

from prunelab.tracking.secret import without_secrets
from prunelab.tracking.wandb.file import Fragment
from prunelab.tracking.wandb.probe import Decision
from prunelab.tracking.wandb.process import folder_variables


def send_folder(fragment: Fragment, decision: Decision, timeout_s: float) -> str:
    """Hand a folder to the SDK; return "" once it says it is synced, else why not.

    The SDK's exit code proves nothing (0.31: it is 0 for a file it could not read), its marker file does. One
    folder a call: a damaged one keeps the SDK from sending any of its neighbours.
    """
    # neither a default that says offline, nor this process's service, which would outlive a sync that is given up
    environment = {k: v for k, v in os.environ.items() if k not in ("WANDB_MODE", "WANDB_SERVICE")}
    environment |= {"WANDB_BASE_URL": decision.base_url, **folder_variables(fragment.folder.parent.parent)}
    command = [sys.executable, "-m", "wandb", "sync", "--include-synced", str(fragment.folder)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return f"it took longer than {timeout_s:g} s"
    if fragment.marked:
        return ""
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return without_secrets(f"wandb sync: {said[-1] if said else f'exit code {done.returncode}'}")
