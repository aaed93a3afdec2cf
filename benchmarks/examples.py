"""Where the example slides, tiles and masks lie."""

import os
import sys
from pathlib import Path


def examples() -> Path:
    """The folder that ``FSEG_DATA`` names."""
    folder = os.environ.get("FSEG_DATA", "")
    if not folder or not Path(folder).is_dir():
        print(f"FSEG_DATA={folder}: set it to the folder of example slides and masks", file=sys.stderr)
        raise SystemExit(2)
    return Path(folder).resolve()
