"""Tiles that are decoded here have the pixels that OpenSlide gives."""

import os
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from scipy import ndimage

from fseg_jax.slides import openslide_tiles
from fseg_jax.slides.reader import open_slide, read_batches

DATA = os.environ.get("FSEG_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="FSEG_DATA is not set to a folder with slides/")
HEIGHT, WIDTH = 331, 467
APERIO = f"Aperio Image Library v12\n{WIDTH}x{HEIGHT} |AppMag = 20|MPP = 0.5000"
PER_CM = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER", "metadata": None}


def make_picture() -> np.ndarray:
    noise = np.random.default_rng(7).normal(size=(HEIGHT, WIDTH, 3))
    noise = ndimage.gaussian_filter(noise, (3, 3, 0))
    return np.clip(128 + noise / noise.std() * 55, 0, 255).astype(np.uint8)


PICTURE = make_picture()
JPEG = {"compression": "jpeg", "compressionargs": {"level": 80}, "photometric": "rgb"}
ALIKE = {
    "420.svs": {**JPEG, "subsampling": (2, 2), "description": APERIO},
    "444.svs": {**JPEG, "subsampling": (1, 1), "description": APERIO},
    "422.tif": {**JPEG, "subsampling": (2, 1)},
    "rgb.svs": {
        "compression": "jpeg",
        "compressionargs": {"level": 80, "colorspace": "RGB", "outcolorspace": "RGB"},
        "photometric": "rgb",
        "description": APERIO,
    },
    "33005.svs": {
        "compression": "aperio_jp2000_rgb",
        "compressionargs": {"level": 40},
        "photometric": "rgb",
        "description": APERIO,
    },
    "33003.svs": {
        "compression": "aperio_jp2000_ycbc",
        "compressionargs": {"level": 40},
        "photometric": "ycbcr",
        "description": APERIO,
    },
    "lzw.tif": {"compression": "lzw", "predictor": True, "photometric": "rgb"},
    "deflate.tif": {"compression": "zlib", "photometric": "rgb"},
    "none.tif": {"photometric": "rgb"},
}


def read_by_openslide(path: Path, level: int = 0) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"))


@pytest.mark.parametrize("name", ALIKE)
def test_pixels_are_openslides(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    tifffile.imwrite(path, PICTURE, tile=(64, 96), **PER_CM, **ALIKE[name])
    with open_slide(path) as slide:
        assert slide.format.startswith("openslide/") and 0 in slide._pixels._tiles
        np.testing.assert_array_equal(slide.read(0, 0, HEIGHT, WIDTH, 0.5), read_by_openslide(path))


def test_every_chroma_of_a_jpeg_2000_is_openslides(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    chroma = np.arange(256, dtype=np.uint8)
    for luma in (0, 90, 200):
        pixels = np.full((256, 256, 3), luma, np.uint8)
        pixels[..., 1], pixels[..., 2] = chroma[:, None], chroma
        tifffile.imwrite(
            path,
            pixels,
            tile=(256, 256),
            photometric="ycbcr",
            compression="aperio_jp2000_ycbc",
            compressionargs={"reversible": True},
            description=APERIO,
            **PER_CM,
        )
        with open_slide(path) as slide:
            np.testing.assert_array_equal(slide.read(0, 0, 256, 256, 0.5), read_by_openslide(path))


@pytest.mark.parametrize("name", ["a.tif", "a.svs"])
def test_a_tile_that_was_never_written_is_what_openslide_shows(name: str, tmp_path: Path) -> None:
    """OpenSlide leaves it out, but fills Aperio's from the level above."""
    path = tmp_path / name
    levels = [PICTURE[:330, :466], PICTURE[:330:2, :466:2].copy()]
    options = {"tile": (64, 96), "photometric": "rgb", "compression": "lzw", **PER_CM}
    with tifffile.TiffWriter(path) as writer:
        for level, pixels in enumerate(levels):
            description = APERIO if name == "a.svs" and level == 0 else None
            writer.write(pixels, subfiletype=level, description=description, **options)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for page, number in zip(tiff.pages, (3, 7), strict=True):  # the second from the left of a row
            counts = list(page.databytecounts)
            counts[number] = 0
            page.tags["TileByteCounts"].overwrite(counts)
    boxes = [(0, 288, 64, 96), (128, 96, 37, 96)]
    with open_slide(path) as slide, openslide.OpenSlide(path) as direct:
        for level, (pixels, (y, x, height, width)) in enumerate(zip(levels, boxes, strict=True)):
            shown = np.asarray(direct.read_region((x << level, y << level), level, (width, height)))
            expected = pixels.copy()
            expected[y : y + height, x : x + width] = np.where(shown[..., 3:], shown[..., :3], 255)
            assert (shown[..., 3] == (255 if level and name == "a.svs" else 0)).all()
            np.testing.assert_array_equal(slide._pixels.read(level, 0, 0, *pixels.shape[:2]), expected)


def describe_philips(levels: int) -> str:
    """Describe a slide as Philips does; OpenSlide finds the sizes of levels by their pixels' spacing."""
    data = "PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"
    spacing = 'Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030" PMSVR="IDoubleArray"'
    listed = "".join(
        '<DataObject ObjectType="PixelDataRepresentation">'
        f"<Attribute {spacing}>&quot;{s}&quot; &quot;{s}&quot;</Attribute></DataObject>"
        for s in (0.0005 * 2**level for level in range(levels))
    )
    return (
        '<?xml version="1.0" encoding="UTF-8" ?>\n<DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element="0x1003" PMSVR="IDataObjectArray">'
        '<Array><DataObject ObjectType="DPScannedImage">'
        '<Attribute Name="PIM_DP_IMAGE_TYPE" Group="0x301D" Element="0x1004" PMSVR="IString">WSI</Attribute>'
        f'<Attribute Name="{data}" Group="0x1001" Element="0x8B01" PMSVR="IDataObjectArray">'
        f"<Array>{listed}</Array></Attribute></DataObject></Array></Attribute></DataObject>"
    )


@pytest.mark.parametrize("is_sparse", [False, True])
def test_pages_of_philips_are_padded_to_whole_tiles(is_sparse: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    with tifffile.TiffWriter(path) as writer:
        for level, (height, width) in enumerate(((384, 448), (192, 256), (128, 128))):
            page = PICTURE[:: 2**level, :: 2**level]
            size = height, width
            padding = [(0, max(0, n - side)) for n, side in zip(size, page.shape[:2], strict=True)]
            page = np.pad(page, [*padding, (0, 0)], constant_values=255)[:height, :width]
            extra = {"description": describe_philips(3), "software": "Philips DP v1.0"} if not level else {}
            options = {**JPEG, **extra, "subsampling": (2, 2), "subfiletype": int(level > 0)}
            writer.write(page, tile=(64, 64), metadata=None, **options)
    if is_sparse:
        with tifffile.TiffFile(path, mode="r+b") as tiff:
            for page in tiff.pages[:2]:
                for tag in ("TileOffsets", "TileByteCounts"):
                    values = list(page.tags[tag].value)
                    page.tags[tag].overwrite([0 if i in (1, 5) else value for i, value in enumerate(values)])
    with open_slide(path, 0.5) as slide:
        tiles = slide._pixels._tiles
        assert slide.format == "openslide/philips" and all(level in tiles for level in range(3))
        shapes = slide._pixels.shapes
        assert shapes == [(384, 448), (192, 224), (96, 112)]
        for level, (height, width) in enumerate(shapes):
            seen = slide._pixels.read(level, 0, 0, height, width)
            shown = read_by_openslide(path, level).copy()
            for number in (1, 5) if is_sparse and level < 2 else ():  # black, as what is transparent becomes
                y, x = (64 * at for at in divmod(number, (7, 4)[level]))
                assert not shown[y : y + 64, x : x + 64].any()
                shown[y : y + 64, x : x + 64] = 255
            np.testing.assert_array_equal(seen, shown, strict=True)


def test_a_level_whose_scale_is_no_whole_number_has_its_own_pixels(tmp_path: Path) -> None:
    """OpenSlide would interpolate them, from a corner in whole pixels of level 0."""
    path, coarse = tmp_path / "a.tif", PICTURE[:110, :155].copy()
    options = {"tile": (64, 96), "photometric": "rgb", "compression": "lzw", **PER_CM}
    with tifffile.TiffWriter(path) as writer:
        writer.write(PICTURE, **options)
        writer.write(coarse, subfiletype=1, **options)
    with open_slide(path) as slide:
        assert slide._pixels._slide.level_downsamples[1] == pytest.approx(3.0105, abs=1e-3)
        np.testing.assert_array_equal(slide._pixels.read(1, 20, 30, 70, 90), coarse[20:90, 30:120])


@pytest.mark.parametrize("name", ["420.svs", "lzw.tif"])
def test_a_file_is_parsed_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / name, PICTURE, tile=(64, 64), **PER_CM, **ALIKE[name])
    parsed, parse = [], tifffile.TiffFile.__init__
    monkeypatch.setattr(
        tifffile.TiffFile, "__init__", lambda *args, **options: parsed.append(1) or parse(*args, **options)
    )
    with open_slide(tmp_path / name) as slide:
        assert slide.format.startswith("openslide/") and slide.read_scanned(1.0) is None
        slide.read(0, 0, 100, 100, 0.5)
    assert len(parsed) == 1


@pytest.mark.parametrize("change", ["grey", "two pages of one size"])
def test_what_is_coded_otherwise_is_left_to_openslide(change: str, tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    options = {"tile": (64, 96), "compression": "lzw", "description": APERIO, **PER_CM}
    with tifffile.TiffWriter(path) as writer:
        if change == "grey":
            writer.write(PICTURE[..., 0], photometric="minisblack", **options)
        else:
            writer.write(PICTURE, photometric="rgb", **options)
            writer.write(255 - PICTURE, photometric="rgb", **options)
    with open_slide(path) as slide:
        assert 0 not in slide._pixels._tiles
        np.testing.assert_array_equal(slide._pixels.read(0, 0, 0, HEIGHT, WIDTH), read_by_openslide(path))


def test_a_jpeg_2000_with_fewer_samples_of_chroma_is_known() -> None:
    header = b"\xff\x4f\xff\x51" + bytes(36) + b"\0\3" + b"\7\1\1" + b"\7\2\1" * 2
    assert openslide_tiles._is_subsampled(header)
    assert not openslide_tiles._is_subsampled(header.replace(b"\7\2\1", b"\7\1\1"))


@needs_data
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs"])
def test_real_slides_have_openslides_pixels(name: str) -> None:
    path = Path(DATA or "", "slides", name)
    with open_slide(path, 0.25) as slide, openslide.OpenSlide(path) as direct:
        boxes = [(y, x, 500, 400) for y in (0, 1200, 2400) for x in (0, 700, 1500)]
        for batch, images in read_batches(slide, boxes, 0.25, batch=4, threads=2):
            for (y, x, height, width), image in zip(boxes[batch], images, strict=False):
                theirs = np.asarray(direct.read_region((x, y), 0, (width, height)).convert("RGB"))
                np.testing.assert_array_equal(image, theirs)
