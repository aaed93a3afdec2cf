"""What a TIFF is is known from what is in it: its images, their pixel sizes, colours and orientation."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image, ImageOps

from fseg_jax.cli import cli
from fseg_jax.errors import InputError
from fseg_jax.files.images import load_image
from fseg_jax.pipeline.slide_facts import SlideFacts
from fseg_jax.slides.reader import open_slide
from fseg_jax.slides.units import convert_to_um

HEIGHT, WIDTH = 150, 190
PICTURE = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
SMALL = PICTURE[:60, :70].copy()
CHANNELS = np.moveaxis(PICTURE, 2, 0).copy()
TILES = {"tile": (64, 96), "compression": "zlib"}
STRIPS = {"rowsperstrip": 17, "compression": "zlib"}
PER_CM = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}  # 0.5 µm
PLAIN = {**PER_CM, "metadata": None}


def size(mpp: float, **other: object) -> dict[str, object]:
    """What tifffile's OME writer wants of an image."""
    return {
        "axes": "YXS", "PhysicalSizeX": mpp, "PhysicalSizeY": mpp, "PhysicalSizeXUnit": "µm",
        "PhysicalSizeYUnit": "µm", **other,
    }  # fmt: skip


def write_ome(path: Path, *images: tuple[np.ndarray, dict[str, object]], **options: object) -> None:
    with tifffile.TiffWriter(path, ome=True) as writer:
        for image, metadata in images:
            writer.write(image, metadata=metadata, **({"photometric": "rgb", **TILES} | options))


def read_whole(path: Path, mpp: float | None = None) -> np.ndarray:
    with open_slide(path, mpp) as slide:
        return slide.read(0, 0, slide.height, slide.width, slide.mpp)


def set_tag(path: Path, name: str, value: object) -> None:
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags[name].overwrite(value)


# Which image


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.svs", "a.qptiff"])
def test_an_ome_tiff_is_known_by_its_header(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write_ome(
        path,
        (SMALL, size(8.0, Name="macro")),
        (PICTURE, size(0.5, Name="slide")),
        resolution=(1, 1),
        resolutionunit="INCH",
    )
    with open_slide(path) as slide:
        assert (slide.format, slide.height, slide.width, slide.mpp) == ("ome-tiff", HEIGHT, WIDTH, 0.5)
    np.testing.assert_array_equal(read_whole(path), PICTURE)


def test_levels_in_subifds_are_levels_under_any_name(tmp_path: Path) -> None:
    for name, ome in (("a.tif", True), ("b.tif", False)):
        with tifffile.TiffWriter(tmp_path / name, ome=ome) as writer:
            for i in range(3):
                level = np.full((256 >> i, 256 >> i, 3), 40 * (i + 1), np.uint8)
                own = {"subifds": 2} if i == 0 else {"subfiletype": 1}
                writer.write(
                    level, photometric="rgb", **TILES, **PER_CM, **own, metadata=size(0.5) if ome else None
                )
        with open_slide(tmp_path / name) as slide:
            assert slide.level_mpps == pytest.approx([0.5, 1, 2])
            assert [int(slide.read(0, 0, 1, 1, mpp)[0, 0, 0]) for mpp in (0.5, 1, 2)] == [40, 80, 120]


def test_the_largest_image_of_a_plain_tiff_is_read_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(SMALL, photometric="rgb", **TILES, metadata=None)
        writer.write(PICTURE, photometric="rgb", **TILES, **PLAIN)
    np.testing.assert_array_equal(read_whole(path), PICTURE)


@pytest.mark.parametrize("options", [TILES, STRIPS])
def test_several_pages_of_one_size_are_refused(options: dict, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for image in (PICTURE // 8, PICTURE):
            writer.write(image, photometric="rgb", **options, **PLAIN)
    with pytest.raises(InputError, match="has 2 pages of one size"):
        open_slide(path)


@pytest.mark.parametrize("name", ["z.tif", "z.ome.tif"])
def test_planes_are_refused_under_any_name(name: str, tmp_path: Path) -> None:
    write_ome(tmp_path / name, (np.stack([PICTURE] * 2), size(0.5, axes="ZYXS")))
    with pytest.raises(InputError, match=r"has several planes \(Z: 2\)"):
        open_slide(tmp_path / name)


def test_another_scene_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.ome.tif"
    write_ome(
        path,
        (PICTURE[:-10], size(0.5, Name="Left")),
        (PICTURE, size(0.5, Name="Right")),
        (SMALL, size(8, Name="x")),
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(read_whole(path), PICTURE)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{path}: has several images: 1 'Right' (190 × 150) is read, and not 0 'Left' (190 × 140); "
        "--series takes another by its number"
    )


def test_a_number_chooses_another_scene_and_the_record_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    scenes = [
        (make_scene(256, 384, 0), size(4.0, Name="Left")),
        (make_scene(256, 512, 1), size(4.0, Name="Right")),
    ]
    write_ome(path, *scenes)
    for number, options in ((1, []), (0, ["--series", "0"])):
        with open_slide(path, series=number if options else None) as slide:
            assert slide.series == number
            np.testing.assert_array_equal(slide.read(0, 0, slide.height, slide.width, 4.0), scenes[number][0])
        out = tmp_path / str(number)
        result = CliRunner().invoke(cli, ["tissue", str(path), "-o", str(out), *options])
        assert result.exit_code == 0, result.output
        record = json.loads((out / "a.tissue.json").read_text())
        facts = SlideFacts.from_json(record["slide"])
        assert (facts.series, facts.width) == (number, scenes[number][0].shape[1])
    with pytest.raises(
        InputError, match=r"--series 2: there is no such image; it has 0 'Left' \(384 × 256\), 1 'Right'"
    ):
        open_slide(path, series=2)


def make_scene(height: int, width: int, seed: int) -> np.ndarray:
    """Glass, and tissue in its middle."""
    scene = np.full((height, width, 3), 243, np.uint8)
    noise = np.random.default_rng(seed).integers(-15, 15, (height // 2, width // 2, 3))
    scene[height // 4 : -height // 4, width // 4 : -width // 4] = np.array((200, 110, 170)) + noise
    return scene


def test_a_file_of_one_image_has_no_other(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    write_ome(tmp_path / "a.tif", (PICTURE, size(0.5)))
    for name, says in (("a.png", "the file has a single image"), ("a.tif", "there is no such image")):
        with open_slide(tmp_path / name, 0.5, series=0) as slide:
            assert slide.series is None
        with pytest.raises(InputError, match=rf"--series 1: {says}"):
            open_slide(tmp_path / name, 0.5, series=1)


def test_a_mask_of_transparency_is_no_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As GDAL writes it into a cloud-optimized GeoTIFF, in all sizes that the picture has."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for step, kind in ((1, 0), (2, 1)):
            picture = np.ascontiguousarray(PICTURE[::step, ::step])
            shown = np.ones(picture.shape[:2], bool)
            writer.write(picture, photometric="rgb", subfiletype=kind, **TILES, **PLAIN)
            writer.write(shown, photometric="minisblack", subfiletype=4 + kind, metadata=None, tile=(64, 96))
    with caplog.at_level(logging.WARNING), open_slide(path) as slide:
        assert slide.level_mpps == [0.5, 1.0]
        np.testing.assert_array_equal(slide.read(0, 0, 75, 95, 1.0), PICTURE[::2, ::2])
        np.testing.assert_array_equal(slide.read(0, 0, HEIGHT, WIDTH, 0.5), PICTURE)
        np.testing.assert_array_equal(load_image(path), PICTURE)
    assert not caplog.records


# Files of a set

IDS = ["urn:uuid:00000000-0000-0000-0000-00000000000a", "urn:uuid:00000000-0000-0000-0000-00000000000b"]


def describe_image(number: int, shape: tuple[int, int], mpp: float, data: str, samples: int = 3) -> str:
    channels = (
        f'<Channel ID="Channel:{number}:0" SamplesPerPixel="3"/>'
        if samples == 3
        else "".join(
            f'<Channel ID="Channel:{number}:{i}" Name="{name}" SamplesPerPixel="1"/>'
            for i, name in enumerate(["red", "green", "blue"])
        )
    )
    return (
        f'<Image ID="Image:{number}"><Pixels ID="Pixels:{number}" DimensionOrder="XYCZT" Type="uint8" '
        f'SizeX="{shape[1]}" SizeY="{shape[0]}" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="{mpp}" '
        f'PhysicalSizeY="{mpp}">{channels}{data}</Pixels></Image>'
    )


def locate(file: str, uuid: str, channel: int = 0) -> str:
    return (
        f'<TiffData FirstC="{channel}" FirstT="0" FirstZ="0" IFD="0" PlaneCount="1">'
        f'<UUID FileName="{file}">{uuid}</UUID></TiffData>'
    )


def wrap_ome(uuid: str, content: str) -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f'UUID="{uuid}">{content}</OME>'
    )


def write_described(path: Path, image: np.ndarray, description: str, photometric: str = "rgb") -> None:
    tifffile.imwrite(path, image, photometric=photometric, description=description, metadata=None, **TILES)


@pytest.mark.parametrize("alone", [True, False])
def test_a_file_of_a_set_has_its_own_image_and_pixel_size(alone: bool, tmp_path: Path) -> None:
    """As ``bfconvert`` writes a file for each series."""
    images = describe_image(0, SMALL.shape[:2], 2.0, locate("s0.ome.tif", IDS[0])) + describe_image(
        1, PICTURE.shape[:2], 0.25, locate("s1.ome.tif", IDS[1])
    )
    if not alone:
        write_described(tmp_path / "s0.ome.tif", SMALL, wrap_ome(IDS[0], images))
    write_described(tmp_path / "s1.ome.tif", PICTURE, wrap_ome(IDS[1], images))
    with open_slide(tmp_path / "s1.ome.tif") as slide:
        assert slide.mpp == 0.25
        np.testing.assert_array_equal(slide.read(0, 0, HEIGHT, WIDTH, 0.25), PICTURE)
    if not alone:
        with open_slide(tmp_path / "s0.ome.tif") as slide:
            assert slide.mpp == 2.0
            np.testing.assert_array_equal(slide.read(0, 0, 60, 70, 2.0), SMALL)


def test_a_file_that_was_renamed_keeps_its_pixel_size(tmp_path: Path) -> None:
    image = describe_image(0, PICTURE.shape[:2], 0.25, locate("before.ome.tif", IDS[0]))
    text = wrap_ome(IDS[0], image).replace(f' UUID="{IDS[0]}"', "")
    write_described(tmp_path / "after.tif", PICTURE, text)
    with open_slide(tmp_path / "after.tif") as slide:
        assert (slide.format, slide.mpp) == ("ome-tiff", 0.25)
        np.testing.assert_array_equal(slide.read(0, 0, HEIGHT, WIDTH, 0.25), PICTURE)


@pytest.mark.parametrize("kind", ["each", "master", "companion"])
def test_an_image_over_several_files_is_read_from_any_of_them(kind: str, tmp_path: Path) -> None:
    names, ids = [f"c{i}.ome.tif" for i in range(3)], [*IDS, IDS[0].replace("0a", "0c")]
    data = "".join(locate(name, uuid, i) for i, (name, uuid) in enumerate(zip(names, ids, strict=True)))
    image = describe_image(0, PICTURE.shape[:2], 0.25, data, samples=1)
    for i, (name, uuid) in enumerate(zip(names, ids, strict=True)):
        text = wrap_ome(uuid, image)
        if kind == "companion" or (kind == "master" and i > 0):
            file = "set.companion.ome" if kind == "companion" else names[0]
            text = wrap_ome(uuid, f'<BinaryOnly MetadataFile="{file}" UUID="{IDS[0]}"/>')
        write_described(tmp_path / name, CHANNELS[i], text, "minisblack")
    if kind == "companion":
        (tmp_path / "set.companion.ome").write_text(wrap_ome("urn:uuid:x", image))
    for name in names:
        with open_slide(tmp_path / name) as slide:
            assert slide.mpp == 0.25
            np.testing.assert_array_equal(slide.read(0, 0, HEIGHT, WIDTH, 0.25), PICTURE)
    (tmp_path / names[1]).unlink()
    with pytest.raises(InputError, match="in other files of its set, which are not beside it"):
        open_slide(tmp_path / names[0])
    if kind == "companion":
        (tmp_path / "set.companion.ome").unlink()
        with pytest.raises(
            InputError, match=r"its OME header is in set\.companion\.ome, which cannot be read"
        ):
            open_slide(tmp_path / names[0])


# Colours


def write_channels(path: Path, names: list[str], image: np.ndarray, **more: object) -> None:
    described = ({"Name": names} if names else {}) | more
    metadata = size(0.5, axes="CYX") | ({"Channel": described} if described else {})
    write_ome(path, (image, metadata), photometric="minisblack")


def test_channels_are_red_green_and_blue_by_their_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_channels(tmp_path / "a.tif", ["Blue", "red", "GREEN"], CHANNELS[[2, 0, 1]])
    write_channels(tmp_path / "b.tif", [], CHANNELS[[1, 2, 0]], Color=[16711935, 65535, -16776961])
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(read_whole(tmp_path / "a.tif"), PICTURE)
        np.testing.assert_array_equal(read_whole(tmp_path / "b.tif"), PICTURE)
    assert not caplog.records


@pytest.mark.parametrize(
    ("names", "listed"), [(["DAPI", "CD3", "CD8"], "DAPI, CD3, CD8"), ([], "without names")]
)
def test_three_other_channels_are_warned_of(
    names: list[str], listed: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_channels(tmp_path / "a.ome.tif", names, CHANNELS)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(read_whole(tmp_path / "a.ome.tif"), PICTURE)
    (record,) = caplog.records
    assert (
        f"its three channels ({listed}) are not named or coloured red, green and blue" in record.getMessage()
    )


@pytest.mark.parametrize("names", [["DAPI", "CD3", "CD8", "PanCK"], ["DAPI", "CD3"]])
def test_other_numbers_of_channels_are_refused_by_name(names: list[str], tmp_path: Path) -> None:
    image = np.resize(CHANNELS, (len(names), HEIGHT, WIDTH))
    for depth in (np.uint8, np.uint16):
        write_channels(tmp_path / "a.ome.tif", names, image.astype(depth))
        with pytest.raises(InputError, match=rf"it has {len(names)} channels \({', '.join(names)}\)"):
            open_slide(tmp_path / "a.ome.tif")
    write_channels(tmp_path / "b.ome.tif", ["x"] * 3, CHANNELS, ContrastMethod=["Fluorescence"] * 3)
    with pytest.raises(InputError, match=r"it has 3 channels \(x, x, x\), as fluorescence has"):
        open_slide(tmp_path / "b.ome.tif")


def test_four_interleaved_grey_channels_are_no_rgba(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", np.dstack([PICTURE, PICTURE[..., 0]]), photometric="minisblack",
        planarconfig="contig", **TILES, **PLAIN,
    )  # fmt: skip
    with pytest.raises(InputError, match="it has 4 channels"):
        open_slide(tmp_path / "a.tif")


@pytest.mark.parametrize("options", [TILES, STRIPS, {}])
@pytest.mark.parametrize("extra", ["unspecified", "unassalpha", "assocalpha"])
def test_a_fourth_sample_is_opacity_only_where_the_file_says_so(
    extra: str, options: dict, tmp_path: Path
) -> None:
    alpha = np.full((HEIGHT, WIDTH, 1), 64, np.uint8)
    stored = PICTURE // 4 if extra == "assocalpha" else PICTURE
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, np.dstack([stored, alpha]), photometric="rgb", extrasamples=[extra], **options, **PLAIN
    )
    expected = PICTURE.astype(float)
    if extra != "unspecified":
        expected = stored * (1.0 if extra == "assocalpha" else 64 / 255) + 255 * (1 - 64 / 255)
    assert np.abs(read_whole(path) - expected).max() <= 1


@pytest.mark.parametrize("options", [TILES, STRIPS, {}])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "palette"])
def test_grey_and_palettes_are_read_as_they_are_shown(
    photometric: str, options: dict, tmp_path: Path
) -> None:
    path, more = tmp_path / "a.tif", {}
    if photometric == "palette":
        more = {"colormap": np.random.default_rng(0).integers(0, 65536, (3, 256), dtype=np.uint16)}
    tifffile.imwrite(path, PICTURE[..., 0], photometric=photometric, **options, **more, **PLAIN)
    with Image.open(path) as image:  # which knows nothing of min-is-white in tiles without a compression
        expected = np.asarray(image.convert("RGB"))
    if photometric == "miniswhite":
        expected = np.repeat(255 - PICTURE[..., :1], 3, axis=2)
    np.testing.assert_array_equal(read_whole(path), expected)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb"])
def test_tiles_that_were_never_written_are_white_in_any_colours(photometric: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    image = PICTURE if photometric == "rgb" else PICTURE[..., 0]
    axes = "YXS" if photometric == "rgb" else "YX"
    write_ome(path, (image, size(0.5, axes=axes)), photometric=photometric)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        page = tiff.pages[0]
        for name, values in (("TileOffsets", page.dataoffsets), ("TileByteCounts", page.databytecounts)):
            page.tags[name].overwrite([0, *values[1:]])
    whole = read_whole(path)
    assert (whole[:64, :96] == 255).all() and (whole[64:] != 255).any()


BAD_PIXELS = {
    "16-bit RGB": (PICTURE.astype(np.uint16) << 4, {"photometric": "rgb"}),
    "16-bit grey": (PICTURE[..., 0].astype(np.uint16) << 2, {"photometric": "minisblack"}),
    "32-bit float grey": (PICTURE[..., 0].astype(np.float32), {"photometric": "minisblack"}),
    "8-bit signed grey": (PICTURE[..., 0].astype(np.int8), {"photometric": "minisblack"}),
    "8-bit CIELab": (PICTURE, {"photometric": "cielab"}),
    "8-bit CMYK": (np.dstack([PICTURE, PICTURE[..., :1]]), {"photometric": "separated"}),
    "1-bit grey": (PICTURE[..., 0] > 99, {"photometric": "minisblack"}),
}


@pytest.mark.parametrize("options", [TILES, STRIPS])
@pytest.mark.parametrize("kind", BAD_PIXELS)
def test_other_pixels_are_refused_by_what_they_are(kind: str, options: dict, tmp_path: Path) -> None:
    image, own = BAD_PIXELS[kind]
    tifffile.imwrite(tmp_path / "a.tif", image, **own, **options, **PLAIN)
    with pytest.raises(InputError, match=f"is required, and the TIFF is {kind}; convert it to 8-bit RGB"):
        open_slide(tmp_path / "a.tif")


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif"])
def test_planar_jpeg_holds_red_green_and_blue_whatever_its_tags_say(
    name: str, subsampling: tuple[int, int], tmp_path: Path
) -> None:
    """As Bio-Formats writes it: each plane is a JPEG of grey, and the photometric interpretation is YCbCr."""
    smooth = np.asarray(Image.fromarray(SMALL).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    path = tmp_path / name
    tifffile.imwrite(
        path, np.moveaxis(smooth, 2, 0).copy(), photometric="rgb", planarconfig="separate", tile=(64, 96),
        compression="jpeg", compressionargs={"level": 98}, ome=".ome" in name, **PER_CM,
        extratags=[(530, 3, 2, (1, 1), True)],
        metadata=size(0.5, axes="SYX") if ".ome" in name else None,
    )  # fmt: skip
    expected = np.moveaxis(tifffile.imread(path), 0, 2)
    set_tag(path, "YCbCrSubSampling", subsampling)
    for photometric in (2, 6):
        set_tag(path, "PhotometricInterpretation", photometric)
        np.testing.assert_array_equal(read_whole(path), expected)
    assert np.abs(expected.astype(int) - smooth).mean() < 3


# Orientation


@pytest.mark.parametrize("options", [TILES, STRIPS])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_is_read_upright(orientation: int, options: dict, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, PICTURE, photometric="rgb", extratags=[(274, 3, 1, orientation, True)], **options, **PLAIN
    )
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(PICTURE).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_whole(path), expected)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(20, 50, 70, 80, 0.5), expected[20:90, 50:130])


def test_a_scan_that_is_stored_turned_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    description = "Aperio Image Library v1\n190x150 [0,0 190x150]|AppMag = 20|MPP = 0.5"
    tifffile.imwrite(
        path, PICTURE, photometric="rgb", tile=(64, 96), compression="jpeg", metadata=None,
        description=description, extratags=[(274, 3, 1, 3, True)],
    )  # fmt: skip
    assert openslide.OpenSlide.detect_format(path) == "aperio"
    with pytest.raises(InputError, match="stored turned"):
        open_slide(path)
    set_tag(path, "Orientation", 1)
    with open_slide(path) as slide:
        assert (slide.format, slide.mpp) == ("openslide/aperio", 0.5)


# Units


@pytest.mark.parametrize("unit", ["µm", "um", "micron", "\\u00B5m", "μm", "microns"])
def test_imagej_calibration(unit: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, PICTURE, imagej=True, resolution=(4, 4), metadata={"axes": "YXS", "unit": "@@@@@@@@"}
    )
    content, text = path.read_bytes(), f"unit={unit}".encode("latin-1" if unit == "µm" else "utf-8")
    assert b"unit=@@@@@@@@" in content
    path.write_bytes(content.replace(b"unit=@@@@@@@@", text.ljust(13, b"\n")))
    with open_slide(path) as slide:
        assert slide.mpp == 0.25


@pytest.mark.parametrize("options", [TILES, STRIPS])
def test_a_resolution_without_a_unit_is_per_inch(options: dict, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    per_inch = {"resolution": (50_800, 50_800), "resolutionunit": "INCH"}
    tifffile.imwrite(path, PICTURE, photometric="rgb", metadata=None, **per_inch, **options)
    content = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].tags["ResolutionUnit"].offset
    path.write_bytes(
        content[:offset] + (65_000).to_bytes(2, "little") + content[offset + 2 :]
    )  # an unknown tag
    with tifffile.TiffFile(path) as tiff:
        assert "ResolutionUnit" not in tiff.pages[0].tags
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("unit", "um"),
    [
        ("Âµm", 1), ("Micrometers", 1), ("micrometre", 1), ("\u212b", 1e-4), ("Å", 1e-4), ("nm", 1e-3),
        ("mm", 1e3), ("cm", 1e4), ("inch", 25400), ("inches", 25400), ("pixel", None), ("", None),
    ],
)  # fmt: skip
def test_units_of_length(unit: str, um: float | None) -> None:
    assert convert_to_um(unit) == um


# Names


def test_a_tiff_under_a_scanners_name_that_is_none_is_told_so(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PICTURE, photometric="rgb", **STRIPS, **PLAIN)
    shutil.copy(tmp_path / "a.tif", tmp_path / "a.svs")
    with pytest.raises(
        InputError, match=r"does not recognise it as a \.svs slide.*rename it to \.tif if it is a plain"
    ):
        open_slide(tmp_path / "a.svs")
    np.testing.assert_array_equal(read_whole(tmp_path / "a.tif"), PICTURE)


def test_a_compression_that_nobody_decodes_is_named(tmp_path: Path) -> None:
    for name, value, says in (("a.ome.tif", 60_001, "60001"), ("b.tif", 32_895, "IT8CTPAD")):
        path = tmp_path / name
        write_ome(path, (PICTURE, size(0.5)))
        set_tag(path, "Compression", value)
        with pytest.raises(
            InputError, match=rf"is compressed with .*{says}.*, which is not read; convert it"
        ):
            open_slide(path)


def test_a_scan_of_another_compression_is_told_which(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    description = "Aperio Image Library v1\n190x150 [0,0 190x150]|AppMag = 20|MPP = 0.5"
    tifffile.imwrite(
        path, PICTURE, photometric="rgb", tile=(64, 96), compression="jpegxl", metadata=None,
        description=description,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"OpenSlide does not read it \(.*50002, JPEGXL\)$"):
        open_slide(path)


def test_compressions_that_openslide_lacks_are_read_from_plain_tiffs(tmp_path: Path) -> None:
    for compression in ("zstd", "lzma", "png"):
        path = tmp_path / f"{compression}.tif"
        tifffile.imwrite(path, PICTURE, photometric="rgb", tile=(64, 96), compression=compression, **PLAIN)
        np.testing.assert_array_equal(read_whole(path), PICTURE)


def test_the_preview_in_a_vsi_is_not_the_slide(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.vsi", PICTURE, photometric="rgb", **STRIPS, **PLAIN)
    with pytest.raises(
        InputError, match=r"pixels are in \.ets files, which are not read; convert it to OME-TIFF"
    ):
        open_slide(tmp_path / "a.vsi")
