"""Write the manifest of the open H&E images that ``he-small`` is trained on.

A third of EBHI-Seg's cases and all of BCSS are left out.

    FSEG_DATA=... python -m benchmarks.he_small_manifest he-small.csv
    FSEG_DATA=... python -m benchmarks.he_small_manifest he-small-codebook.csv 6
    FSEG_DATA=... python -m benchmarks.he_small_manifest no-colon.csv 1 colon

The second manifest is for fitting the codebook; it has every sixth image of EBHI-Seg, of the reduced oral
fields and of osteosarcoma, so that none dominates. The third leaves an organ out (``ORGANS``), for
``benchmarks.left_out_organs``. µm per pixel are given for files without them: from the magnification of the
source, and for EBHI-Seg and the oral fields, which were reduced in size, from the size of nuclei.
"""

import csv
import sys
from pathlib import Path

from benchmarks.examples import find_examples
from fseg_jax.evaluation.data.layouts import open_dataset

# Site (training is balanced over sites), files, µm per pixel (empty: the file's own).
SOURCES = (
    ("oral", "oral/*/*_400x*", 1.0),
    ("oral_originals", "oral_originals/*.jpg", 0.15),
    ("osteosarcoma", "osteosarcoma/*.jpg", 1.0),
    ("camelyon", "camelyon/images/*.jpg", 0.5),
    ("brecahad", "brecahad/images/*.jpg", 0.25),
    ("skin", "slides/CMU-1-Small-Region.svs", ""),
    ("head_and_neck", "slides/TCGA-CR-7395-01A-01-TS1.svs", 0.25),
)
ORGANS = {"colon": ("ebhi",), "breast": ("brecahad", "camelyon")}  # camelyon: breast cancer in lymph nodes
LARGE = ("oral", "osteosarcoma")  # besides EBHI-Seg


def main(out: str, every: str = "1", left_out: str = "") -> None:
    """Write the manifest, with every n-th training image of what is large, and without an organ."""
    data, step = find_examples(), int(every)
    rows: list[tuple[str, Path, float | str]] = []
    for site, pattern, mpp in SOURCES:
        paths = sorted(data.glob(pattern))
        rows += [(site, path, mpp) for path in paths[:: step if site in LARGE else 1]]
    ebhi = open_dataset(data / "ebhi")
    train = [item for item in ebhi.items if item.split == "train"]
    rows += [("ebhi", item.image, 1.0) for item in train[::step]]
    rows = [row for row in rows if row[0] not in ORGANS.get(left_out, ())]
    with Path(out).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("slide_id", "path", "mpp", "site"))
        for site, path, mpp in rows:
            relative = Path(path).relative_to(data)
            writer.writerow(("-".join(relative.with_suffix("").parts), path, mpp, site))
    print(f"{out}: {len(rows)} images of {len({site for site, *_ in rows})} sites")


if __name__ == "__main__":
    main(*sys.argv[1:])
