"""Scans on a larger canvas: what is read of them, and what coordinates count from."""

import json
from pathlib import Path

import numpy as np
import openslide
import pytest
import shapely
import tifffile
from leica import MPP, write_leica
from mirax import write_mirax
from PIL import Image
from scipy import ndimage

from fseg_jax.errors import InputError
from fseg_jax.pipeline.slide_facts import SlideFacts, slide_facts
from fseg_jax.pipeline.tissue_files import write_tissue_files
from fseg_jax.slides.reader import open_slide, read_batches
from fseg_jax.slides.tissue import find_tissue, load_tissue, take_whole_slide
from fseg_jax.slides.tissue_segmentation import segment_tissue

pytestmark = pytest.mark.smoke

CANVAS = (2300, 2400)
CORNER = (1003, 701)  # no multiples of what a level is reduced by
TISSUE = (120, 200, 480, 680)  # y0, x0, y1, x1 in the scan
RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, (600, 800, 3), np.uint8)


def keep_tiles(path: Path, written: np.ndarray) -> None:
    """Leave tiles of a TIFF's first page out, as if they had never been written."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        page = tiff.pages[0]
        for tag, values in (("TileOffsets", page.dataoffsets), ("TileByteCounts", page.databytecounts)):
            page.tags[tag].overwrite([int(v) * k for v, k in zip(values, written.ravel(), strict=True)])


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
    written = np.zeros((8, 10), bool)
    written[2:6, 3:9] = True
    keep_tiles(path, written)
    with open_slide(path) as slide:
        assert (slide.frame, slide.origin) == ("bounds", (256, 384))
        np.testing.assert_array_equal(slide.read(0, 0, 512, 768, MPP), picture[256:768, 384:1152])
        (batch,) = [images for _, images in read_batches(slide, [(5, 7, 300, 600)], MPP, batch=1, threads=1)]
        np.testing.assert_array_equal(batch[0], picture[261:561, 391:991])
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


@pytest.mark.parametrize("properties", [{"tissue_id": 0}, {"classification": "Fold"}])
def test_outlines_of_programs_that_count_as_openslide_does_are_of_the_canvas(
    properties: dict, scan: Path, tmp_path: Path
) -> None:
    y0, x0, y1, x1 = np.array(TISSUE) + np.array(CORNER * 2)
    polygon = json.loads(shapely.to_geojson(shapely.box(x0, y0, x1, y1)))
    feature = {"type": "Feature", "geometry": polygon, "properties": properties}
    path = tmp_path / "scan.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    with open_slide(scan, frame="canvas") as slide:
        mask = load_tissue(path, slide).crop(*CORNER, 600, 800, MPP)
        assert mask[150:450, 230:650].all() and not mask[:100].any()
    with (
        open_slide(scan) as slide,
        pytest.raises(InputError, match=r"scan\.geojson: .*corner of the canvas .*--frame canvas"),
    ):
        load_tissue(path, slide)


def test_a_mask_of_the_canvas_is_told_from_one_of_the_scan(scan: Path, tmp_path: Path) -> None:
    Image.new("L", (400, 300), 255).save(tmp_path / "scan.png")
    Image.new("L", (240, 230), 255).save(tmp_path / "canvas.png")
    with open_slide(scan) as slide, open_slide(scan, frame="canvas") as canvas:
        assert load_tissue(tmp_path / "scan.png", slide).mask.shape == (300, 400)
        assert load_tissue(tmp_path / "canvas.png", canvas).mask.shape == (230, 240)
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


SECOND = (1803, 1741)  # the corner of a scan of 400 × 300 pixels
GLASS, STAINED = (214, 214, 216), (225, 130, 180)


def draw_glass(height: int, width: int, tissue: tuple[int, int, int, int]) -> np.ndarray:
    """Draw glass far darker than white, and on it tissue, at (y0, x0, y1, x1)."""
    scan = np.full((height, width, 3), GLASS, float)
    y0, x0, y1, x1 = tissue
    scan[y0:y1, x0:x1] = STAINED
    scan[y0:y1, x0:x1] += RANDOM.normal(0, 8, (y1 - y0, x1 - x0, 1))
    return (scan + RANDOM.normal(0, 1, (height, width, 1))).round().clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def two_scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans, the tissue of the first cut by its edge: most of what bounds them was never scanned."""
    path = tmp_path_factory.mktemp("two") / "two.scn"
    first = draw_glass(800, 1000, (200, 400, 800, 1000))
    second = draw_glass(400, 300, (100, 100, 300, 220))
    write_leica(path, CANVAS, [(CORNER, first), (SECOND, second)])
    return path


def mark_scans(shape: tuple[int, int], origin: tuple[int, int], margin: int = 0) -> np.ndarray:
    marked = np.zeros(shape, bool)
    for corner, height, width in ((CORNER, 800, 1000), (SECOND, 400, 300)):
        y, x = corner[0] - origin[0], corner[1] - origin[1]
        rows = slice(max(0, y - margin), y + height + margin)
        marked[rows, max(0, x - margin) : x + width + margin] = True
    return marked


@pytest.mark.parametrize("frame", ["bounds", "canvas"])
def test_what_was_never_scanned_is_no_tissue_no_glass_and_no_area(frame: str, two_scans: Path) -> None:
    with open_slide(two_scans, frame=frame) as slide:
        shape = (slide.height, slide.width)
        scanned = mark_scans(shape, slide.origin)
        found = slide.read_scanned(MPP)
        assert found is not None
        np.testing.assert_array_equal(found, scanned)
        whole, tissue = take_whole_slide(slide), find_tissue(slide)
        grown = mark_scans(shape, slide.origin, 16)  # two pixels of the mask
    for mask in (whole.crop(0, 0, *shape, MPP), tissue.crop(0, 0, *shape, MPP)):
        assert not (mask & ~grown).any()
    area = np.count_nonzero(scanned) * MPP**2
    assert np.count_nonzero(whole.mask) * whole.mpp**2 == pytest.approx(area, rel=0.02)
    assert whole.fraction == 1
    truth = 600 * 600 + 200 * 120
    assert np.count_nonzero(tissue.mask) * tissue.mpp**2 == pytest.approx(truth * MPP**2, rel=0.04)
    assert tissue.fraction == pytest.approx(truth * MPP**2 / area, rel=0.04)


def test_glass_is_the_same_whatever_colour_stands_for_what_was_never_scanned() -> None:
    """The glass of two pictures that differ only in what was never scanned, which is four fifths of them."""
    picture = draw_glass(500, 600, (60, 40, 160, 140))
    scanned = np.zeros((500, 600), bool)
    scanned[:200, :300] = True
    masks = []
    for colour in ((255, 255, 255), (0, 0, 0), (70, 120, 30)):
        picture[~scanned] = colour
        masks.append(segment_tissue(picture, 4.0, scanned))
    assert np.abs(masks[0].glass - GLASS).max() < 2
    truth = np.zeros((500, 600), bool)
    truth[60:160, 40:140] = True
    assert (masks[0].tissue & truth).sum() / (masks[0].tissue | truth).sum() > 0.95
    for other in masks[1:]:
        for mask, same in zip(masks[0], other, strict=True):
            np.testing.assert_array_equal(mask, same)


def test_a_tiff_that_openslide_does_not_read_has_the_bounds_that_it_would_have(tmp_path: Path) -> None:
    """One of two scenes of like size, which tifffile reads, as it does whatever is at an address."""
    picture = np.concatenate([NOISE[:512], NOISE[:512, :224]], axis=1)
    options = {"tile": (128, 128), "photometric": "rgb", "compression": "adobe_deflate", "metadata": None}
    options |= {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    path = tmp_path / "two.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(picture, **options)
        tiff.write(picture[:500, :1000], **options)
    written = np.zeros((4, 8), bool)
    written[1:, 2:5] = written[1:3, 6] = True
    keep_tiles(path, written)
    scanned = np.kron(written, np.ones((128, 128), bool))[128:, 256:896]
    with open_slide(path) as slide:
        assert (slide.format, slide.frame, slide.origin) == ("tiff", "bounds", (128, 256))
        read = slide.read(0, 0, 384, 640, MPP)
        np.testing.assert_array_equal(read[scanned], picture[128:, 256:896][scanned])
        np.testing.assert_array_equal(slide.read_scanned(MPP), scanned)
        (batch,) = [images for _, images in read_batches(slide, [(5, 7, 300, 600)], MPP, batch=1, threads=1)]
        np.testing.assert_array_equal(batch[0], read[5:305, 7:607])
    with open_slide(path, frame="canvas") as slide:
        assert (slide.height, slide.width) == (512, 1024)


@pytest.mark.parametrize("suffix", [".ome.tif", ".svs", ".tif"])
def test_tiles_that_were_never_written_were_never_scanned(suffix: str, tmp_path: Path) -> None:
    """Read by tifffile, and by OpenSlide with and without bounds."""
    path = tmp_path / f"gaps{suffix}"
    description = {".svs": "Aperio Image Library v1.0\n640x512 (128x128) JPEG/RGB|AppMag = 20|MPP = 0.5"}
    options = {"photometric": "rgb", "tile": (128, 128), "compression": "adobe_deflate"}
    if suffix == ".ome.tif":
        metadata = {"axes": "YXS", "PhysicalSizeX": MPP, "PhysicalSizeY": MPP}
        tifffile.imwrite(path, NOISE[:512, :640], metadata=metadata, **options)
    else:
        options |= {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER", "metadata": None}
        tifffile.imwrite(path, NOISE[:512, :640], description=description.get(suffix), **options)
    written = np.ones((4, 5), bool)
    written[:, 0] = written[1, 2] = False
    keep_tiles(path, written)
    with open_slide(path) as slide:
        begin = 128 if suffix == ".tif" else 0  # of OpenSlide's bounds
        assert (slide.height, slide.width) == (512, 640 - begin)
        expected = np.kron(written, np.ones((128, 128), bool))[:, begin:]
        np.testing.assert_array_equal(slide.read_scanned(MPP), expected)
        np.testing.assert_array_equal(slide.read_scanned(4 * MPP), expected[2::4, 2::4])
        assert (slide.read(0, 0, *expected.shape, MPP)[~expected] == 255).all()


def test_a_mirax_slide_is_the_images_that_were_taken(tmp_path: Path) -> None:
    places = [(row, column) for row in range(3, 7) for column in range(5, 12) if (row, column) != (4, 8)]
    images = {place: RANDOM.integers(0, 256, (64, 64, 3), np.uint8) for place in places}
    write_mirax(tmp_path / "a.mrxs", (12, 16), images)
    picture, taken = np.full((4 * 64, 7 * 64, 3), 255, np.uint8), np.zeros((4 * 64, 7 * 64), bool)
    for (row, column), image in images.items():
        box = np.s_[(row - 3) * 64 : (row - 2) * 64, (column - 5) * 64 : (column - 4) * 64]
        picture[box], taken[box] = image, True
    with open_slide(tmp_path / "a.mrxs") as slide:
        assert (slide.height, slide.width, slide.origin) == (*taken.shape, (3 * 64, 5 * 64))
        for down in (1, 2, 4):
            height, width = (size // down for size in taken.shape)
            half = picture.reshape(height, down, width, down, 3).mean((1, 3))
            read = slide.read(0, 0, height, width, down * MPP)
            assert np.abs(read - half).max() <= 0.5
            np.testing.assert_array_equal(slide.read_scanned(down * MPP), taken[::down, ::down])


def test_seams_between_overlapping_images_are_no_gaps(tmp_path: Path) -> None:
    rows, columns = np.mgrid[3:17, 5:17].reshape(2, -1)
    image = np.full((64, 64, 3), 230, np.uint8)
    taken = {(int(y), int(x)): image for y, x in zip(rows, columns, strict=True)}
    for place in [(y, x) for y in range(8, 11) for x in range(9, 12)]:
        del taken[place]
    write_mirax(tmp_path / "a.mrxs", (24, 24), taken, overlap=3)
    with open_slide(tmp_path / "a.mrxs") as slide:
        scanned = slide.read_scanned(4 * MPP)
        whole = take_whole_slide(slide)
    assert scanned is not None
    _, gaps = ndimage.label(~scanned[1:-1, 1:-1])
    assert gaps == 1 and np.count_nonzero(~scanned) * 16 == pytest.approx((3 * 61) ** 2, rel=0.1)
    assert whole.fraction == 1


def test_a_file_that_holds_all_its_pixels_is_not_searched_for_gaps(noise: Path, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "whole.tif", NOISE, tile=(128, 128), photometric="rgb")
    for path in (noise, tmp_path / "whole.tif"):
        with open_slide(path, MPP) as slide:
            assert slide.read_scanned(4 * MPP) is None
