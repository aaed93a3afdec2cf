#!/usr/bin/env bash
# rasterio 1.4.4: a polygon that encloses the whole raster fills it when its corners lie at 1e9, and marks nothing when
# they lie at 1e12. Neither raises or warns.
#
# Outlines of regions that are drawn far beyond a slide's edge ("everything to the right of this line") thus vanish without
# a word. Clipping polygons to the raster's frame before they are drawn (shapely.clip_by_rect) is right for both.
#
# Seen: "1e9 64 of 64, 1e12 0 of 64, 1e12 clipped 64 of 64". Exits 1 where that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check rasterio==1.4.4 shapely==2.1.2 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import rasterio.features
import shapely

told = []
for name, polygon in (
    ("1e9", shapely.box(-1e9, -1e9, 1e9, 1e9)),
    ("1e12", shapely.box(-1e12, -1e12, 1e12, 1e12)),
    ("1e12 clipped", shapely.clip_by_rect(shapely.box(-1e12, -1e12, 1e12, 1e12), -1, -1, 9, 9)),
):
    told.append(f"{name} {rasterio.features.rasterize([polygon], (8, 8)).sum()} of 64")
print(", ".join(told))
PY
seen=$("$folder/venv/bin/python" -W error::UserWarning "$folder/show.py")
echo "$seen"
[ "$seen" = "1e9 64 of 64, 1e12 0 of 64, 1e12 clipped 64 of 64" ] || { echo "this has changed"; exit 1; }
