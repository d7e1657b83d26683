"""``python -m prunelab``: Hydra's entry, with overrides allowed on either side of ``-m``."""

from __future__ import annotations

import sys

from prunelab.launch.command.entry import run
from prunelab.terminal import write_what_can_be_shown

if __name__ == "__main__":
    write_what_can_be_shown()
    sys.exit(run(sys.argv))
