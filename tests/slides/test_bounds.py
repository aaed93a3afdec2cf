"""Scans on a larger canvas: what is read of them, and what coordinates count from."""

import json
from pathlib import Path

import numpy as np
import openslide
import pytest
import shapely
import tifffile
from PIL import Image

from fseg_jax.errors import InputError
from fseg_jax.pipeline.slide_facts import SlideFacts, slide_facts
from fseg_jax.pipeline.tissue_files import write_tissue_files
from fseg_jax.slides.reader import open_slide
from fseg_jax.slides.tissue import load_tissue
from tests.shared.leica import MPP, write_leica

pytestmark = pytest.mark.smoke

CANVAS = (3000, 5000)
CORNER = (1003, 701)  # no multiples of what a level is reduced by
TISSUE = (120, 200, 480, 680)  # y0, x0, y1, x1 in the scan
RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, (600, 800, 3), np.uint8)


def draw_scan() -> np.ndarray:
    scan = np.full((600, 800, 3), 243.0)
    y0, x0, y1, x1 = TISSUE
    scan[y0:y1, x0:x1] = (225, 130, 180)
    scan[y0:y1, x0:x1] += RANDOM.normal(0, 8, (y1 - y0, x1 - x0, 1))
    return (scan + RANDOM.normal(0, 1, (600, 800, 1))).round().clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("noise") / "noise.scn"
    write_leica(path, CANVAS, [(CORNER, NOISE)])
    return path


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.scn"
    write_leica(path, CANVAS, [(CORNER, draw_scan())])
    return path


def test_the_scan_is_the_slide_to_the_pixel(noise: Path) -> None:
    with open_slide(noise) as slide:
        assert (slide.height, slide.width, slide.mpp) == (600, 800, MPP)
        assert (slide.frame, slide.origin) == ("bounds", CORNER)
        np.testing.assert_array_equal(slide.read(0, 0, 600, 800, MPP), NOISE)
        half = NOISE.reshape(150, 4, 200, 4, 3).mean((1, 3))
        level = slide.read(0, 0, 150, 200, 4 * MPP)
        assert np.abs(level - half).max() <= 0.5
        np.testing.assert_array_equal(slide.read(31, 17, 40, 50, 4 * MPP), level[31:71, 17:67])


def test_the_canvas_is_read_as_openslide_counts(noise: Path) -> None:
    with open_slide(noise, frame="canvas") as slide, openslide.OpenSlide(noise) as direct:
        assert (slide.height, slide.width) == CANVAS and slide.level_mpps == [MPP, 4 * MPP]
        assert (slide.frame, slide.origin) == ("canvas", (0, 0))
        region = direct.read_region((650, 980), 0, (200, 100))
        white = Image.new("RGBA", region.size, "white")
        expected = np.asarray(Image.alpha_composite(white, region).convert("RGB"))
        np.testing.assert_array_equal(slide.read(980, 650, 100, 200, MPP), expected)


def test_a_tiff_whose_outer_tiles_were_never_written_begins_with_those_that_were(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    resolution = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    picture = np.tile(NOISE[:512, :640], (2, 2, 1))
    tifffile.imwrite(
        path, picture, tile=(128, 128), photometric="rgb", compression="adobe_deflate", **resolution
    )
    with tifffile.TiffFile(path, mode="r+") as tiff:
        page = tiff.pages[0]
        kept = np.zeros((8, 10), bool)
        kept[2:6, 3:9] = True
        for tag, values in (("TileOffsets", page.dataoffsets), ("TileByteCounts", page.databytecounts)):
            page.tags[tag].overwrite([int(v) * k for v, k in zip(values, kept.ravel(), strict=True)])
    with open_slide(path) as slide:
        assert (slide.frame, slide.origin) == ("bounds", (256, 384))
        np.testing.assert_array_equal(slide.read(0, 0, 512, 768, MPP), picture[256:768, 384:1152])
    with open_slide(path, frame="canvas") as slide:
        assert (slide.height, slide.width) == picture.shape[:2]


def test_a_slide_without_bounds_is_its_canvas(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", MPP) as slide:
        assert (slide.frame, slide.origin) == ("canvas", (0, 0))


def outline(folder: Path) -> tuple[dict, shapely.Geometry]:
    content = json.loads((folder / "scan.tissue.geojson").read_text())
    shapes = [shapely.from_geojson(json.dumps(f["geometry"])) for f in content["features"]]
    return content, shapely.union_all(shapes)


@pytest.mark.parametrize(("frame", "y", "x"), [("bounds", *CORNER), ("canvas", 0, 0)])
def test_outlines_count_from_the_frame_and_say_so(
    frame: str, y: int, x: int, scan: Path, tmp_path: Path
) -> None:
    with open_slide(scan, frame=frame) as slide:
        record = write_tissue_files(slide, tmp_path)
    stated = {"frame": frame, "frame_x": x, "frame_y": y}
    assert record["slide"].items() >= stated.items()
    content, tissue = outline(tmp_path)
    assert content["fseg"] == stated
    y0, x0, y1, x1 = np.array(TISSUE) + np.array(CORNER * 2)
    found = np.array(tissue.bounds)
    assert np.abs(found - (x0 - x, y0 - y, x1 - x, y1 - y)).max() <= 8  # a pixel of the mask


def test_outlines_come_back_in_their_own_frame_alone(scan: Path, tmp_path: Path) -> None:
    path = tmp_path / "scan.tissue.geojson"
    with open_slide(scan) as slide, open_slide(scan, frame="canvas") as canvas:
        write_tissue_files(slide, tmp_path)
        mask = load_tissue(path, slide).crop(0, 0, 600, 800, MPP)
        assert mask[150:450, 230:650].all() and not mask[:100].any()
        with pytest.raises(InputError, match=r"count from x = 701, y = 1003 .* --frame bounds"):
            load_tissue(path, canvas)
        content = json.loads(path.read_text())
        del content["fseg"]  # as QuPath writes it
        path.write_text(json.dumps(content))
        assert load_tissue(path, slide).crop(0, 0, 600, 800, MPP)[150:450, 230:650].all()


def test_a_mask_of_the_canvas_is_told_from_one_of_the_scan(scan: Path, tmp_path: Path) -> None:
    Image.new("L", (400, 300), 255).save(tmp_path / "scan.png")
    Image.new("L", (500, 300), 255).save(tmp_path / "canvas.png")
    with open_slide(scan) as slide, open_slide(scan, frame="canvas") as canvas:
        assert load_tissue(tmp_path / "scan.png", slide).mask.shape == (300, 400)
        assert load_tissue(tmp_path / "canvas.png", canvas).mask.shape == (300, 500)
        with pytest.raises(
            InputError, match=r"does not have the shape of scan\.scn, 800 × 600; .*--frame canvas"
        ):
            load_tissue(tmp_path / "canvas.png", slide)


def test_a_record_keeps_the_frame_and_an_old_one_is_of_the_canvas(scan: Path) -> None:
    with open_slide(scan) as slide:
        facts = slide_facts(slide)
    assert (facts.frame, facts.origin) == ("bounds", CORNER)
    content = json.loads(json.dumps(facts.to_json()))
    assert SlideFacts.from_json(content) == facts
    for name in facts.frame_to_json():
        del content[name]
    assert SlideFacts.from_json(content).frame_to_json() == {"frame": "canvas", "frame_x": 0, "frame_y": 0}
    with pytest.raises(ValueError, match="frame cannot be"):
        SlideFacts.from_json(content | {"frame": "glass"})
