#!/usr/bin/env bash
# safetensors 0.8.0, numpy writer: an array in Fortran order is written as it lies in memory, under its own shape.
#
# What is read back has the right shape, dtype and sum, and its values in other places. 0.7.0 laid such arrays out row by
# row first. A transpose, the result of np.linalg.svd or of scipy.io.loadmat is such an array; np.ascontiguousarray
# (or order="C") before saving is right on both.
#
# Seen: 0.7.0 "kept", 0.8.0 "scrambled". Exits 1 where that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PY'
import numpy as np
from safetensors.numpy import load, save

written = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
read = load(save({"x": written}))["x"]
assert read.shape == written.shape and sorted(read.ravel()) == sorted(written.ravel())
print("kept" if (read == written).all() else "scrambled")
PY
for version in 0.7.0 0.8.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install -q --disable-pip-version-check "safetensors==$version" "numpy==2.4.6"
  seen=$("$folder/$version/bin/python" "$folder/show.py")
  echo "safetensors $version: $seen"
  case "$version $seen" in "0.7.0 kept" | "0.8.0 scrambled") ;; *) echo "this has changed"; exit 1 ;; esac
done
