"""OME-Zarr in the versions, packagings and codecs that others write."""

import json
import logging
import lzma
import zipfile
from pathlib import Path
from typing import Any

import imagecodecs.numcodecs
import numcodecs
import numpy as np
import pytest
import tensorstore as ts
import zarr
import zarr.codecs.numcodecs

from fseg_jax.errors import InputError
from fseg_jax.slides.reader import open_slide, prefetch_boxes

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
    options = {"chunks": tuple(min(side, 64) for side in image.shape), **options}
    array = group.create_array("0", shape=image.shape, dtype=image.dtype, **options)
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


@pytest.mark.parametrize("chunk", [50, 256])
@pytest.mark.parametrize("version", [2, 3])
def test_chunks_of_blosc_of_any_size(version: int, chunk: int, tmp_path: Path) -> None:
    """They may not divide the picture, or be larger."""
    codec: Any = zarr.codecs.BloscCodec(cname="zstd") if version == 3 else numcodecs.Blosc(cname="zstd")
    separator = {"chunk_key_encoding": {"name": "v2", "separator": "/"}} if version == 2 else {}
    write_image(
        tmp_path / "a.zarr",
        describe(),
        version=version,
        compressors=codec,
        chunks=(chunk,) * 2 + (3,),
        **separator,
    )
    np.testing.assert_array_equal(read_whole(tmp_path / "a.zarr"), PICTURE)
    with open_slide(tmp_path / "a.zarr") as slide:
        np.testing.assert_array_equal(slide.read(47, 60, 70, 101, 0.5), PICTURE[47:117, 60:161])


def test_blosc_with_snappy_is_read_by_tensorstore(tmp_path: Path) -> None:
    write_image(tmp_path / "a.zarr", describe(), version=2)
    spec: dict[str, Any] = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{tmp_path}/a.zarr/0/"},
        "metadata": {"compressor": {"id": "blosc", "cname": "snappy", "clevel": 5, "shuffle": 1}},
    }
    array = ts.open(spec, create=True, delete_existing=True, dtype=ts.uint8, shape=PICTURE.shape).result()
    array[...] = PICTURE
    np.testing.assert_array_equal(read_whole(tmp_path / "a.zarr"), PICTURE)


def test_chunks_whose_first_axis_is_the_fastest(tmp_path: Path) -> None:
    write_image(tmp_path / "a.zarr", describe(), version=2, compressors=numcodecs.LZ4(), order="F")
    np.testing.assert_array_equal(read_whole(tmp_path / "a.zarr"), PICTURE)


def test_chunks_of_imagecodecs_own(tmp_path: Path) -> None:
    imagecodecs.numcodecs.register_codecs(verbose=False)
    codec = imagecodecs.numcodecs.Lz4(level=1, header=True)
    write_image(tmp_path / "a.zarr", describe(), version=2, compressors=codec)
    np.testing.assert_array_equal(read_whole(tmp_path / "a.zarr"), PICTURE)


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
def test_chunks_of_version_3_that_tensorstore_lacks(tmp_path: Path) -> None:
    write_image(
        tmp_path / "a.zarr",
        describe(),
        compressors=[zarr.codecs.numcodecs.LZ4()],
        filters=[zarr.codecs.TransposeCodec(order=(2, 0, 1))],
        chunk_key_encoding={"name": "v2", "separator": "/"},
    )
    np.testing.assert_array_equal(read_whole(tmp_path / "a.zarr"), PICTURE)


@pytest.mark.parametrize("order", ["yxc", "cyx"])
def test_chunks_of_jpeg(order: str, tmp_path: Path) -> None:
    imagecodecs.numcodecs.register_codecs(verbose=False)
    smooth = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH))[..., None] // np.array([2, 3, 4]) + 20
    smooth = smooth.astype(np.uint8)
    codec = imagecodecs.numcodecs.Jpeg(level=98)
    axes, stored, options = AXES, smooth, {}
    if order == "cyx":
        axes, stored, options = [AXES[2], *AXES[:2]], np.moveaxis(smooth, 2, 0), {"chunks": (1, 64, 64)}
    write_image(tmp_path / "a.zarr", describe(axes=axes), stored, version=2, compressors=codec, **options)
    assert np.abs(read_whole(tmp_path / "a.zarr").astype(int) - smooth).mean() < 2


@pytest.mark.parametrize("kind", ["lz4", "lzma", "jpeg8", "blosc", "short"])
def test_a_chunk_is_decoded_into_what_its_array_states(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a chunk states of itself, or would become, takes no memory."""
    imagecodecs.numcodecs.register_codecs(verbose=False)
    codec, chunk = {
        "lz4": (numcodecs.LZ4(), (1 << 30).to_bytes(4, "little") + bytes(20)),
        "lzma": (numcodecs.LZMA(preset=1), lzma.compress(bytes(1 << 20), preset=0)),
        "jpeg8": (imagecodecs.numcodecs.Jpeg(), imagecodecs.jpeg8_encode(np.zeros((999, 999, 3), np.uint8))),
        "blosc": (numcodecs.Blosc(), imagecodecs.blosc_encode(bytes(1 << 20))),
        "short": (numcodecs.LZMA(preset=1), lzma.compress(bytes(64))),
    }[kind]
    write_image(tmp_path / "a.zarr", describe(), version=2, compressors=codec)
    (tmp_path / "a.zarr" / "0" / "0.0.0").write_bytes(chunk)
    name = "lzma_decode" if kind == "short" else f"{kind}_decode"
    decode, sizes = getattr(imagecodecs, name), []

    def decode_chunk(data: bytes, *, out: np.ndarray, **options: Any) -> Any:
        sizes.append(out.nbytes)
        decoded = decode(data, out=out, **options)
        assert np.shares_memory(decoded, out)
        return decoded

    monkeypatch.setattr(imagecodecs, name, decode_chunk)
    with open_slide(tmp_path / "a.zarr") as slide:
        if kind == "lzma":  # the rest is not decoded
            assert not slide.read(0, 0, 8, 8, 0.5).any()
        else:
            with pytest.raises(InputError, match="cannot be decoded at y = 0, x = 0 of level 0"):
                slide.read(0, 0, 8, 8, 0.5)
    assert set(sizes) == {64 * 64 * 3}


@pytest.mark.parametrize("where", ["compressor", "filters"])
def test_a_pickle_is_not_read(where: str, tmp_path: Path) -> None:
    write_image(tmp_path / "a.zarr", describe(), version=2)
    header = tmp_path / "a.zarr" / "0" / ".zarray"
    pickled: Any = {"id": "pickle", "protocol": 4}
    stated = {where: [pickled] if where == "filters" else pickled}
    header.write_text(json.dumps(json.loads(header.read_text()) | stated))
    with pytest.raises(InputError, match=r"level 0 is compressed in a way that is not read \(pickle"):
        open_slide(tmp_path / "a.zarr")


def test_a_codec_that_nobody_has_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a.zarr", describe(), version=2, compressors=numcodecs.LZ4())
    header = tmp_path / "a.zarr" / "0" / ".zarray"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"compressor": {"id": "pied-piper"}}))
    with pytest.raises(InputError, match=r"level 0 is compressed in a way that is not read \(.*pied-piper"):
        open_slide(tmp_path / "a.zarr")


def test_a_filter_is_undone(tmp_path: Path) -> None:
    write_image(tmp_path / "a.zarr", describe(), version=2, filters=numcodecs.Delta(dtype="u1"))
    np.testing.assert_array_equal(read_whole(tmp_path / "a.zarr"), PICTURE)


# Chunks


@pytest.mark.parametrize("options", [{}, {"shards": (128, 128, 3)}, {"fill_value": 240}], ids=str)
@pytest.mark.parametrize("version", [2, 3])
def test_chunks_that_were_never_written_are_white_and_were_not_scanned(
    version: int, options: dict[str, Any], tmp_path: Path
) -> None:
    """But where the file says what is there, or where some channels are."""
    if version == 2 and "shards" in options:
        pytest.skip("version 2 has no shards")
    image = np.full((HEIGHT, WIDTH, 3), options.get("fill_value", 0), np.uint8)
    image[64:128, 64:128] = PICTURE[64:128, 64:128]
    write_image(tmp_path / "a.zarr", describe(), image, version=version, **options)
    is_white = "fill_value" not in options
    with open_slide(tmp_path / "a.zarr") as slide:
        expected = np.full_like(image, 255 if is_white else 240)
        expected[64:128, 64:128] = PICTURE[64:128, 64:128]
        np.testing.assert_array_equal(slide.read(0, 0, HEIGHT, WIDTH, 0.5), expected)
        scanned = slide.read_scanned(0.5)
        if is_white:
            assert scanned is not None
            np.testing.assert_array_equal(scanned, (image > 0).any(axis=2) | (expected < 255).any(axis=2))
        else:
            assert scanned is None


def test_a_channel_that_is_0_is_no_gap(tmp_path: Path) -> None:
    blue = np.zeros((3, 64, 130), np.uint8)
    blue[2, :, :64] = 200
    axes = [AXES[2], *AXES[:2]]
    write_image(tmp_path / "a.zarr", describe(axes=axes), blue, version=2, chunks=(1, 64, 64))
    picture = read_whole(tmp_path / "a.zarr")
    assert (picture[:, :64] == (0, 0, 200)).all() and (picture[:, 64:] == 255).all()


def test_each_chunk_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a.zarr", describe(), version=2, compressors=numcodecs.LZ4())
    decoded = []
    decode = imagecodecs.lz4_decode
    monkeypatch.setattr(
        imagecodecs, "lz4_decode", lambda *args, **options: decoded.append(1) or decode(*args, **options)
    )
    with open_slide(tmp_path / "a.zarr") as slide:
        boxes = [(y, x, 40, 40) for y in range(0, 120, 20) for x in range(0, 160, 20)]
        for (y, x, _, _), pixels in zip(boxes, prefetch_boxes(slide, boxes, 0.5, 4), strict=True):
            np.testing.assert_array_equal(pixels, PICTURE[y : y + 40, x : x + 40])
    assert len(decoded) == 9


def test_a_file_that_the_system_does_not_give_is_not_called_damaged(tmp_path: Path) -> None:
    """A link to itself is opened by nobody, root included."""
    write_image(tmp_path / "a.zarr", describe())
    with open_slide(tmp_path / "a.zarr") as slide:
        replace_by_loop(tmp_path / "a.zarr" / "0" / "c" / "0" / "0" / "0")
        with pytest.raises(InputError, match=r"symbolic links: .*0/c/0/0/0'\); the disk, or the file system"):
            slide.read(0, 0, 8, 8, 0.5)
    replace_by_loop(tmp_path / "a.zarr" / "0" / "zarr.json")
    with pytest.raises(InputError, match=r"a.zarr: cannot be read \(.*symbolic links: .*0/zarr.json\)"):
        open_slide(tmp_path / "a.zarr")


def replace_by_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def test_what_may_not_be_read_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a.zarr", describe())
    with open_slide(tmp_path / "a.zarr") as slide:

        def refuse(*_: int) -> np.ndarray:
            raise PermissionError(13, "Permission denied", "0/c/0/0/0")

        monkeypatch.setattr(slide._pixels, "read", refuse)
        with pytest.raises(InputError, match=r"Permission denied: '0/c/0/0/0'\); look at the permissions"):
            slide.read(0, 0, 8, 8, 0.5)


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
