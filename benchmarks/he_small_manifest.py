"""Write the manifest of what ``he-small`` is trained on: open H&E.

A third of EBHI-Seg's cases and all of BCSS are left out.

    FSEG_DATA=... python -m benchmarks.he_small_manifest he-small.csv
    FSEG_DATA=... python -m benchmarks.he_small_manifest he-small-codebook.csv 6

The second, with every sixth image of EBHI-Seg so that colon does not fill it, is what its codebook is fitted
on.
µm per pixel are given where a file does not say: by the sources' magnifications, and for EBHI-Seg and the
oral fields, which were reduced, by the size of nuclei.
"""

import csv
import sys
from pathlib import Path

from benchmarks.examples import examples
from fseg_jax.evaluation.data.layouts import open_dataset

# Site (what is balanced), files, µm per pixel.
SOURCES = (
    ("oral", "oral/*/*_400x*", 1.0),
    ("oral_originals", "oral_originals/*.jpg", 0.15),
    ("osteosarcoma", "osteosarcoma/*.jpg", 1.0),
    ("camelyon", "camelyon/images/*.jpg", 0.5),
    ("brecahad", "brecahad/images/*.jpg", 0.25),
    ("skin", "slides/CMU-1-Small-Region.svs", ""),
    ("head_and_neck", "slides/TCGA-CR-7395-01A-01-TS1.svs", 0.25),
)


def main(out: str, every: str = "1") -> None:
    data = examples()
    rows = [(site, path, mpp) for site, pattern, mpp in SOURCES for path in sorted(data.glob(pattern))]
    ebhi = open_dataset(data / "ebhi")
    train = [item for item in ebhi.items if item.split == "train"]
    rows += [("ebhi", item.image, 1.0) for item in train[:: int(every)]]
    with Path(out).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("slide_id", "path", "mpp", "site"))
        for site, path, mpp in rows:
            relative = Path(path).relative_to(data)
            writer.writerow(("-".join(relative.with_suffix("").parts), path, mpp, site))
    print(f"{out}: {len(rows)} images of {len({site for site, *_ in rows})} sites")


if __name__ == "__main__":
    main(*sys.argv[1:])
