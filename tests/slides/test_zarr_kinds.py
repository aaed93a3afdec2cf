"""OME-Zarr in the versions, packagings and codecs that others write."""

import json
import logging
import sys
import zipfile
from pathlib import Path
from typing import Any

import imagecodecs.numcodecs
import numcodecs
import numpy as np
import pytest
import zarr

from fseg_jax.errors import InputError
from fseg_jax.slides.reader import open_slide

HEIGHT, WIDTH = 150, 190
PICTURE = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
SMALL = PICTURE[:60, :70].copy()
AXES = [
    {"name": "y", "type": "space", "unit": "micrometer"},
    {"name": "x", "type": "space", "unit": "micrometer"},
    {"name": "c", "type": "channel"},
]


def describe(mpp: float = 0.5, axes: list[dict[str, str]] = AXES, **more: Any) -> dict[str, Any]:
    scale = [mpp if axis["name"] in "yx" else 1.0 for axis in axes]
    transforms = [{"type": "scale", "scale": scale}]
    return {
        "multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": transforms}]}]
    } | more


def write_image(
    path: Path, attributes: dict[str, Any], image: np.ndarray = PICTURE, *, version: int = 3, **options: Any
) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=version)
    chunks = tuple(min(side, 64) for side in image.shape)
    array = group.create_array("0", shape=image.shape, dtype=image.dtype, chunks=chunks, **options)
    array[...] = image
    group.attrs.update({"ome": attributes} if version == 3 else attributes)


def read_whole(path: Path, mpp: float | None = None) -> np.ndarray:
    with open_slide(path, mpp) as slide:
        return slide.read(0, 0, slide.height, slide.width, slide.mpp)


def zip_folder(folder: Path, path: Path, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
        archive.comment = b'{"ome": {"version": "0.5"}}'


# Versions


def describe_0_6(kind: str) -> dict[str, Any]:
    where: dict[str, Any] = {"input": {"path": "0"}, "output": {"name": "physical"}}
    transform: dict[str, Any] = {"type": "scale", "scale": [1.0, 0.25, 0.25], **where}
    if kind == "sequence":
        parts = [
            {"type": "scale", "scale": [1, 0.25, 0.25]},
            {"type": "translation", "translation": [0, 3, 3]},
        ]
        transform = {"type": "sequence", "transformations": parts, **where}
    multiscale = {
        "coordinateSystems": [{"name": "physical", "axes": [AXES[2], *AXES[:2]]}],
        "datasets": [{"path": "0", "coordinateTransformations": [transform]}],
    }
    return {"version": "0.6", "multiscales": [multiscale]}


@pytest.mark.parametrize("kind", ["scale", "sequence"])
def test_version_0_6_has_its_axes_in_coordinate_systems(kind: str, tmp_path: Path) -> None:
    attributes = describe_0_6(kind)
    (multiscale,) = attributes["multiscales"]
    multiscale["coordinateSystems"].insert(0, {"name": "stage", "axes": [{"name": name} for name in "abd"]})
    multiscale["coordinateTransformations"] = [
        {"type": "scale", "scale": [9, 9, 9], "output": {"name": "stage"}}
    ]
    write_image(tmp_path / "a.zarr", attributes, np.moveaxis(PICTURE, 2, 0))
    with open_slide(tmp_path / "a.zarr") as slide:
        assert slide.mpp == 0.25
        np.testing.assert_array_equal(slide.read(0, 0, HEIGHT, WIDTH, 0.25), PICTURE)


@pytest.mark.parametrize("kind", ["scale", "sequence"])
def test_what_these_tests_call_version_0_6_is_that(kind: str) -> None:
    models = pytest.importorskip("ome_zarr_models.v06.image")
    image = models.ImageAttrs.model_validate(describe_0_6(kind))
    assert [axis.name for axis in image.multiscales[0].intrinsic_coordinate_system.axes] == ["c", "y", "x"]


def test_other_transformations_of_levels_state_no_resolution(tmp_path: Path) -> None:
    attributes = describe()
    attributes["multiscales"][0]["datasets"][0]["coordinateTransformations"].append({"type": "rotation"})
    write_image(tmp_path / "a.zarr", attributes)
    with pytest.raises(InputError, match="no resolution"):
        open_slide(tmp_path / "a.zarr")


# Packagings


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zipped_zarr_is_a_slide(version: int, compression: int, tmp_path: Path) -> None:
    write_image(tmp_path / "folder", describe(), version=version)
    zip_folder(tmp_path / "folder", tmp_path / "a.ozx", compression)
    with open_slide(tmp_path / "a.ozx") as slide:
        assert (slide.format, slide.name, slide.mpp) == ("ome-zarr", "a", 0.5)
        np.testing.assert_array_equal(slide.read(0, 0, HEIGHT, WIDTH, 0.5), PICTURE)


def test_another_zip_archive_is_told_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("slide.txt", "none")
    with pytest.raises(InputError, match=r"a zip archive that is no OME-Zarr"):
        open_slide(tmp_path / "a.zip")
    content = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "cut.ozx").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cut\.ozx: the OME-Zarr is damaged"):
        open_slide(tmp_path / "cut.ozx")


def write_converted(path: Path, *images: tuple[np.ndarray, float], version: int = 3) -> None:
    """As bioformats2raw does: each image a group, and an OME header beside them."""
    root = zarr.open_group(path, mode="w", zarr_format=version)
    layout = {"bioformats2raw.layout": 3}
    root.attrs.update({"ome": {"version": "0.5", **layout}} if version == 3 else layout)
    for i, (image, mpp) in enumerate(images):
        write_image(path / str(i), describe(mpp), image, version=version)
    listed = {"series": [str(i) for i in range(len(images))]}
    other = zarr.open_group(path / "OME", mode="w", zarr_format=version)
    other.attrs.update({"ome": listed} if version == 3 else listed)
    described = "".join(f'<Image ID="Image:{i}" Name="image {i}"/>' for i in range(len(images)))
    (path / "OME" / "METADATA.ome.xml").write_text(f"<OME>{described}</OME>")


@pytest.mark.parametrize("version", [2, 3])
def test_the_largest_image_of_bioformats2raw_is_read(
    version: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_converted(tmp_path / "a.zarr", (SMALL, 8.0), (PICTURE, 0.5), version=version)
    write_converted(tmp_path / "b.zarr", (PICTURE[:-9], 0.5), (PICTURE, 0.5), version=version)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(read_whole(tmp_path / "a.zarr"), PICTURE)
        assert "image 0" not in caplog.text
        np.testing.assert_array_equal(read_whole(tmp_path / "b.zarr"), PICTURE)
    with open_slide(tmp_path / "a.zarr", series=0) as slide:
        assert (slide.series, slide.height, slide.mpp) == (0, 60, 8.0)
    with pytest.raises(InputError, match="--series 2: there is no such image"):
        open_slide(tmp_path / "a.zarr", series=2)
    assert "1 'image 1' (190 × 150) is read, and not 0 'image 0' (190 × 141)" in caplog.text


def test_a_plate_is_told_so(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "a.zarr", mode="w").attrs.update({"ome": {"plate": {"wells": []}}})
    with pytest.raises(InputError, match=r"no multiscales in its metadata\): it is a plate"):
        open_slide(tmp_path / "a.zarr")


# Codecs


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("codec", [numcodecs.LZ4(), numcodecs.LZMA(preset=1)], ids=["lz4", "lzma"])
def test_chunks_of_codecs_that_tensorstore_lacks(codec: Any, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write_image(path, describe(), version=2, compressors=codec)
    if packed:
        zip_folder(path, tmp_path / "a.ozx")
        path = tmp_path / "a.ozx"
    np.testing.assert_array_equal(read_whole(path), PICTURE)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(60, 70, 70, 80, 0.5), PICTURE[60:130, 70:150])


def test_chunks_of_jpeg(tmp_path: Path) -> None:
    imagecodecs.numcodecs.register_codecs(verbose=False)
    smooth = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH))[..., None] // np.array([2, 3, 4]) + 20
    smooth = smooth.astype(np.uint8)
    codec = imagecodecs.numcodecs.Jpeg(level=98)
    write_image(tmp_path / "a.zarr", describe(), smooth, version=2, compressors=codec)
    assert np.abs(read_whole(tmp_path / "a.zarr").astype(int) - smooth).mean() < 2


def test_a_codec_that_nobody_has_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a.zarr", describe(), version=2, compressors=numcodecs.LZ4())
    header = tmp_path / "a.zarr" / "0" / ".zarray"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"compressor": {"id": "pied-piper"}}))
    with pytest.raises(InputError, match=r"level 0 is compressed in a way that is not read \(.*pied-piper"):
        open_slide(tmp_path / "a.zarr")


def test_a_missing_package_is_told_with_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a.zarr", describe(), version=2, compressors=numcodecs.LZ4())
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(InputError, match=r"pip install 'fseg-jax\[zarr\]'"):
        open_slide(tmp_path / "a.zarr")


def test_a_filter_is_undone(tmp_path: Path) -> None:
    write_image(tmp_path / "a.zarr", describe(), version=2, filters=numcodecs.Delta(dtype="u1"))
    np.testing.assert_array_equal(read_whole(tmp_path / "a.zarr"), PICTURE)


# Channels


def name_channels(*labels: str, colours: tuple[str, ...] = ()) -> dict[str, Any]:
    channels = [{"label": label} for label in labels] or [{"color": colour} for colour in colours]
    return {"omero": {"channels": channels}}


def test_grey_is_read(tmp_path: Path) -> None:
    write_image(tmp_path / "a.zarr", describe(axes=AXES[:2]), PICTURE[..., 0])
    write_image(tmp_path / "b.zarr", describe(), PICTURE[..., :1])
    for name in ("a.zarr", "b.zarr"):
        np.testing.assert_array_equal(read_whole(tmp_path / name), np.repeat(PICTURE[..., :1], 3, axis=2))


def test_channels_are_red_green_and_blue_by_their_names_or_colours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_image(tmp_path / "a.zarr", describe(**name_channels("Blue", "Green", "Red")), PICTURE[..., ::-1])
    colours = name_channels(colours=("0000FF", "FF0000", "00ff00"))
    write_image(tmp_path / "b.zarr", describe(**colours), PICTURE[..., [2, 0, 1]])
    with caplog.at_level(logging.WARNING):
        for name in ("a.zarr", "b.zarr"):
            np.testing.assert_array_equal(read_whole(tmp_path / name), PICTURE)
    assert not caplog.records


def test_four_channels_are_rgba_only_by_name(tmp_path: Path) -> None:
    image = np.dstack([PICTURE, np.full((HEIGHT, WIDTH), 64, np.uint8)])
    write_image(tmp_path / "a.zarr", describe(**name_channels("red", "green", "blue", "alpha")), image)
    expected = PICTURE * (64 / 255) + 255 * (1 - 64 / 255)
    assert np.abs(read_whole(tmp_path / "a.zarr") - expected).max() <= 1
    named = describe(**name_channels("DAPI", "CD3", "CD8", "PanCK"))
    write_image(tmp_path / "b.zarr", named, image.astype(np.uint16))
    write_image(tmp_path / "c.zarr", describe(), image)
    for name, listed in (("b.zarr", "DAPI, CD3, CD8, PanCK"), ("c.zarr", "without names")):
        with pytest.raises(InputError, match=rf"it has 4 channels \({listed}\), as fluorescence has"):
            open_slide(tmp_path / name)
