#!/usr/bin/env bash
# anndata 0.13.4 refuses to write a column or an entry of uns whose name has a slash, such as the tissue class
# "tumour/stroma"; 0.12.19 writes the same object, and nests the entry of uns: {"a/b": 1} comes back as {"a": {"b": 1}}.
#
# So a program whose keys are users' class names either ends after all its work is done or loses the names. Names are safe
# as values: in a categorical column, or in a list under a key of one's own.
#
# Seen: 0.12.19 "obs written, uns nested", 0.13.4 "obs refused, uns refused". Exits 1 where that has changed.
set -euo pipefail
python=${PYTHON:-python3.12} # 0.13 needs 3.12
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PY'
import sys
import warnings

import anndata
import numpy as np
import pandas as pd

warnings.simplefilter("ignore")


def written(table: anndata.AnnData) -> anndata.AnnData | None:
    try:
        table.write_h5ad(sys.argv[1])
    except ValueError:
        return None
    return anndata.read_h5ad(sys.argv[1])


def empty() -> anndata.AnnData:
    return anndata.AnnData(np.zeros((2, 1), np.float32), pd.DataFrame(index=["0", "1"]))


table = empty()
table.obs["tumour/stroma"] = [0.1, 0.9]
obs = "refused" if written(table) is None else "written"
table = empty()
table.uns["tumour/stroma"] = 1
read = written(table)
uns = "refused" if read is None else "nested" if "tumour" in read.uns else "kept"
print(f"obs {obs}, uns {uns}")
PY
for version in 0.12.19 0.13.4; do
  "$python" -m venv "$folder/$version"
  "$folder/$version/bin/pip" install -q --disable-pip-version-check "anndata==$version"
  seen=$("$folder/$version/bin/python" "$folder/show.py" "$folder/table.h5ad")
  echo "anndata $version: $seen"
  case "$version $seen" in "0.12.19 obs written, uns nested" | "0.13.4 obs refused, uns refused") ;; *) echo "this has changed"; exit 1 ;; esac
done
