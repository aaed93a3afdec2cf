#!/usr/bin/env bash
# Pillow 12.3.0 and a mask as a TIFF whose photometric interpretation is min-is-white: of 8 bits the values come inverted,
# of 16 bits as they are stored.
#
# So the same mask marks everything else once it is saved with fewer bits, and a reader that inverts "back" is wrong for
# the other depth. tifffile gives what is stored for both.
#
# Seen: Pillow 8 bits "inverted", 16 bits "stored"; tifffile "stored" for both. Exits 1 where that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pillow==12.3.0 tifffile==2025.12.20 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import sys

import numpy as np
import tifffile
from PIL import Image

seen = []
for dtype in (np.uint8, np.uint16):
    stored = np.zeros((8, 8), dtype)
    stored[2:4, 2:6] = 255
    tifffile.imwrite(sys.argv[1], stored, photometric="miniswhite")
    for read in (np.asarray(Image.open(sys.argv[1])), tifffile.imread(sys.argv[1])):
        inverted = np.array_equal(read, np.iinfo(dtype).max - stored)
        seen.append("stored" if np.array_equal(read, stored) else "inverted" if inverted else "neither")
print(*seen)
PY
seen=$("$folder/venv/bin/python" "$folder/show.py" "$folder/mask.tif")
echo "8 bits by Pillow, by tifffile; 16 bits by Pillow, by tifffile: $seen"
[ "$seen" = "inverted stored stored stored" ] || { echo "this has changed"; exit 1; }
