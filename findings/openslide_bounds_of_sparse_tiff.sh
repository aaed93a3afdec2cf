#!/usr/bin/env bash
# OpenSlide 4.0.1 and a tiled TIFF whose outer tiles were never written (offset and byte count 0, as many converters leave
# glass): a plain TIFF gets bounds, the part that was written, and the same file with Aperio's description gets none.
#
# A viewer that shows the bounds' part, as QuPath does with OpenSlide, counts from its corner; tifffile, tiffslide and
# OpenSlide's own coordinates count from the picture's. So outlines drawn in one lie beside the tissue in another, by as
# many tiles as were left out, and only for some files of a collection.
#
# Seen: generic-tiff 128,256 for a first written tile at row 1, column 2, aperio "none". Exits 1 where that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  openslide-python==1.4.7 openslide-bin==4.0.1.2 tifffile==2025.12.20 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import sys

import numpy as np
import openslide
import tifffile

seen = []
for description in (None, "Aperio Image Library v1.0\n640x512 (128x128)|AppMag = 20|MPP = 0.5"):
    picture = np.full((512, 640, 3), 200, np.uint8)
    options = {"photometric": "rgb", "tile": (128, 128), "metadata": None, "description": description}
    tifffile.imwrite(sys.argv[1], picture, resolution=(20000, 20000), resolutionunit="CENTIMETER", **options)
    with tifffile.TiffFile(sys.argv[1], mode="r+") as tiff:
        page = tiff.pages[0]
        written = np.zeros((4, 5), int)
        written[1:3, 2:4] = 1
        for tag, values in (("TileOffsets", page.dataoffsets), ("TileByteCounts", page.databytecounts)):
            page.tags[tag].overwrite([int(v) * k for v, k in zip(values, written.ravel().tolist())])
    with openslide.OpenSlide(sys.argv[1]) as slide:
        corner = [slide.properties.get(f"openslide.bounds-{axis}", "none") for axis in "yx"]
        seen.append(f"{slide.properties['openslide.vendor']} {','.join(dict.fromkeys(corner))}")
print("; ".join(seen))
PY
seen=$("$folder/venv/bin/python" "$folder/show.py" "$folder/sparse.tif")
echo "the corner of the bounds, y,x: $seen"
[ "$seen" = "generic-tiff 128,256; aperio none" ] || { echo "this has changed"; exit 1; }
