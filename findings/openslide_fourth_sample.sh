#!/usr/bin/env bash
# OpenSlide 4.0.1 and a tiled TIFF of red, green, blue and a fourth sample of no stated meaning (ExtraSamples 0), as a mask,
# a distance or infrared beside the picture: the fourth sample is taken for opacity, and the colours for multiplied by it.
#
# So such a picture comes out pale and in other hues (its colours, divided by an opacity that they were never multiplied by,
# overflow), with no error; libtiff's RGBA reader, on which OpenSlide builds for TIFFs of no scanner, treats every fourth
# sample so. Read such a file's samples (tifffile), and take the fourth for opacity only where ExtraSamples is 1 or 2.
#
# Seen: stored 200 100 50, "opacity" 64 by OpenSlide; laid on white 198 227 241. Exits 1 where that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check openslide-python==1.4.2 openslide-bin==4.0.1.2 \
  tifffile==2025.12.20 numpy==2.4.6 pillow==12.3.0
cat > "$folder/show.py" <<'PY'
import sys

import numpy as np
import openslide
import tifffile
from PIL import Image

stored = np.full((256, 256, 4), (200, 100, 50, 64), np.uint8)
tifffile.imwrite(
    sys.argv[1], stored, photometric="rgb", extrasamples=["unspecified"], tile=(256, 256), metadata=None
)
assert tifffile.TiffFile(sys.argv[1]).pages[0].extrasamples == (0,)
region = openslide.OpenSlide(sys.argv[1]).read_region((0, 0), 0, (1, 1))
white = Image.new("RGB", (1, 1), "white")
white.paste(region, mask=region.getchannel("A"))
print(region.getpixel((0, 0))[3], *white.getpixel((0, 0)))
PY
seen=$("$folder/venv/bin/python" "$folder/show.py" "$folder/four.tif")
echo "opacity by OpenSlide, and the pixel on white: $seen"
[ "$seen" = "64 198 227 241" ] || { echo "this has changed"; exit 1; }
