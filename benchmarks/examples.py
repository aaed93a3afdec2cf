"""The folder of example slides, tiles and masks."""

import os
import sys
from pathlib import Path


def find_examples() -> Path:
    """Return the folder that ``FSEG_DATA`` names.

    Raises:
        SystemExit: no such folder; a line on stderr says so.
    """
    folder = os.environ.get("FSEG_DATA", "")
    if not folder or not Path(folder).is_dir():
        print(f"FSEG_DATA={folder}: set it to the folder of example slides and masks", file=sys.stderr)
        raise SystemExit(2)
    return Path(folder).resolve()
