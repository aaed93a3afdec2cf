"""The reader against what wrote the files: tifffile, Pillow, zarr-python, OpenSlide's own reads."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import openslide
import pytest
import tifffile
import zarr
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from benchmarks import make_slide
from fseg_jax.errors import InputError
from fseg_jax.slides import pixels, reader
from fseg_jax.slides.reader import compute_shape, make_picture, open_slide, prefetch_boxes, read_thumbnail

DATA = os.environ.get("FSEG_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="FSEG_DATA is not set to a folder with slides/")
CMU = Path(DATA or "", "slides", "CMU-1-Small-Region.svs")
TCGA = Path(DATA or "", "slides", "TCGA-CR-7395-01A-01-TS1.svs")
OS1 = Path(DATA or "", "slides", "OS-1-detail.ome.tif")

HEIGHT, WIDTH = 331, 467
PER_CM = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}  # 0.5 µm
OME = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}


def make_noise(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(7).normal(size=(height, width, 3))
    noise = ndimage.gaussian_filter(noise, (3, 3, 0))
    return np.clip(128 + noise / noise.std() * 55, 0, 255).astype(np.uint8)


PICTURE = make_noise(HEIGHT, WIDTH)


def halve(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    parts = image[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    return np.floor(parts.mean(axis=(1, 3)) + 0.5).astype(np.uint8)


def write_pyramid(path: Path, **options: object) -> None:
    levels = [PICTURE, halve(PICTURE), halve(halve(PICTURE))]
    with tifffile.TiffWriter(path) as writer:
        for i, level in enumerate(levels):
            extra = {"subifds": 2, "metadata": {"axes": "YXS", **OME}} if i == 0 else {"subfiletype": 1}
            writer.write(level, tile=(64, 96), photometric="rgb", **extra, **options)


def write_zarr(path: Path, version: int, order: str = "tczyx", unit: str | None = "micrometer") -> None:
    """Written with zarr-python; metadata by hand from the NGFF text, as ours reads it by hand too."""
    levels = [PICTURE, halve(PICTURE)]
    group = zarr.open_group(path, mode="w", zarr_format=3 if version == 5 else 2)
    axes = []
    for axis in order:
        kind = {"t": "time", "c": "channel"}.get(axis, "space")
        axes.append({"name": axis, "type": kind} | ({"unit": unit} if kind == "space" and unit else {}))
    datasets = []
    for i, level in enumerate(levels):
        full = level[None, None].transpose([{"t": 0, "z": 1, "y": 2, "x": 3, "c": 4}[a] for a in "tzyxc"])
        full = np.moveaxis(full, range(5), ["tzyxc".index(a) for a in "tzyxc"])
        data = np.einsum(f"tzyxc->{''.join(order) if len(order) == 5 else 'tzyxc'}", full)
        if len(order) == 3:
            data = np.einsum(f"yxc->{order}", level)
        chunks = tuple(64 if a in "yx" else 1 for a in order)
        array = group.create_array(f"level {i}", shape=data.shape, dtype="uint8", chunks=chunks)
        array[...] = data
        scale = [0.5 * 2**i if a in "yx" else 1.0 for a in order]
        datasets.append(
            {"path": f"level {i}", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    multiscales = [{"axes": axes, "datasets": datasets, "version": "0.4"}]
    group.attrs.update(
        {"ome": {"version": "0.5", "multiscales": multiscales}}
        if version == 5
        else {"multiscales": multiscales}
    )


def plain_writer(**options: object):
    return lambda path: tifffile.imwrite(path, PICTURE, photometric="rgb", **PER_CM, metadata=None, **options)


def ome_writer(image: np.ndarray = PICTURE, axes: str = "YXS", **options: object):
    return lambda path: tifffile.imwrite(path, image, metadata={"axes": axes, **OME}, **options)


CHANNELS_FIRST = np.moveaxis(PICTURE, 2, 0).copy()

EXACT = {
    "a.png": ("image", lambda path: Image.fromarray(PICTURE).save(path)),
    "a.bmp": ("image", lambda path: Image.fromarray(PICTURE).save(path)),
    "a.webp": ("image", lambda path: Image.fromarray(PICTURE).save(path, lossless=True)),
    "memmap.tif": ("tiff", plain_writer()),
    "strips.tiff": ("tiff", plain_writer(compression="lzw", predictor=True, rowsperstrip=17)),
    "one strip.tif": ("tiff", plain_writer(compression="zlib", rowsperstrip=HEIGHT)),
    "big.tif": ("tiff", plain_writer(bigtiff=True, compression="zlib", rowsperstrip=64)),
    "openslide.tif": ("openslide/generic-tiff", plain_writer(tile=(64, 96), compression="lzw")),
    "tiles.ome.tif": ("ome-tiff", ome_writer(tile=(64, 96), photometric="rgb")),
    "zlib.ome.tiff": (
        "ome-tiff",
        ome_writer(tile=(64, 96), photometric="rgb", compression="zlib", predictor=True),
    ),
    "planar.ome.tif": (
        "ome-tiff",
        ome_writer(
            CHANNELS_FIRST,
            "SYX",
            tile=(64, 96),
            photometric="rgb",
            planarconfig="separate",
            compression="zlib",
        ),
    ),
    "planar memmap.ome.tif": (
        "ome-tiff",
        ome_writer(CHANNELS_FIRST, "SYX", photometric="rgb", planarconfig="separate"),
    ),
    "planar strips.ome.tif": (
        "ome-tiff",
        ome_writer(
            CHANNELS_FIRST,
            "SYX",
            photometric="rgb",
            planarconfig="separate",
            compression="zlib",
            rowsperstrip=40,
        ),
    ),
    "channels.ome.tif": (
        "ome-tiff",
        ome_writer(CHANNELS_FIRST, "CYX", tile=(64, 96), photometric="minisblack", compression="zlib"),
    ),
    "pyramid.ome.tif": ("ome-tiff", lambda path: write_pyramid(path, compression="zlib")),
    "v2.ome.zarr": ("ome-zarr", lambda path: write_zarr(path, 4)),
    "v3.ome.zarr": ("ome-zarr", lambda path: write_zarr(path, 5)),
    "yxc.ome.zarr": ("ome-zarr", lambda path: write_zarr(path, 5, "yxc")),
    "cyx.ome.zarr": ("ome-zarr", lambda path: write_zarr(path, 4, "cyx")),
}


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("slides")
    for name, (_, write) in EXACT.items():
        write(folder / name)
    return {name: folder / name for name in EXACT}


@pytest.mark.smoke
@pytest.mark.parametrize("name", EXACT)
def test_every_format_gives_the_pixels_that_were_written(name: str, exact: dict[str, Path]) -> None:
    expected_format = EXACT[name][0]
    with open_slide(exact[name], 0.5 if expected_format == "image" else None) as slide:
        assert slide.format == expected_format
        assert (slide.height, slide.width, slide.mpp) == (HEIGHT, WIDTH, pytest.approx(0.5))
        assert slide.name == name.split(".")[0]
        whole = slide.read(0, 0, HEIGHT, WIDTH, slide.mpp)
        assert whole.dtype == np.uint8
        np.testing.assert_array_equal(whole, PICTURE)
        np.testing.assert_array_equal(slide.read(61, 90, 70, 110, slide.mpp), PICTURE[61:131, 90:200])
        # Halved: the same mean, wherever it comes from (a level, or level 0 averaged).
        np.testing.assert_array_equal(slide.read(3, 5, 150, 200, 2 * slide.mpp), halve(PICTURE)[3:153, 5:205])


@pytest.mark.parametrize("name", ["a.png", "one strip.tif", "openslide.tif", "zlib.ome.tiff", "v3.ome.zarr"])
def test_reads_from_many_threads_agree(name: str, exact: dict[str, Path]) -> None:
    random = np.random.default_rng(1)
    boxes = [(int(y), int(x), 50, 60) for y, x in random.integers(-30, 300, (80, 2))]
    with open_slide(exact[name], 0.5) as slide, ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda box: slide.read(*box, 0.5), boxes))
    padded = np.pad(PICTURE, ((100, 200), (100, 200), (0, 0)), mode="edge")
    for (y, x, h, w), part in zip(boxes, together, strict=True):
        np.testing.assert_array_equal(part, padded[y + 100 : y + 100 + h, x + 100 : x + 100 + w])


@pytest.mark.parametrize("compression", ["jpeg", "webp", "zstd"])
def test_compressed_tiles_as_tifffile_decodes_them(compression: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    ome_writer(tile=(64, 96), photometric="rgb", compression=compression)(path)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, HEIGHT, WIDTH, 0.5), tifffile.imread(path))


def test_the_coarsest_level_that_is_fine_enough_is_read(tmp_path: Path) -> None:
    path = tmp_path / "levels.ome.tif"
    with tifffile.TiffWriter(path) as writer:  # each level says which it is
        for i in range(4):
            level = np.full((512 >> i, 512 >> i, 3), 40 * (i + 1), np.uint8)
            extra = {"subifds": 3, "metadata": {"axes": "YXS", **OME}} if i == 0 else {"subfiletype": 1}
            writer.write(level, tile=(64, 64), photometric="rgb", **extra)
    with open_slide(path) as slide:
        for mpp, level in [(0.5, 0), (0.7, 0), (0.98, 0), (0.995, 1), (1.0, 1), (1.9, 1), (2.1, 2), (40, 3)]:
            assert np.all(slide.read(0, 0, 8, 8, mpp) == 40 * (level + 1)), mpp


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    y=st.integers(-40, 340),
    x=st.integers(-40, 480),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    mpp=st.sampled_from([0.2, 0.37, 0.4999, 0.5, 0.502, 0.7, 0.75, 1.0, 1.1, 1.25, 1.5, 2.0, 3.3]),
    name=st.sampled_from(["openslide.tif", "pyramid.ome.tif", "a.png"]),
)
def test_a_pixel_is_the_same_in_every_box(
    y: int, x: int, height: int, width: int, mpp: float, name: str, exact: dict[str, Path]
) -> None:
    with open_slide(exact[name], 0.5) as slide:
        full_height, full_width = compute_shape(slide, mpp)
        whole = slide.read(0, 0, full_height, full_width, mpp)
        padded = whole[
            np.clip(np.arange(y, y + height), 0, full_height - 1)[:, None],
            np.clip(np.arange(x, x + width), 0, full_width - 1),
        ]
        part = slide.read(y, x, height, width, mpp)
    assert part.shape == (height, width, 3)
    np.testing.assert_array_equal(part, padded)


@pytest.mark.parametrize("mpp", [0.501, 0.75, 1.1, 1.7, 3.3])
def test_averaging_down_keeps_the_mean_of_the_area(mpp: float, exact: dict[str, Path]) -> None:
    """Against an exact area average, from an integral of the picture along both axes."""
    with open_slide(exact["a.png"], 0.5) as slide:
        height, width = (side - 1 for side in compute_shape(slide, mpp))
        ours = slide.read(0, 0, height, width, mpp).astype(float)
    total = np.pad(PICTURE.astype(float).cumsum(0).cumsum(1), ((1, 0), (1, 0), (0, 0)))
    edges_y, edges_x = np.arange(height + 1) * mpp / 0.5, np.arange(width + 1) * mpp / 0.5
    corner = np.stack(
        [
            ndimage.map_coordinates(total[..., c], np.meshgrid(edges_y, edges_x, indexing="ij"), order=1)
            for c in range(3)
        ],
        axis=-1,
    )
    exact_mean = np.diff(np.diff(corner, axis=0), axis=1) / (mpp / 0.5) ** 2
    assert np.abs(ours - exact_mean).max() < 0.51


def test_a_coarser_slide_is_interpolated_and_says_so_once(
    exact: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), open_slide(exact["a.png"], 0.5) as slide:
        ours = slide.read(0, 0, 2 * HEIGHT, 2 * WIDTH, 0.25)
        slide.read(0, 0, 10, 10, 0.2)
    pillow = Image.fromarray(PICTURE).resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.BILINEAR)
    assert np.abs(ours.astype(int) - np.asarray(pillow)).max() <= 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "a.png" in caplog.text and "0.5" in caplog.text


def test_boxes_past_the_slide_repeat_its_edge(exact: dict[str, Path]) -> None:
    padded = np.pad(PICTURE, ((50, 70), (60, 80), (0, 0)), mode="edge")
    with open_slide(exact["zlib.ome.tiff"]) as slide:
        np.testing.assert_array_equal(slide.read(-50, -60, HEIGHT + 120, WIDTH + 140, 0.5), padded)
        np.testing.assert_array_equal(
            slide.read(-30, 10, 20, 5, 0.5), np.tile(PICTURE[:1, 10:15], (20, 1, 1))
        )
        np.testing.assert_array_equal(
            slide.read(HEIGHT + 9, WIDTH + 9, 4, 4, 0.5), np.broadcast_to(PICTURE[-1, -1], (4, 4, 3))
        )
        with pytest.raises(ValueError, match="empty"):
            slide.read(0, 0, 0, 5, 0.5)


def test_shape_at_rounds_up_but_not_on_float_noise(exact: dict[str, Path]) -> None:
    with open_slide(exact["a.png"], 0.499) as slide:
        assert compute_shape(slide, 0.499) == (331, 467)
        assert compute_shape(slide, 0.998) == (166, 234)
        assert compute_shape(slide, 0.499 * 3) == (111, 156)
        assert compute_shape(slide, 1e4) == (1, 1)
        for bad in (0, -1, float("nan"), float("inf")):
            with pytest.raises(InputError, match="positive"):
                compute_shape(slide, bad)


def test_large_boxes_are_read_in_parts_with_the_same_result(
    exact: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    with open_slide(exact["zlib.ome.tiff"]) as slide:
        whole = {mpp: slide.read(-5, -5, 150, 150, mpp) for mpp in (0.5, 1.0, 1.3)}
        monkeypatch.setattr(reader, "_MAX_REGION", 64 * 64)
        read = slide._pixels.read
        monkeypatch.setattr(
            slide._pixels, "read", lambda level, y, x, h, w: sizes.append(h * w) or read(level, y, x, h, w)
        )
        for mpp, expected in whole.items():
            np.testing.assert_array_equal(slide.read(-5, -5, 150, 150, mpp), expected)
    assert max(sizes) <= 80 * 80


def test_thumbnail(exact: dict[str, Path]) -> None:
    with open_slide(exact["a.png"], 0.5) as slide:
        image, mpp = read_thumbnail(slide, 100)
        assert image.shape == (71, 100, 3) and mpp == pytest.approx(0.5 * 4.67)
        np.testing.assert_array_equal(image, slide.read(0, 0, 71, 100, mpp))
        pillow = Image.fromarray(PICTURE).resize((100, 71), Image.Resampling.BOX)
        assert np.abs(image.astype(int) - np.asarray(pillow)).mean() < 12  # it cannot cut pixels
        same, mpp = read_thumbnail(slide, 4000)
        assert mpp == 0.5
        np.testing.assert_array_equal(same, PICTURE)


def test_a_picture_is_made_of_a_finer_thumbnail(
    exact: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_slide(exact["a.png"], 0.5) as slide:
        overview, fine, coarse = (read_thumbnail(slide, side) for side in (467, 300, 77))
        np.testing.assert_array_equal(make_picture(slide, 300, None).image, fine.image)
        np.testing.assert_array_equal(make_picture(slide, 300, coarse).image, fine.image)
        monkeypatch.setattr(slide, "read", None)
        rounded = fine._replace(mpp=fine.mpp * (1 + 1e-15))  # it is not read again for an error of rounding
        np.testing.assert_array_equal(make_picture(slide, 300, rounded).image, fine.image)
        for own in (fine, coarse):
            image, mpp = make_picture(slide, max(own.image.shape), overview)
            assert mpp == own.mpp
            np.testing.assert_array_equal(image, own.image)
        twice = make_picture(slide, 77, fine).image.astype(int)  # a mean of means: a little softer
        assert np.abs(twice - coarse.image).mean() < 1.5


def test_read_ahead_keeps_order_and_joins_its_threads(exact: dict[str, Path]) -> None:
    before = threading.active_count()
    boxes = [(7 * i, 5 * i, 64, 64) for i in range(40)]
    with open_slide(exact["zlib.ome.tiff"]) as slide:
        alone = [slide.read(*box, 0.7) for box in boxes]
        for threads in (1, 3):
            ahead = list(prefetch_boxes(slide, iter(boxes), 0.7, threads))
            assert len(ahead) == len(alone)
            for one, other in zip(alone, ahead, strict=True):
                np.testing.assert_array_equal(one, other)
        assert list(prefetch_boxes(slide, [], 0.7, 2)) == []
    assert threading.active_count() == before


def test_read_ahead_is_bounded_and_closing_it_cancels_the_rest(
    exact: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_MAX_AHEAD", 8 * 64 * 64 * 3)
    before = threading.active_count()
    taken, started = [], []
    with open_slide(exact["a.png"], 0.5) as slide:
        read = slide.read
        monkeypatch.setattr(
            slide, "read", lambda *box: started.append(box) or time.sleep(0.005) or read(*box)
        )
        boxes = (taken.append(i) or (i, i, 64, 64) for i in range(1000))
        tiles = prefetch_boxes(slide, boxes, 0.5, 2)
        for _ in range(5):
            next(tiles)
        time.sleep(0.1)
        assert len(taken) <= 5 + 8 + 1
        assert len(started) >= 5 + 4  # it did read ahead
        tiles.close()
        count = len(started)
        assert threading.active_count() == before
        time.sleep(0.05)
        assert len(started) == count < 1000


def test_an_error_in_read_ahead_reaches_the_consumer_in_its_place(
    exact: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    with open_slide(exact["a.png"], 0.5) as slide:
        read = slide._pixels.read

        def fails(level: int, y: int, x: int, height: int, width: int) -> np.ndarray:
            if y == 30:
                raise OSError("bad tile")
            return read(level, y, x, height, width)

        monkeypatch.setattr(slide._pixels, "read", fails)
        tiles = prefetch_boxes(slide, [(10 * i, 0, 8, 8) for i in range(20)], 0.5, 2)
        assert [next(tiles).shape for _ in range(3)] == [(8, 8, 3)] * 3
        with pytest.raises(InputError, match=r"a\.png: cannot be decoded at y = 30.*bad tile") as error:
            next(tiles)
        assert "\n" not in str(error.value)
    assert threading.active_count() == before


# Resolution


def test_ome_resolution_in_other_units(tmp_path: Path) -> None:
    for i, (value, unit) in enumerate([(250, "nm"), (0.00025, "mm"), (2500, "Å"), (0.25, "µm")]):
        path = tmp_path / f"{i}.ome.tif"
        sizes = {f"PhysicalSize{a}{b}": v for a in "XY" for b, v in (("", value), ("Unit", unit))}
        tifffile.imwrite(path, PICTURE, photometric="rgb", metadata={"axes": "YXS", **sizes})
        with open_slide(path) as slide:
            assert slide.mpp == pytest.approx(0.25), unit


def test_the_override_wins_and_is_checked(exact: dict[str, Path]) -> None:
    with open_slide(exact["tiles.ome.tif"], 0.3) as slide:
        assert slide.mpp == 0.3
    for bad in (0.0, -0.5, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"--mpp-override .*positive"):
            open_slide(exact["tiles.ome.tif"], bad)


def test_x_and_y_may_differ_a_little(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, PICTURE, photometric="rgb", resolution=(20_000, 20_100), resolutionunit="CENTIMETER"
    )
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx((0.5 + 10_000 / 20_100) / 2)


NO_MPP = {
    "plain.png": lambda path: Image.fromarray(PICTURE).save(path, dpi=(96, 96)),
    "photo.jpg": lambda path: Image.fromarray(PICTURE).save(path, dpi=(50_800, 50_800)),
    "bare.tif": lambda path: tifffile.imwrite(path, PICTURE, photometric="rgb"),
    "72 dpi.tif": lambda path: tifffile.imwrite(
        path, PICTURE, photometric="rgb", resolution=(72, 72), resolutionunit="INCH"
    ),
    "72 dpi tiled.tif": lambda path: tifffile.imwrite(
        path, PICTURE, photometric="rgb", resolution=(72, 72), resolutionunit="INCH", tile=(64, 64)
    ),
    "no unit.tif": lambda path: tifffile.imwrite(
        path, PICTURE, photometric="rgb", resolution=(20_000, 20_000), resolutionunit="NONE"
    ),
    "pixels.ome.tif": lambda path: tifffile.imwrite(
        path,
        PICTURE,
        photometric="rgb",
        metadata={
            "axes": "YXS",
            **{f"PhysicalSize{a}{b}": v for a in "XY" for b, v in (("", 1), ("Unit", "pixel"))},
        },
    ),
    "no unit.ome.zarr": lambda path: write_zarr(path, 5, unit=None),
}


@pytest.mark.parametrize("name", NO_MPP)
def test_a_missing_resolution_is_an_error_and_never_a_guess(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    NO_MPP[name](path)
    with pytest.raises(InputError) as error:
        open_slide(path)
    assert str(error.value) == (
        f"{path}: no resolution (mpp) in the file; give it with --mpp-override, "
        "for example --mpp-override 0.5 for 20×, 0.25 for 40×, or in a manifest's column mpp"
    )
    with open_slide(path, 0.5) as slide:
        assert slide.read(5, 5, 9, 9, 0.5).shape == (9, 9, 3)


# Colours


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_other_pixels_of_ordinary_images(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image = Image.fromarray(PICTURE).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(np.tile(np.arange(WIDTH) % 256, (HEIGHT, 1)).astype(np.uint8)))
    image.save(path)
    with open_slide(path, 1.0) as slide:
        ours = slide.read(0, 0, HEIGHT, WIDTH, 1.0).astype(float)
    stored = Image.open(path)
    if mode in ("LA", "RGBA"):
        values = np.asarray(stored.convert("RGBA")).astype(float)
        alpha = values[..., 3:] / 255
        expected = values[..., :3] * alpha + 255 * (1 - alpha)
    else:
        expected = np.asarray(stored.convert("RGB")).astype(float)
    assert ours.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(ours - expected).max() <= 1


def test_transparent_tiff_lies_on_white(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    alpha = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    alpha[100:] = 255
    rgba = np.concatenate([PICTURE, alpha], axis=2)
    ome_writer(rgba, photometric="rgb", extrasamples=["unassalpha"], tile=(64, 64), compression="zlib")(path)
    with open_slide(path) as slide:
        ours = slide.read(0, 0, HEIGHT, WIDTH, 0.5)
    assert np.all(ours[:100] == 255)
    np.testing.assert_array_equal(ours[100:], PICTURE[100:])


def test_flatten_uses_the_background() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0] = (200, 100, 50, 255)
    flat = pixels.flatten(Image.fromarray(rgba), (10, 20, 30))
    np.testing.assert_array_equal(flat, [[[200, 100, 50]] * 2, [[10, 20, 30]] * 2])


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_a_camera_image_is_read_upright(name: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURE).save(tmp_path / name, exif=exif)
    with Image.open(tmp_path / name) as stored, open_slide(tmp_path / name, 0.5) as slide:
        expected = np.rot90(np.asarray(stored), -1)
        np.testing.assert_array_equal(slide.read(0, 0, slide.height, slide.width, 0.5), expected)


# Bad input


def test_an_mrxs_without_its_folder_is_not_its_preview(tmp_path: Path) -> None:
    (tmp_path / "real" / "S").mkdir(parents=True)
    for name in ("alone.mrxs", "real/S.mrxs"):
        Image.fromarray(PICTURE).save(tmp_path / name, format="JPEG")
    (tmp_path / "S.mrxs").symlink_to(tmp_path / "real" / "S.mrxs")
    for name, says in (
        ("alone.mrxs", r"its folder alone is not beside it, .*: keep the two together$"),
        ("S.mrxs", r"its folder S is not beside it, .*; it is a link: give .*/real/S\.mrxs itself$"),
        ("real/S.mrxs", "Slidedat.ini in its folder cannot be read"),
    ):
        with pytest.raises(InputError, match=says):
            open_slide(tmp_path / name, 0.25)


def bad_zarr_writer(change):
    def write(path: Path) -> None:
        write_zarr(path, 5)
        file = path / "zarr.json"
        content = json.loads(file.read_text())
        change(content["attributes"]["ome"]["multiscales"][0], path)
        file.write_text(json.dumps(content))

    return write


def outside(multiscale: dict, path: Path) -> None:
    shutil.copytree(path / "level 0", path.parent / "other")
    multiscale["datasets"][0]["path"] = "../other"


def several_planes(multiscale: dict, path: Path) -> None:
    zarr.open_group(path, mode="a").create_array(
        "deep", shape=(1, 3, 5, 64, 64), dtype="uint8", chunks=(1, 1, 1, 64, 64)
    )
    multiscale["datasets"] = [multiscale["datasets"][0] | {"path": "deep"}]


def sixteen_bits(multiscale: dict, path: Path) -> None:
    zarr.open_group(path, mode="a").create_array(
        "deep", shape=(1, 3, 1, 64, 64), dtype="uint16", chunks=(1, 1, 1, 64, 64)
    )
    multiscale["datasets"] = [multiscale["datasets"][0] | {"path": "deep"}]


def cut_writer(write, share: float):
    def write_cut(path: Path) -> None:
        write(path)
        with path.open("r+b") as file:
            file.truncate(int(path.stat().st_size * share))

    return write_cut


def declaring_writer(write, **tags: object):
    """Written, and then its first page made to declare something else."""

    def write_declaring(path: Path) -> None:
        write(path)
        with tifffile.TiffFile(path, mode="r+b") as tiff:
            for name, value in tags.items():
                tag = tiff.pages[0].tags[name]
                tag.overwrite(value(tiff.pages[0]) if callable(value) else value)

    return write_declaring


def last_past_the_end(page: tifffile.TiffPage) -> list[int]:
    return [*page.dataoffsets[:-1], page.parent.filehandle.size + 10]


def last_halved(page: tifffile.TiffPage) -> list[int]:
    return [*page.databytecounts[:-1], page.databytecounts[-1] // 2]


def zarr_header_writer(shape: list[int], chunks: list[int], version: int = 3):
    """The header of an image, and nothing in it."""

    def write(path: Path) -> None:
        axes = [{"name": axis, "type": "channel" if axis == "c" else "space"} for axis in "yxc"]
        group = {"multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}
        (path / "0").mkdir(parents=True)
        if version == 2:
            (path / ".zattrs").write_text(json.dumps(group))
            array = {"zarr_format": 2, "shape": shape, "chunks": chunks, "dtype": "|u1", "compressor": None}
            (path / "0" / ".zarray").write_text(
                json.dumps({**array, "fill_value": 0, "filters": None, "order": "C"})
            )
            return
        head = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": group}}
        (path / "zarr.json").write_text(json.dumps(head))
        grid = {"name": "regular", "configuration": {"chunk_shape": chunks}}
        array = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": "uint8",
            "chunk_grid": grid,
        }
        keys = {"name": "default", "configuration": {"separator": "/"}}
        array |= {"chunk_key_encoding": keys, "fill_value": 0, "codecs": [{"name": "bytes"}]}
        (path / "0" / "zarr.json").write_text(json.dumps(array))

    return write


def narrow(multiscale: dict, path: Path) -> None:
    """The first level is taller than the second, and not as wide."""
    zarr.open_group(path, mode="a").create_array(
        "narrow", shape=(1, 3, 1, HEIGHT, 1), dtype="uint8", chunks=(1, 1, 1, 64, 1)
    )
    multiscale["datasets"][0]["path"] = "narrow"


def mirax_writer(description: str):
    """A MIRAX slide of which only the description is there."""

    def write(path: Path) -> None:
        path.write_bytes(b"\xff\xd8")
        path.with_suffix("").mkdir()
        (path.with_suffix("") / "Slidedat.ini").write_text(f"[GENERAL]\n{description}\n")

    return write


TILES = {"tile": (64, 96), "compression": "lzw"}  # which OpenSlide reads

BAD = {
    "longer.tif": (
        declaring_writer(plain_writer(**TILES), ImageLength=2 * HEIGHT),
        "its list of tiles is too short",
    ),
    "wider.tif": (
        declaring_writer(plain_writer(**TILES), ImageWidth=2 * WIDTH),
        "its list of tiles is too short",
    ),
    "past.tif": (
        declaring_writer(plain_writer(**TILES), TileOffsets=last_past_the_end),
        "past the end of the file",
    ),
    "less.tif": (
        declaring_writer(plain_writer(tile=(64, 96)), TileByteCounts=last_halved),
        "more pixels than it holds",
    ),
    "long strips.tif": (
        declaring_writer(plain_writer(compression="zlib", rowsperstrip=16), ImageLength=2 * HEIGHT),
        "its list of tiles is too short",
    ),
    "past strips.tif": (
        declaring_writer(plain_writer(compression="zlib", rowsperstrip=16), StripOffsets=last_past_the_end),
        "past the end of the file",
    ),
    "less strips.tif": (
        declaring_writer(plain_writer(rowsperstrip=16), StripByteCounts=last_halved),
        "more pixels than it holds",
    ),
    "less in one.tif": (
        declaring_writer(plain_writer(rowsperstrip=HEIGHT), StripByteCounts=last_halved),
        "more pixels than it holds",
    ),
    "longer.ome.tif": (
        declaring_writer(EXACT["zlib.ome.tiff"][1], ImageLength=2 * HEIGHT),
        "its list of tiles is too short",
    ),
    "tile.tif": (
        declaring_writer(plain_writer(**TILES), TileWidth=60_000, TileLength=60_000),
        "too large to decode",
    ),
    "narrow.ome.zarr": (bad_zarr_writer(narrow), "larger than its first"),
    "none.ome.zarr": (zarr_header_writer([0, 0, 3], [64, 64, 3]), "level 0: its array is empty: 0 × 0 × 3"),
    "none v2.ome.zarr": (
        zarr_header_writer([64, 0, 3], [64, 64, 3], 2),
        "level 0: its array is empty: 64 × 0 × 3",
    ),
    "endless.ome.zarr": (zarr_header_writer([1 << 60, 1 << 60, 3], [64, 64, 3]), "which is no slide's"),
    "long.ome.zarr": (zarr_header_writer([5_000_000, 4, 3], [64, 4, 3], 2), "which is no slide's"),
    "chunk.ome.zarr": (
        zarr_header_writer([40_000] * 2 + [3], [20_000] * 2 + [3]),
        "too large to decode one by one",
    ),
    "chunk v2.ome.zarr": (
        zarr_header_writer([40_000] * 2 + [3], [20_000] * 2 + [3], 2),
        "too large to decode",
    ),
    "files.mrxs": (mirax_writer("FILE_COUNT = 100001"), "says FILE_COUNT = 100001 in Slidedat.ini"),
    "layers.mrxs": (mirax_writer("HIER_0_COUNT=-1"), "says HIER_0_COUNT = -1 in Slidedat.ini"),
    "images.mrxs": (
        mirax_writer("IMAGENUMBER_X = 5001\nIMAGENUMBER_Y = 5000"),
        "it has 25005000 images",
    ),
    "parts.mrxs": (mirax_writer("CameraImageDivisionsPerSide = 1001"), "CameraImageDivisionsPerSide = 1001"),
    "missing.svs": (lambda path: None, "no such file"),
    "text.svs": (lambda path: path.write_text("this is not a slide\n" * 50), "not a slide"),
    "text.tif": (lambda path: path.write_text("this is not a slide\n" * 50), "not a slide"),
    "text.ome.tif": (lambda path: path.write_text("this is not a slide\n" * 50), "not a slide"),
    "empty.svs": (lambda path: path.touch(), "empty"),
    "folder": (lambda path: path.mkdir(), "no OME-Zarr"),
    "group.zarr": (lambda path: zarr.open_group(path, mode="w"), "no multiscales"),
    "broken.zarr": (lambda path: path.mkdir() or (path / "zarr.json").write_text("{"), "damaged"),
    "outside.ome.zarr": (bad_zarr_writer(outside), "outside its folder"),
    "absent.ome.zarr": (bad_zarr_writer(lambda m, p: shutil.rmtree(p / "level 1")), "damaged"),
    "axes.ome.zarr": (bad_zarr_writer(lambda m, p: m["axes"].pop()), "axes"),
    "planes.ome.zarr": (bad_zarr_writer(several_planes), "several planes"),
    "deep.ome.zarr": (bad_zarr_writer(sixteen_bits), "the OME-Zarr is uint16"),
    "deep.png": (
        lambda path: Image.fromarray(PICTURE[..., 0] * np.uint16(256)).save(path),
        "not 8-bit",
    ),
    "deep.tif": (
        lambda path: tifffile.imwrite(path, PICTURE * np.uint16(256), photometric="rgb", **PER_CM),
        "the TIFF is 16-bit RGB",
    ),
    "stack.ome.tif": (ome_writer(np.stack([PICTURE] * 3), "ZYXS", photometric="rgb"), "several planes"),
    "flat.tif": (
        lambda path: tifffile.imwrite(
            path, PICTURE, photometric="rgb", resolution=(20_000, 40_000), resolutionunit="CENTIMETER"
        ),
        "along x and 0.25 along y; give one value",
    ),
    "huge.ome.tif": (
        lambda path: tifffile.imwrite(
            path,
            PICTURE,
            photometric="rgb",
            metadata={"axes": "YXS", "PhysicalSizeX": 350, "PhysicalSizeY": 350},
        ),
        "no scanner",
    ),
    "cut.png": (cut_writer(lambda path: Image.fromarray(PICTURE).save(path), 0.5), "truncated"),
    "cut.jpg": (cut_writer(lambda path: Image.fromarray(PICTURE).save(path), 0.5), "truncated"),
    "cut strips.tif": (cut_writer(plain_writer(compression="zlib", rowsperstrip=16), 0.6), "truncated"),
    "cut memmap.tif": (cut_writer(plain_writer(), 0.6), "truncated"),
    "cut.ome.tif": (cut_writer(EXACT["zlib.ome.tiff"][1], 0.6), "truncated"),
    "cut pyramid.ome.tif": (cut_writer(EXACT["pyramid.ome.tif"][1], 0.9), "truncated"),
    "cut head.ome.tif": (cut_writer(EXACT["zlib.ome.tiff"][1], 0.001), "TIFF"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_that_names_the_file(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    write, says = BAD[name]
    write(path)
    with pytest.raises(InputError) as error:
        open_slide(path, 0.5 if path.suffix in (".png", ".jpg") else None)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert says in message
    assert capfd.readouterr() == ("", "")


def test_a_file_that_may_not_be_read(exact: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"a\.png: cannot be read: Permission denied"):
        open_slide(exact["a.png"], 0.5)


def test_what_the_machine_lacks_is_not_blamed_on_the_file(
    exact: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_slide(exact["a.png"], 0.5) as slide:
        for error, raised, says in (
            (OSError(errno.EIO, "Input/output error"), InputError, r"error\); the disk, or the file system"),
            (OSError("bad tile"), InputError, r"bad tile\); the file is damaged there"),
            (MemoryError("too much"), MemoryError, "too much"),
        ):
            monkeypatch.setattr(slide._pixels, "read", Mock(side_effect=error))
            with pytest.raises(raised, match=says):
                slide.read(0, 0, 9, 9, 0.5)


def test_damage_inside_is_found_at_the_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.ome.tif"
    EXACT["zlib.ome.tiff"][1](path)
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[8]  # row 1, column 3
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 40)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 64, 96, 0.5), PICTURE[:64, :96])
        with pytest.raises(
            InputError, match=r"a\.ome\.tif: cannot be decoded at y = 70, x = 300 of level 0"
        ) as error:
            slide.read(70, 300, 20, 20, 0.5)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif"])
def test_tiles_that_were_never_written_are_white(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    (ome_writer(photometric="rgb", **TILES) if ".ome" in name else plain_writer(**TILES))(path)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        page = tiff.pages[0]
        offsets, counts = list(page.dataoffsets), list(page.databytecounts)
        offsets[0] = counts[0] = counts[-1] = 0
        page.tags["TileOffsets"].overwrite(offsets)
        page.tags["TileByteCounts"].overwrite(counts)
    expected = PICTURE.copy()
    expected[:64, :96] = expected[-(HEIGHT % 64) :, -(WIDTH % 96) :] = 255
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, HEIGHT, WIDTH, 0.5), expected)


def test_a_truncated_file_is_known_by_a_relative_path_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    BAD["cut.ome.tif"][0](tmp_path / "a.ome.tif")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^a\.ome\.tif: the TIFF is truncated"):
        open_slide("a.ome.tif")


def test_a_tile_that_states_far_more_bytes_than_it_has_pixels_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    EXACT["zlib.ome.tiff"][1](path)
    os.truncate(path, 20 << 20)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        counts = list(tiff.pages[0].databytecounts)
        tiff.pages[0].tags["TileByteCounts"].overwrite([*counts[:-1], 18 << 20])
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 64, 96, 0.5), PICTURE[:64, :96])
        with pytest.raises(InputError, match="stated to have 18874368 bytes, far more than its pixels"):
            slide.read(HEIGHT - 2, WIDTH - 2, 1, 1, 0.5)


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000"])
def test_a_tile_that_states_more_pixels_than_it_may_have_is_not_decoded(
    compression: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.ome.tif"
    ome_writer(tile=(64, 96), photometric="rgb", compression=compression)(path)
    with open_slide(path) as slide:
        assert slide.read(0, 0, 64, 96, 0.5).std() > 20
    content = path.read_bytes()
    if compression == "jpeg":
        frame, height = b"\xff\xc0\x00\x11\x08", (64).to_bytes(2, "big")
    else:  # the width, and then the height
        frame, height = content[content.index(b"\xff\x4f\xff\x51") :][:12], (64).to_bytes(4, "big")
    taller = (65).to_bytes(len(height), "big")
    assert frame + height in content
    path.write_bytes(content.replace(frame + height, frame + taller, 1))
    with open_slide(path) as slide, pytest.raises(InputError, match="states more pixels than the tile has"):
        slide.read(0, 0, 64, 96, 0.5)


# Size


def test_a_large_flat_tiff_takes_little_memory(tmp_path: Path) -> None:
    """40,000 × 40,000 without a pyramid; most tiles were never written, which saves a reader no memory."""
    path = tmp_path / "large.ome.tif"
    side, tile = 40_000, 512
    count = -(-side // tile)
    block = make_noise(tile, tile)
    tiles = (block if (i % count) == (i // count) else None for i in range(count * count))
    tifffile.imwrite(
        path, tiles, shape=(side, side, 3), dtype=np.uint8, tile=(tile, tile), compression="zlib",
        photometric="rgb", bigtiff=True, metadata={"axes": "YXS", **OME},
    )  # fmt: skip
    program = f"""
import resource
from fseg_jax.slides.reader import open_slide, prefetch_boxes
slide = open_slide({str(path)!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for i, tile in enumerate(prefetch_boxes(slide, [(512 * i, 512 * i, 512, 512) for i in range(78)], 0.5, 2)):
    assert tile[:60].std() > 20, i
coarse = slide.read(0, 0, 300, 300, 8.0)
assert coarse.shape == (300, 300, 3) and coarse[5, 5].min() < 250 and (coarse[5, 200] == 255).all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    grown = int(done.stdout) / (1024 if sys.platform != "darwin" else 1024**2)
    assert grown < 420, f"{grown:.0f} MB for a picture of 4800 MB"


# Real slides


@needs_data
def test_level_0_of_a_real_slide_as_openslide_reads_it() -> None:
    with open_slide(CMU) as slide, openslide.OpenSlide(CMU) as direct:
        assert (slide.format, slide.name, slide.mpp) == ("openslide/aperio", "CMU-1-Small-Region", 0.499)
        assert (slide.height, slide.width) == (2967, 2220)
        for y, x in [(0, 0), (313, 1001), (2700, 1900)]:
            theirs = np.asarray(direct.read_region((x, y), 0, (256, 200)))[..., :3]
            np.testing.assert_array_equal(slide.read(y, x, 200, 256, 0.499), theirs)


@needs_data
def test_a_coarse_level_with_a_fractional_scale_is_the_same_in_every_box() -> None:
    with pytest.raises(InputError, match="--mpp-override"):
        open_slide(TCGA)
    with open_slide(TCGA, 0.25) as slide, tifffile.TiffFile(TCGA) as direct:
        ours = slide.read(500, 700, 600, 700, 0.5)
        np.testing.assert_array_equal(ours, direct.series[0].levels[1].asarray()[500:1100, 700:1400])
        for y, x, h, w in [(500, 700, 37, 301), (777, 991, 300, 64), (1000, 1300, 100, 100)]:
            part = slide.read(y, x, h, w, 0.5)
            np.testing.assert_array_equal(part, ours[y - 500 : y - 500 + h, x - 700 : x - 700 + w])


@needs_data
def test_a_real_ome_tiff() -> None:
    with open_slide(OS1) as slide:
        assert (slide.format, slide.name) == ("ome-tiff", "OS-1-detail")
        assert slide.mpp == pytest.approx(0.2271, abs=1e-4)
        np.testing.assert_array_equal(slide.read(0, 0, 1101, 1101, slide.mpp), tifffile.imread(OS1))


@needs_data
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.7, 0.9])
def test_a_truncated_real_slide(share: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut.svs"
    path.write_bytes(CMU.read_bytes()[: int(CMU.stat().st_size * share)])
    with pytest.raises(InputError) as error, open_slide(path) as slide:
        read_thumbnail(slide, 500)
    assert "cut.svs" in str(error.value) and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


# The generated slide


def test_make_slide(tmp_path: Path) -> None:
    source, out = tmp_path / "source.png", tmp_path / "made.tif"
    pixels = np.full((700, 700, 3), 245, np.uint8)
    pixels[50:650, 60:640] = 120 + make_noise(600, 580) // 4 + np.array([60, 0, 40], np.uint8)
    Image.fromarray(pixels).save(source)
    arguments = [str(source), str(out), "--side", "2100", "--quality", "95", "--mpp-override", "0.5"]
    result = CliRunner().invoke(make_slide.main, arguments)
    assert result.exit_code == 0, result.output
    with tifffile.TiffFile(out) as tiff:
        assert [page.shape for page in tiff.pages] == [(2100, 2100, 3), (1050, 1050, 3), (525, 525, 3)]
        assert all(page.is_tiled and page.compression == 7 for page in tiff.pages)
        first, second, third = (page.asarray().astype(float) for page in tiff.pages)
    assert np.abs(halve(first) - second).mean() < 2 and np.abs(halve(second) - third).mean() < 3
    assert 0.3 < (np.ptp(first, axis=2) > 20).mean() < 0.7
    assert openslide.OpenSlide.detect_format(out) == "generic-tiff"
    with open_slide(out) as slide:
        assert slide.mpp == pytest.approx(0.5) and (slide.height, slide.width) == (2100, 2100)
        assert np.abs(slide.read(900, 900, 100, 100, 1.0) - second[900:1000, 900:1000]).mean() < 1


def test_a_resolution_that_takes_the_place_of_the_files_is_told(tmp_path, caplog):
    path = tmp_path / "own.tif"
    options = {"tile": (64, 64), "resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, np.full((128, 128, 3), 200, np.uint8), **options)
    open_slide(path, 0.51).close()
    assert caplog.text == ""
    open_slide(path, 1.0).close()
    assert "own.tif: the file says 0.5 µm per pixel, and 1 is taken in its place" in caplog.text
