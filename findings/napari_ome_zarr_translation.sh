#!/usr/bin/env bash
# napari-ome-zarr 0.11.0 gives napari the scale of an image and of its labels, and leaves out their translation, which it is
# free to have in every version of OME-Zarr: labels that begin 40 µm into their image are shown at its corner.
#
# 0.10.0 gave both. So labels of a part of a slide lie elsewhere, and pyramids whose first pixels' centres differ are half a
# pixel of the coarser one apart, without a warning. Pad labels to the image's corner, or add the layers by hand.
#
# Seen: 0.11.0 "image scale [2.0, 2.0] translate None, labels scale [1.0, 1.0] translate None". Exits 1 where that has changed.
set -euo pipefail
python=${PYTHON:-python3.12} # 0.11 needs 3.12
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PY'
import sys
import warnings

import numpy as np
import zarr
from napari_ome_zarr import napari_get_reader

warnings.simplefilter("ignore")


def multiscales(scale: float, begin: float) -> list[dict]:
    transformations = [
        {"type": "scale", "scale": [scale, scale]},
        {"type": "translation", "translation": [begin, begin]},
    ]
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    return [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": transformations}]}]


image = zarr.open_group(sys.argv[1], mode="w", zarr_format=3)
image.create_array("0", data=np.full((64, 64), 9, np.uint8))
image.attrs["ome"] = {"version": "0.5", "multiscales": multiscales(2.0, 0.5)}
labels = image.create_group("labels")
labels.attrs["ome"] = {"version": "0.5", "labels": ["part"]}
part = labels.create_group("part")
part.create_array("0", data=np.ones((20, 20), np.uint8))
part.attrs["ome"] = {"version": "0.5", "multiscales": multiscales(1.0, 40.0), "image-label": {"source": {"image": "../../"}}}
layers = napari_get_reader(sys.argv[1])(sys.argv[1])
print(", ".join(f"{kind} scale {list(options['scale'])} translate {options.get('translate')}" for _, options, kind in layers))
PY
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check "napari-ome-zarr==0.11.0" "zarr==3.4.2" "ome-zarr==0.21.0"
seen=$("$folder/venv/bin/python" "$folder/show.py" "$folder/slide.ome.zarr" 2> "$folder/log" | tail -1) || { tail -3 "$folder/log"; exit 1; }
echo "napari-ome-zarr 0.11.0: $seen"
[ "$seen" = "image scale [2.0, 2.0] translate None, labels scale [1.0, 1.0] translate None" ] || { echo "this has changed"; exit 1; }
