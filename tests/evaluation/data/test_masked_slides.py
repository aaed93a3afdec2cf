"""Slides with masks: which are found, what is refused, and how much of a patch is tumour."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from leica import write_leica
from PIL import Image

from fseg_jax.errors import InputError
from fseg_jax.evaluation.data.masked_slides import find_slides, measure_tumour


def save(path: Path, values: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path, **options)
    return path


@pytest.fixture
def digestpath(tmp_path: Path) -> Path:
    """As published: positive slides with masks, negative ones without, a name with spaces."""
    image, mask = np.full((40, 60, 3), 200), np.zeros((40, 60))
    mask[10:30, 20:40] = 255
    for name in ("b 2019-02-20 19_37_17-lv1-18315", "a"):
        save(tmp_path / "tissue-train-pos-v1" / f"{name}.jpg", image)
        save(tmp_path / "tissue-train-pos-v1" / f"{name}_mask.jpg", mask)
    save(tmp_path / "tissue-train-neg" / "c.jpg", image)
    return tmp_path


def test_digestpath(digestpath):
    slides = find_slides(digestpath, 0.5)
    assert [slide.name for slide in slides] == ["a", "b 2019-02-20 19_37_17-lv1-18315"]
    assert slides[0].mask == digestpath / "tissue-train-pos-v1" / "a_mask.jpg"
    assert find_slides(digestpath / "tissue-train-pos-v1", 0.5) == slides


def test_a_patch_is_as_much_tumour_as_is_counted_by_hand(tmp_path):
    mask = np.zeros((64, 96))
    mask[:, :40] = 255
    path = save(tmp_path / "m.png", mask)
    centers = np.array([[16, 16], [16, 40], [48, 40.0], [32, 48], [60, 10], [16, 80]])
    # The second and third begin at x = 24: 16 of their 32 columns; the last but one reaches past two edges.
    shares = measure_tumour(path, centers, 32.0)
    np.testing.assert_allclose(shares, [1, 0.5, 0.5, 0.25, 1, 0], atol=1e-12)
    # Columns 30.5 to 50.5, of which 9.5 are tumour.
    np.testing.assert_allclose(measure_tumour(path, np.array([[20, 40.5]]), 20.0), [9.5 / 20])


def test_a_share_is_what_finer_pixels_say(tmp_path):
    rng = np.random.default_rng(0)
    mask = np.kron(rng.integers(0, 2, (9, 13)), np.ones((5, 5))) * 255
    path = save(tmp_path / "m.png", mask)
    fine = np.kron(mask > 127, np.ones((10, 10)))
    corners = rng.integers(-80, 400, (40, 2))
    side = 123
    expected = [fine[max(y, 0) : y + side, max(x, 0) : x + side].mean() for y, x in corners.tolist()]
    np.testing.assert_allclose(
        measure_tumour(path, (corners + side / 2) / 10, side / 10), expected, atol=1e-9
    )


def test_the_noise_of_jpeg_is_not_tumour(tmp_path):
    mask = np.zeros((64, 64))
    mask[:, 29:] = 255
    path = save(tmp_path / "m.jpg", mask, quality=60)
    assert len(np.unique(np.asarray(Image.open(path)))) > 2
    np.testing.assert_allclose(measure_tumour(path, np.array([[32.0, 32.0]]), 64.0), [35 / 64], atol=1e-6)


@pytest.mark.parametrize("name", ["m.tif", "m.svs"])
@pytest.mark.parametrize(
    "options", [{}, {"tile": (16, 16)}, {"rowsperstrip": 5, "compression": "zlib"}], ids=str
)
def test_a_mask_that_is_min_is_white_is_read_by_its_values(tmp_path, options, name):
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 48:] = 255
    tifffile.imwrite(tmp_path / name, mask, photometric="miniswhite", **options)
    np.testing.assert_allclose(measure_tumour(tmp_path / name, np.array([[32.0, 32.0]]), 64.0), [0.25])


@pytest.mark.parametrize("strip", [1, 7 * 96, 1 << 24])
def test_a_mask_is_read_in_strips(tmp_path, monkeypatch, strip):
    monkeypatch.setattr("fseg_jax.slides.masks._BLOCK", strip)
    mask = np.random.default_rng(1).integers(0, 2, (64, 96)) * 255
    path = save(tmp_path / "m.png", mask)
    expected = [(mask[y : y + 32, x : x + 32] > 0).mean() for y, x in ((0, 0), (17, 40))]
    centers = np.array([[16.0, 16.0], [33.0, 56.0]])
    np.testing.assert_allclose(measure_tumour(path, centers, 32.0), expected)


def _no_masks(folder: Path) -> None:
    for path in (folder / "tissue-train-pos-v1").glob("*_mask.jpg"):
        path.unlink()


def _image_alone(folder: Path) -> None:
    (folder / "tissue-train-pos-v1" / "a_mask.jpg").unlink()


def _mask_alone(folder: Path) -> None:
    (folder / "tissue-train-pos-v1" / "a.jpg").unlink()


def _other_size(folder: Path) -> None:
    save(folder / "tissue-train-pos-v1" / "a_mask.jpg", np.zeros((20, 30)))


def _of_ones(folder: Path) -> None:
    (folder / "tissue-train-pos-v1" / "a_mask.jpg").unlink()
    save(folder / "tissue-train-pos-v1" / "a_mask.png", np.ones((40, 60)))


def _one_name_twice(folder: Path) -> None:
    for name in ("a.jpg", "a_mask.jpg"):
        data = (folder / "tissue-train-pos-v1" / name).read_bytes()
        (folder / "more").mkdir(exist_ok=True)
        (folder / "more" / name).write_bytes(data)


def _damaged(folder: Path) -> None:
    path = folder / "tissue-train-pos-v1" / "a.jpg"
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_no_masks, r"no mask in it: put NAME_mask\.png"),
        (_image_alone, r"a\.jpg: an image without a mask \(a_mask\.png or \.jpg\)"),
        (_mask_alone, r"a_mask\.jpg: a mask without an image"),
        (_other_size, "a: image 40 × 60, mask 20 × 30"),
        (_of_ones, r"a_mask\.png: its largest value is 1: a mask's marks must be above 127"),
        (_one_name_twice, r"a\.jpg: has the name of "),
        (_damaged, r"a\.jpg: cannot be read as a slide or image"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(digestpath, damage, says):
    damage(digestpath)
    with pytest.raises(InputError, match=says) as caught:
        find_slides(digestpath, 0.5)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_and_slides_without_a_resolution(digestpath):
    with pytest.raises(InputError, match="no such folder"):
        find_slides(digestpath / "none")
    with pytest.raises(InputError, match=r"2 of its slides .*--mpp-override"):
        find_slides(digestpath)


def test_a_mask_may_be_of_the_scan_or_of_its_canvas(tmp_path):
    write_leica(tmp_path / "a.scn", (400, 600), [((100, 200), np.full((80, 120, 3), 200, np.uint8))])
    mask = tmp_path / "a_mask.png"
    for size, frame, other in (((120, 80), "bounds", "canvas"), ((600, 400), "canvas", "bounds")):
        Image.new("L", size, 255).save(mask)
        assert find_slides(tmp_path, frame=frame)[0].name == "a"
        with pytest.raises(InputError, match=r"image .*, mask "):
            find_slides(tmp_path, frame=other)
    with pytest.raises(InputError, match=r"mask 400 × 600; .*--frame canvas"):
        find_slides(tmp_path)


def test_a_mask_may_be_of_another_image_of_the_file_than_the_largest(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        for height in (40, 60):
            size = {f"PhysicalSize{axis}": 0.5 for axis in "XY"}
            writer.write(np.full((height, 80, 3), 200, np.uint8), photometric="rgb", metadata=size)
    save(tmp_path / "a_mask.png", np.full((40, 80), 255))
    assert find_slides(tmp_path, series=0)[0].name == "a"
    with pytest.raises(InputError, match="image 60 × 80, mask 40 × 80"):
        find_slides(tmp_path)
