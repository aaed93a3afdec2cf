#!/usr/bin/env bash
# OpenSlide 4.0.1 and a cloud-optimized GeoTIFF, or any tiled TIFF to which GDAL added a mask of what is valid: the smaller
# copies of the mask become levels of the pyramid, beside those of the picture and of their sizes.
#
# So "the best level for a downsample" may be the mask: level 0 is read, and an overview fails, after which OpenSlide's
# handle gives errors alone. OpenSlide takes every tiled page that is marked as a reduced image, and does not look at the
# mark of a mask (NewSubfileType 4). tifffile gives the picture's own levels.
#
# Seen: levels of OpenSlide 512 256 256, of tifffile 512 256; OpenSlide's are read, read, "can not handle image with
# PhotometricInterpretation=4". Exits 1 where that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check openslide-python==1.4.2 openslide-bin==4.0.1.2 \
  rasterio==1.4.3 tifffile==2025.12.20 numpy==2.3.5 pillow==12.3.0
cat > "$folder/show.py" <<'PY'
import sys
import warnings

import numpy as np
import openslide
import rasterio
import tifffile

warnings.simplefilter("ignore")
options = {"driver": "GTiff", "width": 512, "height": 512, "count": 3, "dtype": "uint8", "photometric": "RGB"}
with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
    with rasterio.open(sys.argv[1], "w", tiled=True, **options) as image:
        image.write(np.full((3, 512, 512), 120, np.uint8))
        image.write_mask(np.full((512, 512), 255, np.uint8))
    with rasterio.open(sys.argv[1], "r+") as image:
        image.build_overviews([2])
slide = openslide.OpenSlide(sys.argv[1])
sizes, outcomes = slide.level_dimensions, []
for level, size in enumerate(sizes):
    try:
        slide.read_region((0, 0), level, size)
    except openslide.OpenSlideError as error:
        outcomes.append("mask" if "PhotometricInterpretation=4" in str(error) else str(error))
    else:
        outcomes.append("read")
with tifffile.TiffFile(sys.argv[1]) as tiff:
    levels = [level.shape[0] for level in tiff.series[0].levels]
print(*(width for width, _ in sizes), "/", *levels, "/", *outcomes)
PY
seen=$("$folder/venv/bin/python" "$folder/show.py" "$folder/cog.tif" 2> "$folder/log") || { cat "$folder/log"; exit 1; }
echo "widths of OpenSlide's levels / of tifffile's / what OpenSlide reads: $seen"
[ "$seen" = "512 256 256 / 512 256 / read read mask" ] || { echo "this has changed"; exit 1; }
