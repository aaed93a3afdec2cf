#!/usr/bin/env bash
# safetensors 0.8.0, numpy writer: one file's metadata are written in another order by every process.
#
# The tensors lie in a fixed order, the texts of the header's __metadata__ in that of a hash table with a random seed:
# the same save() in five processes gives files of one length and of several hashes. Whoever compares such files, or
# names them by their hash, sorts the metadata in the header first; its length does not change.
#
# Seen: five processes, more than one hash, one hash once sorted. Exits 1 where that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check "safetensors==0.8.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import hashlib
import json

import numpy as np
from safetensors.numpy import save

data = save({"x": np.zeros(3, np.float32)}, metadata={f"key {i}": "text" for i in range(8)})
length = int.from_bytes(data[:8], "little")
header = json.loads(data[8 : 8 + length])
assert list(header) == ["__metadata__", "x"]
print(hashlib.sha256(data).hexdigest()[:8], hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:8])
PY
for _ in 1 2 3 4 5; do "$folder/venv/bin/python" "$folder/show.py"; done | tee "$folder/seen"
written=$(cut -d' ' -f1 "$folder/seen" | sort -u | wc -l)
sorted=$(cut -d' ' -f2 "$folder/seen" | sort -u | wc -l)
echo "hashes as written: $written, once sorted: $sorted"
if [ "$written" -lt 2 ] || [ "$sorted" -ne 1 ]; then echo "this has changed"; exit 1; fi
