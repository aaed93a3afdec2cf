"""Slides at an address are what they are on a disk, and only what is looked at is fetched of them."""

import json
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
import tifffile
from click.testing import CliRunner
from PIL import Image
from stores import SECRET, serve_bucket, serve_folder, upload

from fseg_jax.errors import InputError
from fseg_jax.files import remote
from fseg_jax.slides.identity import identify
from fseg_jax.slides.reader import Slide, open_slide, read_thumbnail

pytest.importorskip("obstore", reason="obstore is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FSEG_CACHE", str(tmp_path / "cache"))
    remote._connect.cache_clear()
    return tmp_path / "cache" / "remote"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serve_bucket(monkeypatch, "slides") as url:
        yield url


def draw(side: int = 512) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 255, (side // 8, side // 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(noise).resize((side, side)))


def write_pyramid(path: Path, image: np.ndarray, **options: object) -> Path:
    """Write a tiled pyramid of JPEG, with the resolution in its tags or in Aperio's description."""
    shared = {"tile": (128, 128), "photometric": "rgb", "compression": "jpeg", **options}
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(image, resolution=(20000, 20000), resolutionunit="CENTIMETER", **shared)
        writer.write(image[::2, ::2], subfiletype=1, **(shared | {"metadata": None}))
    return path


def write_ome_zarr(path: Path, image: np.ndarray) -> Path:
    for name, level in (("0", image), ("1", image[::2, ::2])):
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(path / name)},
            "metadata": {
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [128, 128, 3]}},
                "codecs": [{"name": "zstd", "configuration": {"level": 1}}],
            },
        }
        array = ts.open(spec, create=True, dtype=ts.uint8, shape=level.shape).result()
        array[...] = level
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"] + [{"name": "c"}]
    scales = [{"type": "scale", "scale": [0.5 * f, 0.5 * f, 1]} for f in (1, 2)]
    datasets = [
        {"path": name, "coordinateTransformations": [scale]} for name, scale in zip("01", scales, strict=True)
    ]
    attributes = {"ome": {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}}
    text = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes})
    (path / "zarr.json").write_text(text)
    return path


def look(slide: Slide) -> list[np.ndarray]:
    return [
        slide.read(0, 0, slide.height, slide.width, slide.mpp),
        slide.read(33, 71, 90, 80, 1.0),
        read_thumbnail(slide, 100)[0],
    ]


def expect_the_same(address: str, path: Path) -> None:
    with open_slide(address) as there, open_slide(path) as here:
        assert (there.name, there.mpp, there.level_mpps) == (here.name, here.mpp, here.level_mpps)
        assert str(there.path) == address
        for seen, expected in zip(look(there), look(here), strict=True):
            np.testing.assert_array_equal(seen, expected)


@pytest.mark.smoke
def test_a_tiff_in_a_bucket(bucket, tmp_path):
    path = write_pyramid(tmp_path / "a é.tif", draw())
    expect_the_same(upload(path, f"{bucket}/scans of 2020/a é.tif"), path)
    assert identify(f"{bucket}/scans of 2020/a é.tif") == identify(path)


def test_an_ome_tiff_behind_http(tmp_path):
    path = tmp_path / "b c.ome.tif"
    tifffile.imwrite(
        path,
        draw(),
        tile=(128, 128),
        photometric="rgb",
        compression="zlib",
        metadata={"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5},
    )
    with serve_folder(tmp_path) as server:
        expect_the_same(f"{server.url}/b c.ome.tif", path)
        assert open_slide(f"{server.url}/b%20c.ome.tif").mpp == 0.5


APERIO = "Aperio Image Library v10\n512x512 -> |AppMag = 20|MPP = 0.4990"
CODINGS = {
    "jpeg": {"compression": "jpeg", "photometric": "rgb", "subsampling": (2, 2)},
    "33003": {"compression": "aperio_jp2000_ycbc", "photometric": "ycbcr"},
    "33005": {"compression": "aperio_jp2000_rgb", "photometric": "rgb"},
}


@pytest.mark.parametrize("coding", CODINGS)
def test_an_aperio_slide_is_read_as_openslide_reads_it(coding, tmp_path):
    path, image = tmp_path / "a.svs", draw()
    options = {"tile": (240, 240), "description": APERIO, "metadata": None, **CODINGS[coding]}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, **options)
        writer.write(image[::8, ::8], photometric="rgb", description="a thumbnail", metadata=None)
        writer.write(image[::4, ::4], **options)
    with serve_folder(tmp_path) as server, open_slide(path) as here:
        assert here.format == "openslide/aperio" and len(here.level_mpps) == 2
        open_slide(f"{server.url}/a.svs").close()
        assert server.heads == ["/a.svs"]
        expect_the_same(f"{server.url}/a.svs", path)
        with pytest.raises(InputError, match="--series 1"):
            open_slide(f"{server.url}/a.svs", series=1)


def test_what_only_openslide_reads_is_not_read_at_an_address(tmp_path):
    options = {"tile": (64, 64), "description": APERIO, "metadata": None}
    grey = {"photometric": "minisblack", "compression": "jpeg"}
    tifffile.imwrite(tmp_path / "grey.svs", draw()[..., 0], **options, **grey)
    tifffile.imwrite(
        tmp_path / "p.tiff",
        draw(),
        tile=(64, 64),
        software="Philips DP v1",
        photometric="rgb",
        description='<DataObject ObjectType="DPUfsImport"></DataObject>',
        metadata=None,
    )
    (tmp_path / "cut.tif").write_bytes(b"II*\0" + bytes(40))
    tifffile.imwrite(tmp_path / "bad.svs", draw(), photometric="rgb", compression="jpeg", **options)
    with tifffile.TiffFile(tmp_path / "bad.svs", mode="r+b") as tiff:
        tiff.pages[0].tags["TileOffsets"].overwrite([8] * 65)  # one more than it has tiles
    with serve_folder(tmp_path) as server:
        for name, says in (
            ("grey.svs", "its pixels are coded as only OpenSlide reads them: download it"),
            ("p.tiff", "is a slide of Philips: from an address TIFF"),
            ("cut.tif", "the TIFF cannot be read"),
            ("bad.svs", "the TIFF cannot be read"),
        ):
            with pytest.raises(InputError, match=f"{name}: {says}") as error:
                open_slide(f"{server.url}/{name}")
            assert "\n" not in str(error.value)


def test_a_real_slide(data, bucket):
    path = data / "slides" / "CMU-1-Small-Region.svs"
    expect_the_same(upload(path, f"{bucket}/{path.name}"), path)


@pytest.mark.parametrize("is_zipped", [False, True])
def test_an_ome_zarr_in_a_bucket_and_behind_http(is_zipped, bucket, tmp_path):
    image = draw().copy()
    image[:128, :128] = 0  # a chunk that is not written
    path = write_ome_zarr(tmp_path / "a.ome.zarr", image)
    name = "a.ome.zarr"
    if is_zipped:
        shutil.make_archive(str(tmp_path / "a"), "zip", path)
        path = (tmp_path / "a.zip").rename(tmp_path / "a.ozx")
        name = "a.ozx"
    address = upload(path, f"{bucket}/{name}")
    expect_the_same(address, path)
    with open_slide(path) as slide:
        assert (slide.read(0, 0, 128, 128, slide.mpp) == 255).all()
    with serve_folder(tmp_path) as server:
        expect_the_same(f"{server.url}/{name}", path)
        assert identify(f"{server.url}/{name}") == identify(address)


def test_an_ome_zarr_of_other_pixels_is_another_slide(bucket, tmp_path):
    addresses = [
        upload(write_ome_zarr(tmp_path / f"{i}.zarr", image), f"{bucket}/{i}.zarr")
        for i, image in enumerate((draw(), 255 - draw()))
    ]
    assert len({identify(address) for address in addresses}) == 2


def test_only_what_a_box_touches_is_fetched_once_and_kept(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(remote, "_BLOCK", 1 << 14)
    rng = np.random.default_rng(1)
    path = write_pyramid(
        tmp_path / "a.tif", rng.integers(0, 255, (1024, 1024, 3)).astype(np.uint8), compression="zlib"
    )
    size = path.stat().st_size
    with serve_folder(tmp_path) as server:
        with open_slide(f"{server.url}/a.tif") as slide:
            opened = sum(last - first + 1 for first, last in server.asked["/a.tif"])
            assert opened < size // 10
            with ThreadPoolExecutor(8) as pool:
                parts = list(pool.map(lambda i: slide.read(0, 0, 128, 128, 0.5), range(8)))
        asked = server.asked.pop("/a.tif")
        assert len(asked) == len(set(asked))  # nothing twice
        assert sum(last - first + 1 for first, last in asked) < opened + 2 * 128 * 128 * 3
        with open_slide(f"{server.url}/a.tif") as slide:
            np.testing.assert_array_equal(slide.read(0, 0, 128, 128, 0.5), parts[0])
        assert "/a.tif" not in server.asked  # all of it from the disk
        kept = next(file for file in cache.rglob("*") if file.is_file())
        kept.write_bytes(kept.read_bytes()[:-7] + bytes(7))
        with open_slide(f"{server.url}/a.tif") as slide:
            np.testing.assert_array_equal(slide.read(0, 0, 128, 128, 0.5), parts[0])
        assert len(server.asked["/a.tif"]) <= 1  # what is damaged on the disk is fetched again


def test_another_file_at_the_address_is_another_slide(bucket, tmp_path):
    address = f"{bucket}/a.tif"
    for image in (draw(), 255 - draw()):
        path = write_pyramid(tmp_path / "a.tif", image)
        upload(path, address)
        expect_the_same(address, path)
    with open_slide(address) as slide:
        upload(write_pyramid(tmp_path / "a.tif", draw(1536)), address)
        slide._pixels._tiff.remote._blocks.clear()
        shutil.rmtree(tmp_path / "cache")
        with pytest.raises(InputError, match="was replaced while it was read; run it again"):
            slide.read(0, 0, 10, 10, 0.5)


def test_what_cannot_be_read_is_one_line_without_secrets(bucket, tmp_path, monkeypatch):
    Image.fromarray(draw(64)).save(tmp_path / "a.png")
    (tmp_path / "empty.tif").touch()
    upload(tmp_path, f"{bucket}/d")
    for address, says in (
        (f"{bucket}/none.svs", "there is no such file"),
        ("s3://nobody/a.svs", "there is no such file"),
        (f"{bucket}/none.zarr", "neither zarr.json nor .zattrs"),
        (f"{bucket}/d/a.png", "is no TIFF: from an address TIFF"),
        (f"{bucket}/d/empty.tif", "the file is empty"),
        ("https://me:pass-word@host.org/a.svs", "a password or a query"),
        ("s3://me:pass-word/with/slashes@slides/a.svs", "a password or a query"),
        ("https://host.org/a.svs?X-Amz-Signature=pass-word", "a password or a query"),
        ("s3://slides", "names no file"),
    ):
        with pytest.raises(InputError) as error:
            open_slide(address)
        message = str(error.value)
        assert says in message and "\n" not in message, message
        assert SECRET not in message and "pass-word" not in message, message
    with serve_folder(tmp_path, ranges=False) as server:
        write_pyramid(tmp_path / "a.tif", draw())
        with pytest.raises(InputError, match=r"a\.tif: its server does not send parts of files: download it"):
            open_slide(f"{server.url}/a.tif")
        address = server.url
    monkeypatch.setattr(remote, "_RETRIES", {"max_retries": 0})
    remote._connect.cache_clear()
    with pytest.raises(InputError, match=r"a\.tif: cannot be read") as error:
        open_slide(f"{address}/a.tif")
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    remote._connect.cache_clear()
    with pytest.raises(InputError, match=r"obstore: pip install 'fseg-jax\[remote\]'"):
        open_slide(f"{bucket}/a.tif")


def test_a_store_that_fails_while_pixels_are_read_is_not_a_damaged_file(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_RETRIES", {"max_retries": 0})
    monkeypatch.setattr(remote, "_BLOCK", 1 << 12)
    path = write_pyramid(tmp_path / "a.tif", draw())
    with serve_folder(tmp_path) as server:
        slide = open_slide(f"{server.url}/a.tif")
        path.unlink()
        shutil.rmtree(tmp_path / "cache")
        with pytest.raises(InputError, match=r"a\.tif: there is no such file$"):
            slide.read(0, 0, 512, 512, 0.5)


def test_the_cache_stays_within_its_limit(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(remote, "_BLOCK", 1 << 14)
    monkeypatch.setenv("FSEG_REMOTE_CACHE_GB", "0.0001")
    path = write_pyramid(
        tmp_path / "a.tif",
        np.random.default_rng(1).integers(0, 255, (384, 384, 3)).astype(np.uint8),
        compression="zlib",
    )
    with serve_folder(tmp_path) as server:
        expect_the_same(f"{server.url}/a.tif", path)
        kept = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
        assert 25_000 < kept <= 100_000 * 9 / 8 + (1 << 14)
        monkeypatch.setenv("FSEG_REMOTE_CACHE_GB", "0")
        shutil.rmtree(cache)
        expect_the_same(f"{server.url}/a.tif", path)
        assert not cache.exists()
        monkeypatch.setenv("FSEG_REMOTE_CACHE_GB", "much")
        with pytest.raises(InputError, match="FSEG_REMOTE_CACHE_GB=much: must be a number"):
            open_slide(f"{server.url}/a.tif")


def test_a_command_takes_an_address(bucket, tmp_path):
    from fseg_jax.cli import cli

    image = np.full((512, 512, 3), 243, np.uint8)
    image[100:400, 100:400] = draw(300)[:300, :300] // 3 + (120, 40, 110)
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(
        path,
        image,
        tile=(128, 128),
        photometric="rgb",
        metadata={"PhysicalSizeX": 4.0, "PhysicalSizeY": 4.0},
    )
    address = upload(path, f"{bucket}/scans/a.ome.tif")
    done = CliRunner().invoke(cli, ["tissue", address, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out" / "a.tissue.json").read_text())
    assert record["slide"]["path"] == address
    assert record["slide"]["identity"] == identify(path)
