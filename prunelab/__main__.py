"""``python -m prunelab``: Hydra's entry, with overrides allowed on either side of ``-m``."""

from __future__ import annotations

import sys

from prunelab.launch.entry import run

if __name__ == "__main__":
    sys.exit(run(sys.argv))
