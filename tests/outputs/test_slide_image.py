"""The image of a slide round its labels, by readers that are not ours, against the picture it is made of."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from label_images import draw_smooth_labels
from skimage import data as pictures
from skimage.transform import downscale_local_mean

from fseg_jax.errors import InputError
from fseg_jax.outputs.colours import make_palette
from fseg_jax.outputs.form import DEFAULT_FORM, OutputForm
from fseg_jax.outputs.labels import LabelWriter, open_labels
from fseg_jax.outputs.slide_image import SlideImage
from fseg_jax.slides.reader import open_slide

SLIDE_MPP, LABEL_MPP = 0.5, 1.0


def write(root: Path, picture: np.ndarray, mpp: float, *, form=DEFAULT_FORM, labels=None) -> Path:
    labels = draw_smooth_labels((600, 700), 4) if labels is None else labels
    slide_image = SlideImage(root, form)
    for name in ("fseg", "artefacts"):
        writer = LabelWriter(
            slide_image.clusters if name == "fseg" else slide_image.locate(name),
            labels.shape, LABEL_MPP, 4, names=None, colours=make_palette(4), provenance={},
            slide_mpp=SLIDE_MPP, source=slide_image.source, sharded=form.shards,
        )  # fmt: skip
        writer.append(labels)
        writer.close()
    slide_image.close(picture, mpp, slide_mpp=SLIDE_MPP, beside=("artefacts",))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A slide of 600 × 700 µm, drawn at 1.25 µm a pixel."""
    picture = np.pad(pictures.immunohistochemistry(), ((0, 0), (0, 48), (0, 0)), mode="reflect")[:480]
    return write(tmp_path_factory.mktemp("image") / "s.ome.zarr", picture, 1.25)


def count_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.smoke
def test_the_image_lies_where_the_labels_lie_and_is_the_picture(root):
    group = zarr.open_group(root, mode="r")
    (multiscale,) = group.attrs["ome"]["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["c", "y", "x"]
    assert len(multiscale["datasets"]) == len(open_labels(root).levels)  # as the specification asks
    picture = np.pad(pictures.immunohistochemistry(), ((0, 0), (0, 48), (0, 0)), mode="reflect")[:480]
    for level, dataset in enumerate(multiscale["datasets"]):
        scale, move = dataset["coordinateTransformations"]
        mpp = scale["scale"][1]
        assert (
            scale["scale"] == [1.0, mpp, mpp]
            and mpp == multiscale["datasets"][0]["coordinateTransformations"][0]["scale"][1] * 2**level
        )
        # The corner of the first pixel is the slide's, in a frame of pixel centres.
        assert np.array(move["translation"][1:]) - mpp / 2 == pytest.approx(-SLIDE_MPP / 2)
        stored = group[str(level)][:]
        assert stored.shape[0] == 3 and stored.dtype == np.uint8
    stored = group["0"][:].transpose(1, 2, 0)
    mpp = multiscale["datasets"][0]["coordinateTransformations"][0]["scale"][1]
    assert stored.shape[:2] == (-(-600 // mpp), -(-700 // mpp))
    y, x = (
        np.minimum((np.arange(n) + 0.5) * mpp / 1.25, size - 1)  # the last may reach past the picture
        for n, size in zip(stored.shape[:2], picture.shape[:2], strict=True)
    )
    window = [picture[int(a - 1) : int(a + 1), int(b - 1) : int(b + 1)].mean((0, 1)) for a in y for b in x]
    assert np.abs(stored.reshape(-1, 3) - window).mean() < 8


def test_the_image_takes_at_most_three_times_the_bytes_of_the_labels(tmp_path):
    noise = np.random.default_rng(0).integers(0, 5, (600, 700), np.uint8)
    picture = np.random.default_rng(1).integers(0, 256, (480, 560, 3), np.uint8)
    root = write(tmp_path / "noise.ome.zarr", picture, 1.25, labels=noise)
    image = sum(count_bytes(root / str(level)) for level in range(3))
    assert 1.5 * count_bytes(root / "labels/fseg") < image <= 3 * count_bytes(root / "labels/fseg")
    root = write(tmp_path / "flat.ome.zarr", picture, 1.25, labels=np.ones((600, 700), np.uint8))
    assert sum(count_bytes(root / str(level)) for level in range(3)) <= 1 << 16


def test_no_level_reaches_over_the_finest(tmp_path):
    ramp = np.linspace(0, 255, 303)[:, None] * np.linspace(0, 1, 205)
    picture = np.repeat(ramp[..., None], 3, axis=2).astype(np.uint8)
    root = write(tmp_path / "s.ome.zarr", picture, 1.0, labels=draw_smooth_labels((303, 205), 4))
    group = zarr.open_group(root, mode="r")
    levels = [group[name][:].transpose(1, 2, 0) for name in sorted(group.array_keys())]
    for finer, coarser in itertools.pairwise(levels):
        height, width = (side // 2 for side in finer.shape[:2])
        expected = downscale_local_mean(finer[: 2 * height, : 2 * width], (2, 2, 1))
        np.testing.assert_allclose(coarser, expected, atol=255 / 31)
    assert [level.shape[:2] for level in levels] == [(303, 205), (151, 102)]


def test_white_and_black_stay_so(tmp_path):
    picture = np.zeros((48, 56, 3), np.uint8)
    picture[:, 28:] = 255
    stored = zarr.open_group(write(tmp_path / "s.ome.zarr", picture, 12.5), mode="r")["0"][:]
    assert np.unique(stored).tolist() == [0, 255]


def test_the_image_is_never_finer_than_the_labels(tmp_path):
    root = write(tmp_path / "s.ome.zarr", np.full((1200, 1400, 3), 255, np.uint8), 0.5)
    assert zarr.open_group(root, mode="r")["0"].shape == (3, 600, 700)


def test_labels_are_read_in_the_image_and_alone(root, tmp_path):
    alone = write(tmp_path / "s.ome.zarr", np.zeros((4, 5, 3), np.uint8), 150.0, form=OutputForm(image=False))
    inside, outermost = open_labels(root), open_labels(alone)
    np.testing.assert_array_equal(inside.read(0), outermost.read(0))
    assert inside.mpp == outermost.mpp and inside.names == outermost.names
    assert json.loads((alone / "labels" / "zarr.json").read_text())["attributes"]["ome"]["labels"] == [
        "artefacts"
    ]


def test_without_shards_each_chunk_is_a_file(root, tmp_path):
    plain = write(
        tmp_path / "s.ome.zarr", np.zeros((4, 5, 3), np.uint8), 150.0, form=OutputForm(shards=False)
    )
    assert len([*(plain / "labels/fseg/0/c").rglob("*/*")]) == 9
    assert len([*(root / "labels/fseg/0/c").rglob("*/*")]) == 1
    np.testing.assert_array_equal(open_labels(plain).read(0), open_labels(root).read(0))


@pytest.mark.parametrize("inside", ["", "labels/fseg"])
def test_it_is_not_taken_for_a_slide(root, inside):
    with pytest.raises(InputError, match="what this program made of a slide; give that"):
        open_slide(root / inside)


def test_the_models_of_ome_zarr_accept_it(root):
    models = pytest.importorskip("ome_zarr_models", reason="the extra clients brings it")
    from ome_zarr_models.v05.image import Image
    from ome_zarr_models.v05.image_label import ImageLabel

    group = zarr.open_group(root, mode="r")
    assert isinstance(models.open_ome_zarr(group), Image)
    assert models.open_ome_zarr(group["labels"]).attributes.ome.labels == ["fseg", "artefacts"]
    for name in ("fseg", "artefacts"):
        label = models.open_ome_zarr(group[f"labels/{name}"])
        assert isinstance(label, ImageLabel)
        assert label.attributes.ome.image_label.source.image == "../../"


def test_yaozarrs_finds_no_fault(root):
    pytest.importorskip("yaozarrs", reason="the extra clients brings it").validate_zarr_store(str(root))


def test_napari_shows_the_slide_with_its_labels_and_writes_nothing(root):
    plugin = pytest.importorskip("napari_ome_zarr", reason="the extra clients brings it")
    before = {path: path.stat().st_mtime_ns for path in root.parent.rglob("*")}
    layers = plugin.napari_get_reader(str(root))(str(root))
    assert {path: path.stat().st_mtime_ns for path in root.parent.rglob("*")} == before
    labels = [layer for layer in layers if layer[2] == "labels"]
    assert [layer[1]["name"].split("/")[-1] for layer in labels] == ["fseg", "artefacts"]
    np.testing.assert_array_equal(np.asarray(labels[0][0][0]), open_labels(root).read(0))
    assert [layer for layer in layers if layer[2] == "image"] and layers[0][2] == "image"
