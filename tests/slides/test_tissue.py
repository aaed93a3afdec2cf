"""The tissue mask on synthetic slides whose tissue is known, on real ones, and as read from files."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage
from skimage import data, draw

from fseg_jax.errors import InputError
from fseg_jax.slides.artefacts import FOLD, INK
from fseg_jax.slides.pixels import HasNoGaps
from fseg_jax.slides.reader import Slide, compute_shape, open_slide, read_thumbnail
from fseg_jax.slides.tissue import Tissue, find_tissue, load_tissue, take_whole_slide
from fseg_jax.slides.tissue_segmentation import segment_tissue

DATA = os.environ.get("FSEG_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="FSEG_DATA is not set to a folder with slides/")
MPP = 8.0
GREEN, BLUE, BLACK, RED = (30, 140, 70), (40, 70, 180), (25, 25, 30), (205, 25, 45)
STAIN = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])  # haematoxylin, eosin, DAB


def paint_tissue(
    where: np.ndarray, stains: tuple[float, float, float], glass: tuple[int, int, int] = (243, 243, 243)
) -> np.ndarray:
    """Stained, textured tissue on noisy glass."""
    random = np.random.default_rng(3)
    texture = np.exp(ndimage.gaussian_filter(random.normal(size=(*where.shape, 3)), (1.5, 1.5, 0)) * 1.5)
    density = (np.array(stains) * texture) @ STAIN * where[..., None]
    image = np.array(glass) * 10**-density + random.normal(size=(*where.shape, 3)) * 1.5
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def make_disc(shape: tuple[int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[draw.disk(centre, radius, shape=shape)] = True
    return mask


def measure_overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


SHAPE = (300, 400)
ISLANDS = make_disc(SHAPE, (110, 110), 80) | make_disc(SHAPE, (180, 300), 60)
HE = (0.15, 0.25, 0.0)


@pytest.mark.parametrize(
    "stains", [HE, (0.25, 0.05, 0.0), (0.1, 0.0, 0.4), (0.02, 0.05, 0.0)], ids=["h&e", "blue", "ihc", "faint"]
)
@pytest.mark.parametrize(
    "glass", [(243, 243, 243), (255, 255, 255), (235, 228, 220), (228, 232, 238)], ids=str
)
def test_known_tissue_on_glass_of_any_tint(
    stains: tuple[float, float, float], glass: tuple[int, int, int]
) -> None:
    mask = segment_tissue(paint_tissue(ISLANDS, stains, glass), MPP).tissue
    assert mask.dtype == bool and mask.shape == SHAPE
    assert measure_overlap(mask, ISLANDS) > 0.93


@pytest.mark.parametrize("mpp", [2.0, 4.0, 8.0, 16.0])
def test_thresholds_are_in_micrometres(mpp: float) -> None:
    """The same slide at another resolution: what is dropped and what is filled stays so."""
    shape = (round(2400 / mpp), round(3200 / mpp))
    body = make_disc(shape, (1200 / mpp, 1000 / mpp), 800 / mpp)
    lumen = make_disc(shape, (1000 / mpp, 900 / mpp), 160 / mpp)  # 80,000 µm²
    gap = make_disc(shape, (1500 / mpp, 1200 / mpp), 15 / mpp)  # narrower than a few tokens
    speck = make_disc(shape, (600 / mpp, 2400 / mpp), 35 / mpp)  # 3,800 µm²
    piece = make_disc(shape, (1500 / mpp, 2500 / mpp), 120 / mpp)  # 45,000 µm²
    mask = segment_tissue(paint_tissue((body & ~lumen & ~gap) | speck | piece, HE), mpp).tissue
    inner = ndimage.distance_transform_edt(lumen) * mpp > 70
    assert not mask[inner].any()
    assert mask[gap].all()
    assert not mask[speck].any()
    assert mask[piece].mean() > 0.9
    assert measure_overlap(mask, (body & ~lumen) | piece) > 0.93


def draw_ink(
    image: np.ndarray, colour: tuple[int, int, int], points: list[tuple[int, int]], width: int
) -> np.ndarray:
    """Draw translucent ink over an image; also where it lies."""
    size = (image.shape[1], image.shape[0])
    layer = Image.new("RGB", size, "white")
    ImageDraw.Draw(layer).line(points, fill=colour, width=width, joint="curve")
    layer = np.asarray(layer.filter(ImageFilter.GaussianBlur(1))).astype(float) / 255
    return (image * layer).astype(np.uint8), (layer < 0.7).any(axis=-1)


@pytest.mark.parametrize("colour", [GREEN, BLUE, BLACK, RED], ids=["green", "blue", "black", "red"])
@pytest.mark.parametrize("stains", [HE, (0.1, 0.0, 0.4)], ids=["h&e", "ihc"])
def test_pen_marks_are_no_tissue(colour: tuple[int, int, int], stains: tuple[float, float, float]) -> None:
    image, ink = draw_ink(paint_tissue(ISLANDS, stains), colour, [(10, 290), (200, 200), (215, 20)], 14)
    image, over = draw_ink(image, colour, [(20, 120), (220, 90)], 14)  # across the first island
    mask = segment_tissue(image, MPP).tissue
    assert not mask[(ink | over) & ~ISLANDS].any()
    assert mask[over & ISLANDS].mean() < 0.1
    far = ISLANDS & (ndimage.distance_transform_edt(~(ink | over)) * MPP > 60)
    assert mask[far].mean() > 0.95


def test_black_borders_are_no_tissue() -> None:
    image = paint_tissue(ISLANDS, HE)
    image[:25], image[:, -12:] = 0, (12, 10, 14)
    mask = segment_tissue(image, MPP).tissue
    assert not mask[:25].any() and not mask[:, -12:].any()
    assert measure_overlap(mask[35:, :-25], ISLANDS[35:, :-25]) > 0.93
    assert not segment_tissue(image, MPP).number_artefacts().any()  # nor ink


def test_artefacts_are_numbered_ink_beside_tissue_and_folds_on_it() -> None:
    image = paint_tissue(make_disc(SHAPE, (150, 150), 120), (0.1, 0.2, 0.0)).astype(float)
    fold = np.zeros(SHAPE, bool)
    fold[145:153, 70:230] = True
    image[fold] = 243 * (image[fold] / 243) ** 2.6  # so many times the density
    image, ink = draw_ink(image.astype(np.uint8), GREEN, [(330, 20), (330, 280)], 14)
    masks = segment_tissue(image, MPP)
    numbers = masks.number_artefacts()
    assert numbers.dtype == np.uint8 and numbers.shape == SHAPE and set(np.unique(numbers)) == {0, INK, FOLD}
    assert (numbers[ink] == INK).mean() > 0.9 and not masks.tissue[numbers == INK].any()
    assert measure_overlap(numbers == FOLD, fold) > 0.5 and masks.tissue[numbers == FOLD].all()


def test_what_a_scanner_leaves_out_is_white_beside_tinted_glass() -> None:
    image = paint_tissue(ISLANDS, HE, (232, 225, 228))
    image[:, 330:] = 255
    image[:40] = 255
    kept = ISLANDS.copy()
    kept[:, 330:] = kept[:40] = False
    assert measure_overlap(segment_tissue(image, MPP).tissue, kept) > 0.93


def test_an_uneven_lamp_and_a_grey_shadow_are_no_tissue() -> None:
    image = paint_tissue(ISLANDS, HE).astype(float)
    image *= np.linspace(0.97, 1.0, SHAPE[1])[None, :, None]
    image[260:290, 20:200] *= 0.93  # a smear without colour
    assert measure_overlap(segment_tissue(image.astype(np.uint8), MPP).tissue, ISLANDS) > 0.93


@pytest.mark.parametrize("glass", [(255, 255, 255), (243, 243, 243), (236, 230, 226)], ids=str)
def test_an_empty_slide_has_no_tissue(glass: tuple[int, int, int]) -> None:
    assert not segment_tissue(paint_tissue(np.zeros(SHAPE, bool), HE, glass), MPP).tissue.any()


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (40, 40)])
def test_small_images_of_nothing_but_tissue(size: tuple[int, int]) -> None:
    assert segment_tissue(paint_tissue(np.ones(size, bool), HE), 1.0).tissue.mean() > 0.95


def test_the_demo_image_is_nearly_all_tissue(tmp_path: Path) -> None:
    path = tmp_path / "ihc.png"
    Image.fromarray(data.immunohistochemistry()).save(path)
    with open_slide(path, 1.0) as slide:
        tissue = find_tissue(slide)
    assert tissue.fraction > 0.95
    assert tissue.mask.shape == (256, 256) and tissue.mpp == 2.0


# Real slides. The regions were read off the pictures: level-0 boxes (y, x, height, width) of tissue, glass.

REGIONS = {
    "CMU-1-Small-Region.svs": (
        None,
        [(1500, 950, 300, 200), (2700, 600, 150, 200), (850, 950, 200, 150)],
        [(100, 100, 600, 500), (1500, 100, 1200, 350), (100, 1700, 600, 400), (2200, 2000, 300, 150)],
    ),
    "TCGA-CR-7395-01A-01-TS1.svs": (
        0.25,
        [(1500, 700, 900, 900), (2600, 3000, 500, 800)],
        [(50, 50, 400, 1200), (3000, 50, 500, 500), (100, 4000, 400, 400)],
    ),
}


@needs_data
@pytest.mark.parametrize("inked", [False, True])
@pytest.mark.parametrize("name", REGIONS)
def test_real_slides(name: str, inked: bool) -> None:
    mpp, tissue_boxes, glass_boxes = REGIONS[name]
    with open_slide(Path(DATA or "", "slides", name), mpp) as slide:
        if inked:
            image, at = read_thumbnail(slide, 600)
            y, x, h, w = (round(v * slide.mpp / at) for v in glass_boxes[1])
            for i, colour in enumerate((GREEN, BLUE, BLACK, RED)):
                row = y + (2 * i + 1) * h // 8
                image, _ = draw_ink(image, colour, [(x, row), (x + w, row)], round(60 / at))
            tissue = Tissue(segment_tissue(image, at).tissue, at)
        else:
            tissue = find_tissue(slide)
        for box in tissue_boxes:
            assert tissue.crop(*box, slide.mpp).mean() > 0.98, box
        for box in glass_boxes:
            assert tissue.crop(*box, slide.mpp).mean() < 0.02, box


@needs_data
@pytest.mark.parametrize("folder", ["bcss_tumour/images", "camelyon/images", "brecahad/images"])
def test_fields_inside_tissue_have_no_ink(folder: str) -> None:
    """Fields that were chosen for their tissue: no stain of theirs may pass for a pen's, nor most glass."""
    for path in sorted(Path(DATA or "", folder).iterdir())[:8]:
        with open_slide(path, 0.25) as slide:
            assert find_tissue(slide).fraction > 0.25, path.name


# Masks in slide coordinates


def test_crop_interpolates_between_the_masks_pixels() -> None:
    mask = np.random.default_rng(0).random((30, 40)) > 0.5
    tissue = Tissue(mask, 8.0)
    np.testing.assert_array_equal(tissue.crop(0, 0, 30, 40, 8.0), mask)
    grid = np.mgrid[24:72, 16:96]
    share = ndimage.map_coordinates(np.float64(mask), (grid + 0.5) / 8 - 0.5, order=1, mode="nearest")
    crop = tissue.crop(24, 16, 48, 80, 1.0)
    decided = np.abs(share - 0.5) > 1e-5
    np.testing.assert_array_equal(crop[decided], share[decided] > 0.5)
    np.testing.assert_array_equal(tissue.crop(1, 2, 9, 9, 24.0), mask[4:31:3, 7:34:3])
    past = tissue.crop(-5, -6, 40, 52, 8.0)
    np.testing.assert_array_equal(past[5:35, 6:46], mask)
    assert past.sum() == mask.sum()
    assert not tissue.crop(300, 0, 5, 5, 8.0).any()
    full = Tissue(np.ones_like(mask), tissue.mpp)
    np.testing.assert_array_equal(full.crop(-5, -6, 40, 52, 8.0), np.pad(full.mask, ((5, 5), (6, 6))))
    assert tissue.fraction == mask.mean()


def test_crop_artefacts_takes_the_nearest_pixel_and_none_past_the_slide() -> None:
    random = np.random.default_rng(0)
    kinds = random.integers(0, 5, (30, 40), np.uint8)
    tissue = Tissue(random.random((30, 40)) > 0.5, 8.0, kinds)
    np.testing.assert_array_equal(tissue.crop_artefacts(0, 0, 30, 40, 8.0), kinds)
    np.testing.assert_array_equal(
        tissue.crop_artefacts(24, 16, 48, 80, 1.0), kinds.repeat(8, 0).repeat(8, 1)[24:72, 16:96]
    )
    past = tissue.crop_artefacts(-5, -6, 40, 52, 8.0)
    np.testing.assert_array_equal(past[5:35, 6:46], kinds)
    assert past.sum() == kinds.sum()
    np.testing.assert_array_equal(tissue.drop_artefacts().mask, tissue.mask & (kinds == 0))
    unknown = Tissue(tissue.mask, 8.0)
    assert not unknown.crop_artefacts(0, 0, 30, 40, 8.0).any() and unknown.drop_artefacts() is unknown


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    path = tmp_path / "field.png"
    Image.fromarray(paint_tissue(make_disc((600, 800), (300, 400), 200), HE)).save(path)
    return open_slide(path, 0.5)


def test_whole_slide(slide: Slide) -> None:
    tissue = take_whole_slide(slide)
    assert tissue.fraction == 1 and tissue.mask.size < 600 * 800
    assert tissue.crop(0, 0, 600, 800, 0.5).all()
    assert tissue.mask.shape == compute_shape(slide, tissue.mpp)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_mask_images(mode: str, suffix: str, slide: Slide, tmp_path: Path) -> None:
    wanted = make_disc((150, 200), (60, 90), 40)
    if mode == "I;16":
        image = Image.fromarray(wanted.astype(np.uint16) * 3)
    elif mode == "P":
        image = Image.fromarray(wanted.astype(np.uint8) * 2)
        image.putpalette([0] * 768)  # labels, whatever their colours
    elif mode == "RGBA":
        image = Image.fromarray(wanted.astype(np.uint8) * 255).convert("RGBA")  # opaque black is no tissue
    elif mode == "RGB":
        rgb = np.zeros((150, 200, 3), np.uint8)
        rgb[wanted] = (0, 0, 255)
        image = Image.fromarray(rgb)
    else:
        image = Image.fromarray(wanted.astype(np.uint8) * 255).convert(mode)
    path = tmp_path / f"mask{suffix}"
    image.save(path)
    tissue = load_tissue(path, slide)
    assert tissue.mpp == 2.0
    np.testing.assert_array_equal(tissue.mask, wanted)


def test_a_mask_that_is_min_is_white_marks_what_one_that_is_min_is_black_does(
    slide: Slide, tmp_path: Path
) -> None:
    wanted = make_disc((150, 200), (60, 90), 40)
    for photometric in ("miniswhite", "minisblack"):
        path = tmp_path / f"{photometric}.tif"
        tifffile.imwrite(path, wanted.astype(np.uint8) * 255, photometric=photometric)
        np.testing.assert_array_equal(load_tissue(path, slide).mask, wanted)


def test_the_noise_of_a_jpeg_is_no_tissue(slide: Slide, tmp_path: Path) -> None:
    wanted = make_disc((150, 200), (60, 90), 40)
    Image.fromarray(wanted.astype(np.uint8) * 255).save(tmp_path / "mask.jpg", quality=40)
    assert (load_tissue(tmp_path / "mask.jpg", slide).mask != wanted).mean() < 0.005


def test_a_mask_may_be_off_by_a_rounding_but_not_by_more(slide: Slide, tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.full((75, 101), 255, np.uint8)).save(path)
    assert load_tissue(path, slide).crop(0, 0, 600, 800, 0.5).all()
    Image.fromarray(np.full((75, 110), 255, np.uint8)).save(path)
    with pytest.raises(InputError, match=r"mask\.png: a mask of 110 × 75 .* field\.png, 800 × 600"):
        load_tissue(path, slide)


SQUARE = [[100, 50], [500, 50], [500, 450], [100, 450], [100, 50]]
INNER = [[200, 150], [300, 150], [300, 250], [200, 250], [200, 150]]
FAR = [[600, 500], [700, 500], [700, 590], [600, 590], [600, 500]]
POLYGON = {"type": "Polygon", "coordinates": [SQUARE, INNER]}
MULTI = {"type": "MultiPolygon", "coordinates": [[SQUARE, INNER], [FAR]]}


def make_feature(geometry: dict | None) -> dict:
    return {"type": "Feature", "properties": {"objectType": "annotation"}, "geometry": geometry}


def make_expected_mask(far: bool) -> np.ndarray:
    wanted = np.zeros((600, 800), bool)
    wanted[50:450, 100:500] = True
    wanted[150:250, 200:300] = False
    wanted[500:590, 600:700] = far
    return wanted


@pytest.mark.parametrize(
    ("content", "far"),
    [
        (POLYGON, False),
        (MULTI, True),
        (make_feature(POLYGON), False),
        ({"type": "FeatureCollection", "features": [make_feature(None), make_feature(MULTI)]}, True),
        ([make_feature(POLYGON), make_feature({"type": "Point", "coordinates": [3, 4]})], False),
        ({"type": "GeometryCollection", "geometries": [MULTI]}, True),
    ],
    ids=["polygon", "multipolygon", "feature", "collection", "list", "geometries"],
)
def test_geojson(content: object, far: bool, slide: Slide, tmp_path: Path) -> None:
    path = tmp_path / "drawn.geojson"
    path.write_text(json.dumps(content), "utf-8")
    tissue = load_tissue(path, slide)
    np.testing.assert_array_equal(tissue.crop(0, 0, 600, 800, 0.5), make_expected_mask(far))
    # At another resolution the outline stays where it is on the slide.
    np.testing.assert_array_equal(tissue.crop(0, 0, 300, 400, 1.0), make_expected_mask(far)[1::2, 1::2])


def test_geojson_on_a_slide_too_large_for_its_own_pixels(tmp_path: Path, slide: Slide) -> None:
    class LargePixels(HasNoGaps):
        format, shapes, mpp, origin, series = "image", [(60_000, 90_000)], None, None, None

    path = tmp_path / "drawn.json"
    corners = [[30_000, 15_000], [60_000, 15_000], [60_000, 45_000], [30_000, 45_000], [30_000, 15_000]]
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [corners]}), "utf-8")
    tissue = load_tissue(path, Slide(Path("large.svs"), LargePixels(), 0.25))  # type: ignore[arg-type]
    assert max(tissue.mask.shape) == 8192
    assert tissue.fraction == pytest.approx(1 / 6, abs=1e-3)
    assert tissue.crop(3750 + 5, 7500 + 5, 7490, 7490, 1.0).all()
    assert not tissue.crop(3750 - 100, 7500, 95, 7500, 1.0).any()


def test_a_crossed_outline_is_repaired(slide: Slide, tmp_path: Path) -> None:
    path = tmp_path / "drawn.json"
    bow = [[100, 100], [300, 300], [300, 100], [100, 300], [100, 100]]
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [bow]}), "utf-8")
    tissue = load_tissue(path, slide)
    assert tissue.mask[200, 110] and tissue.mask[200, 290] and not tissue.mask[110, 200]


BAD = {
    "missing.png": (None, "no such file"),
    "text.png": ("no picture", "a mask image or GeoJSON"),
    "empty.png": ("", "a mask image or GeoJSON"),
    "broken.geojson": ('{"type": "FeatureColl', "not valid GeoJSON"),
    "number.json": ("3", "not valid GeoJSON"),
    "untyped.json": ("{}", "not valid GeoJSON"),
    "points.json": ('{"type": "Point", "coordinates": [1, 2]}', "no Polygon"),
    "none.json": ('{"type": "FeatureCollection", "features": []}', "no Polygon"),
    "shallow.json": ('{"type": "Polygon", "coordinates": [[1, 2]]}', "not valid GeoJSON"),
    "words.json": ('{"type": "Polygon", "coordinates": [[["a", "b"], ["c", "d"], ["e", "f"]]]}', "not valid"),
    "nan.json": ('{"type": "Polygon", "coordinates": [[[NaN, 1], [2, 3], [3, 1], [NaN, 1]]]}', "GeoJSON"),
    "deep.json": ("[" * 100_000, "nested too deep"),
    "far.json": (
        '{"type": "Polygon", "coordinates": [[[0, 0], [1e12, 0], [1e12, 1e12], [0, 0]]]}',
        "not all within 1e+09 level-0 pixels",
    ),
    "infinite.json": (
        '{"type": "Polygon", "coordinates": [[[0, 0], [1e400, 0], [9, 9], [0, 0]]]}',
        "not all within 1e+09",
    ),
    "digits.json": (
        '{"type": "Polygon", "coordinates": [[[0, 0], [' + "9" * 400 + ", 0], [9, 9], [0, 0]]]}",
        "no rings of pairs of numbers",
    ),
    "text.json": (
        '{"type": "Polygon", "coordinates": [[["1", "1"], ["9", "1"], ["9", "9"], ["1", "1"]]]}',
        "no rings of pairs of numbers",
    ),
    "mixed.json": (
        '{"type": "Polygon", "coordinates": [[[1, 1, 1], [9, 1], [9, 9], [1, 1]]]}',
        "no rings of pairs of numbers",
    ),
    "null point.json": ('{"type": "Polygon", "coordinates": [[null, [9, 1], [9, 9]]]}', "no rings of pairs"),
    "rings.json": ('{"type": "Polygon", "coordinates": {"a": 1}}', "coordinates are"),
    "no ring.json": ('{"type": "Polygon", "coordinates": []}', "none with an area"),
    "glass.json": (
        '{"type": "Feature", "properties": {"classification": {"name": "Glass"}}, "geometry": '
        '{"type": "Polygon", "coordinates": [[[1, 1], [9, 1], [9, 9], [1, 1]]]}}',
        "none with an area, but for background, glass",
    ),
    "line.json": ('{"type": "Polygon", "coordinates": [[[1, 1], [9, 9], [1, 1]]]}', "none with an area"),
    "flat multi.json": (
        '{"type": "MultiPolygon", "coordinates": [[[1, 1], [9, 1], [9, 9], [1, 1]]]}',
        "no rings of pairs",
    ),
    "features.json": ('{"type": "FeatureCollection", "features": {"a": 1}}', "features are"),
    "no features.json": ('{"type": "FeatureCollection"}', "has no features"),
    "no geometry.json": ('{"type": "Feature"}', "has no geometry"),
    "list of text.json": ('["a"]', "has no type"),
    "list type.json": ('{"type": ["Polygon"]}', "no Polygon"),
    "outside.json": (
        json.dumps(
            {"type": "Polygon", "coordinates": [[[900, 0], [990, 0], [990, 90], [900, 90], [900, 0]]]}
        ),
        "marks no tissue inside field.png",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tissue_files(name: str, slide: Slide, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    content, says = BAD[name]
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as error:
        load_tissue(path, slide)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert says in message
    assert capfd.readouterr() == ("", "")


def test_an_empty_mask_image_is_an_error(slide: Slide, tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(path)
    with pytest.raises(InputError, match=r"marks no tissue inside field\.png"):
        load_tissue(path, slide)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match="a mask image or GeoJSON"):
        load_tissue(path, slide)
