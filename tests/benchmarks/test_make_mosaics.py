"""Mosaic slides of tiles: their cases, borders and layout, and that a seed gives the same slides again."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import make_mosaics
from fseg_jax import open_slide
from fseg_jax.evaluation.data.masked_slides import find_slides

TILES = {"Normal/GT1-1": (0, 150, 0), "Polyp/GTxc1-2": (0, 200, 0), "Adenocarcinoma/GT1-3": (180, 0, 0)}


@pytest.fixture
def ebhi(tmp_path: Path) -> Path:
    """Write two green benign and two red malignant tiles of case 1, and one benign tile of case 2."""
    for c in (*make_mosaics.BENIGN, *make_mosaics.MALIGNANT):
        (tmp_path / "ebhi" / c / "images").mkdir(parents=True)
    more = {"High-grade_IN/GTXC1-4": (220, 0, 0), "Normal/GT2-1": (0, 90, 0)}
    for name, colour in (TILES | more).items():
        folder, file = name.split("/")
        image = Image.new("RGB", (224, 224), colour)
        image.save(tmp_path / "ebhi" / folder / "images" / f"{file}-400-001.png")
    return tmp_path / "ebhi"


def test_cases_have_both_kinds(ebhi):
    (case,) = make_mosaics.find_cases(ebhi, 2)
    assert (case.name, len(case.benign), len(case.malignant)) == ("1", 2, 2)
    assert make_mosaics.find_cases(ebhi, 3) == []


def test_the_mask_is_where_the_malignant_tiles_are(ebhi):
    (case,) = make_mosaics.find_cases(ebhi, 2)
    for share in (0.05, 0.5):
        image, mask = make_mosaics.draw_mosaic(case, (500, 700), share, np.random.default_rng(0))
        assert ((mask == 255) == (image[..., 0] > image[..., 1])).all() and set(np.unique(mask)) == {0, 255}
        tissue = ~(image == 243).all(-1)
        assert (mask == 255).sum() == pytest.approx(share * tissue.sum(), rel=1e-3)
        assert 0.3 < tissue.mean() < 0.9


def test_slides_are_as_digestpaths_and_the_seed_decides_them(ebhi, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        (path,) = make_mosaics.write_mosaics(ebhi, tmp_path / name, size=(500, 700), fewest=2, seed=seed)
    slides = {
        name: (tmp_path / name / "tissue-train-pos" / path.name).read_bytes()
        for name in ("one", "two", "three")
    }
    assert slides["one"] == slides["two"] != slides["three"]
    (slide,) = find_slides(tmp_path / "one")
    assert slide.name == "mosaic-1"
    with open_slide(slide.image) as image:
        assert image.mpp == pytest.approx(0.5) and (image.height, image.width) == (500, 700)
