"""A slide end to end: what is written, that it agrees with the methods, and on what it does not depend."""

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
import zarr
from dicom_files import write_series
from PIL import Image
from pydicom.uid import JPEG2000Lossless
from scipy import ndimage
from skimage import data as pictures
from skimage.measure import label

from fseg_jax import open_slide
from fseg_jax.codebook import Codebook, Provenance
from fseg_jax.encoders.classical import classical
from fseg_jax.errors import InputError
from fseg_jax.methods import fseg
from fseg_jax.numerics import blending, kmeans, nmf
from fseg_jax.numerics.kmeans import lloyd
from fseg_jax.numerics.regions import merge_small_regions, weigh_borders
from fseg_jax.outputs.labels import open_labels
from fseg_jax.outputs.picture import decode_picture, find_chunk
from fseg_jax.pipeline.image import segment
from fseg_jax.pipeline.plan import Plan, Settings
from fseg_jax.pipeline.segment import output_paths, segment_slide

ENCODER = classical()
SETTINGS = Settings(k=4, tile=128, batch=4)


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    """Tissue of 512 × 384 pixels at 1 µm, with a band of glass."""
    image = pictures.immunohistochemistry()[:384].copy()
    image[250:330] = 244
    path = tmp_path_factory.mktemp("picture") / "tissue.png"
    Image.fromarray(image).save(path)
    return path


def run(picture: Path, out: Path, settings: Settings = SETTINGS, codebook: Codebook | None = None, **options):
    with open_slide(picture, 1.0) as slide:
        record = segment_slide(slide, out, ENCODER, codebook, settings, **options)
    return record, open_labels(out / "tissue.ome.zarr").levels[0].read().result()


@pytest.fixture(scope="module")
def book() -> Codebook:
    image = pictures.immunohistochemistry()
    A = np.asarray(ENCODER(jnp.asarray(image)[None]))[0].reshape(-1, 20)
    return Codebook(A[:: len(A) // 5][:5])


def test_everything_is_written_and_agrees(picture, tmp_path):
    record, labels = run(picture, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        p.name for p in output_paths("tissue", tmp_path)
    )
    assert json.loads((tmp_path / "tissue.json").read_text()) == record
    assert labels.shape == (384, 512) and labels.dtype == np.uint8
    assert (labels[280:310] == 0).all()
    counts = np.bincount(labels.ravel(), minlength=5)
    assert (counts[1:] > 0).all()
    areas = (tmp_path / "tissue.csv").read_text().splitlines()
    assert [int(line.split(",")[3]) for line in areas[1:]] == counts[1:].tolist()
    assert record["area_step_mm2"] == record["encoder"]["stride"] ** 2 * 1e-6 == 256e-6
    assert list(record["areas_mm2"].values()) == [round(count * 1e-6, 4) for count in counts[1:].tolist()]
    assert record["tissue_mm2"] == round(counts[1:].sum() * 1e-6, 4)
    assert record["encoder"]["licence"] == "Apache-2.0" and record["encoder"]["citation"]
    assert (
        record["parameters"] | {"mode": "fixed", "mpp": 1.0, "tile": 128, "halo": 16, "seed": 0}
        == record["parameters"]
    )


def test_the_record_says_where_each_cluster_is_typical_and_what_is_at_the_border(picture, tmp_path, book):
    record, labels = run(picture, tmp_path, Settings(tile=128, batch=4), book)
    with (tmp_path / "tissue.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["name"]: float(row["border_share"]) for row in rows} == record["border_share"]
    near = ndimage.binary_dilation(labels == 0, structure=np.ones((3, 3)), iterations=31)
    for j, share in enumerate(record["border_share"].values(), 1):
        here = labels == j
        assert share == pytest.approx((here & near).sum() / max(here.sum(), 1), abs=0.12)
    assert record["typical"]
    for name, places in record["typical"].items():
        for place in places:
            at = labels[int(place["y"]), int(place["x"])]
            assert f"cluster {at}" == name and 0 < place["share"] <= 1
    tiles = decode_picture(find_chunk((tmp_path / "tissue.png").read_bytes())).tiles
    assert [len(own) for own in tiles.values()] == [len(own) for own in record["typical"].values()]
    once_more = run(picture, tmp_path, Settings(tile=128, batch=3, threads=1), book, overwrite=True)[0]
    assert once_more["typical"] == record["typical"]


@pytest.mark.parametrize("mode", ["fixed", "assign"])
def test_one_tile_over_everything_is_segment(picture, tmp_path, book, mode):
    """A slide that fits into a single core gives the labels that ``segment`` gives for the picture."""
    settings = Settings(
        tile=640,
        halo=0.05,
        tissue="all",
        batch=1,
        mode=mode,
        concepts=6,
        smoothing=0,
        min_region=0,
        mixtures=0,
    )
    with open_slide(picture, 1.0) as slide:
        padded = slide.read(-32, -32, 640, 640, 1.0)
    _, labels = run(picture, tmp_path, settings, book)
    encoder = replace(ENCODER, card=replace(ENCODER.card, tile=640))  # what fits into a tile is taken whole
    whole = segment(padded, encoder, book, mode=mode, concepts=6)
    # The slide ends where the picture goes on, so its outermost half token is left out.
    assert (labels == whole[32 : 32 + 384, 32 : 32 + 512])[8:-8, 8:-8].mean() >= 0.9999


def test_tiles_meet_without_a_seam(picture, tmp_path, book):
    """Tiled in small pieces, the labels are those of the whole, but for pixels where two clusters tie."""
    _, small = run(picture, tmp_path / "s", Settings(tile=96, halo=0.25, tissue="all", smoothing=0), book)
    _, whole = run(
        picture, tmp_path / "w", Settings(tile=640, halo=0.05, tissue="all", batch=1, smoothing=0), book
    )
    assert (small == whole).mean() >= 0.98


def test_smoothing_sees_no_tiles_and_leaves_fewer_regions(picture, tmp_path, book):
    settings = Settings(tile=256, halo=0.125, tissue="all", min_region=0)
    _, small = run(picture, tmp_path / "s", settings, book)
    _, whole = run(picture, tmp_path / "w", replace(settings, tile=640, halo=0.05, batch=1), book)
    _, rough = run(picture, tmp_path / "r", replace(settings, smoothing=0), book)
    assert (small == whole).mean() >= 0.98
    record, _ = run(picture, tmp_path / "s", Settings(tile=64, mpp=2.0), book, overwrite=True)
    assert record["parameters"]["smoothing"] == 32  # µm: a token
    assert record["parameters"]["min_region"] == 6144  # µm²: six tokens
    regions = [label(labels, connectivity=1).max() for labels in (small, rough)]
    assert regions[0] < 0.8 * regions[1]


def test_clusters_of_a_slide_are_of_tokens_away_from_glass(tmp_path):
    """A piece of one tissue on glass is one cluster to its border, where its tokens see glass."""
    rng = np.random.default_rng(0)
    image = np.full((640, 640, 3), 244, np.uint8)
    cells = rng.integers(-25, 25, (96, 96, 1)).repeat(5, axis=0).repeat(5, axis=1)
    piece = np.empty((480, 480, 3))
    piece[:, :240], piece[:, 240:] = (225, 130, 180), (120, 80, 160)
    image[80:560, 80:560] = (piece + cells).clip(0, 255)
    Image.fromarray(image).save(tmp_path / "tissue.png")
    settings = Settings(k=2, tile=320, smoothing=0)
    record, labels = run(tmp_path / "tissue.png", tmp_path / "pure", settings)
    _, all_tokens = run(tmp_path / "tissue.png", tmp_path / "all", replace(settings, k=3, mixtures=0))
    assert record["parameters"]["mixtures"] == 4
    inside = labels[84:556, 84:556]
    left, right = inside[:, :220], inside[:, 252:]
    counts = [np.bincount(half[half > 0], minlength=3) / (half > 0).sum() for half in (left, right)]
    assert counts[0].max() > 0.97 and counts[1].max() > 0.97
    assert counts[0].argmax() != counts[1].argmax()
    # The same two tissues with a third centre, fitted on all tokens, have a cluster that is the border.
    border = np.zeros(labels.shape, bool)
    border[80:560, 80:560] = True
    border[112:528, 112:528] = False
    shares = [(border & (all_tokens == j)).sum() / max((all_tokens == j).sum(), 1) for j in (1, 2, 3)]
    assert max(shares) > 0.5


def test_centres_and_mixtures_that_have_not_converged_are_said(picture, tmp_path, monkeypatch, caplog):
    fitted = kmeans.fit
    monkeypatch.setattr(kmeans, "fit", lambda *a, **b: fitted(*a, **b)._replace(converged=False))
    run(picture, tmp_path)
    said = [message for message in caplog.messages if "k-means" in message]
    assert len(said) == 2 and said[0].startswith("tissue: k-means has not converged in ")
    assert said[1].startswith("tissue: k-means of the tokens at the border has not converged in ")


def test_a_codebooks_mixtures_take_part_and_name_nothing(picture, tmp_path, book):
    """Of seven clusters, the two that are made mixtures vanish; ``mixtures=0`` leaves them out."""

    def labels(codebook: Codebook, **changes: int):
        settings = Settings(tile=128, smoothing=0, min_region=0, **changes)
        return run(picture, tmp_path, settings, codebook, overwrite=True)

    A = np.asarray(ENCODER(jnp.asarray(pictures.immunohistochemistry())[None]))[0].reshape(-1, 20)
    others = A[100 :: len(A) // 2][:2]
    _, of_seven = labels(Codebook(np.concatenate([book.centers, others])))
    record, of_five = labels(Codebook(book.centers, mixtures=others))
    assert record["parameters"]["mixtures"] == 2 and of_five.max() == 5
    named = (of_seven > 0) & (of_seven <= 5) & (of_five > 0)
    assert (of_five == of_seven)[named].mean() > 0.99 and ((of_five > 0) == (of_seven > 0)).mean() > 0.99
    without, plain = labels(Codebook(book.centers, mixtures=others), mixtures=0)
    assert without["parameters"]["mixtures"] == 0
    assert (plain == labels(book)[1]).all() and (plain != of_five).any()


def find_regions(labels):
    """Areas of 4-connected regions, by label, in pixels."""
    regions = label(labels, background=0, connectivity=1)
    areas = np.bincount(regions.ravel())[1:]
    of = np.zeros(len(areas), int)
    of[regions[regions > 0] - 1] = labels[regions > 0]
    return {j: sorted(areas[of == j]) for j in np.unique(of)}


def test_small_regions_are_in_none_of_the_outputs(picture, tmp_path, book):
    """Labels, areas and outlines hold the same regions; without a least area they hold all."""
    settings = Settings(tile=128, tissue="all", smoothing=0, min_region=400)
    record, labels = run(picture, tmp_path / "m", settings, book)
    assert record["parameters"]["min_region"] == 400
    every, rough = run(picture, tmp_path / "r", replace(settings, min_region=0), book)
    assert every["parameters"]["min_region"] == 0
    assert min(min(areas) for areas in find_regions(labels).values()) >= 400
    assert min(min(areas) for areas in find_regions(rough).values()) < 100
    np.testing.assert_array_equal(
        labels, next(merge_small_regions([rough], 400, weigh_borders(book.centers)))
    )
    _, small_tiles = run(picture, tmp_path / "t", replace(settings, batch=1, threads=1), book)
    np.testing.assert_array_equal(labels, small_tiles)

    areas = (tmp_path / "m" / "tissue.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[3]) for line in areas] == np.bincount(labels.ravel(), minlength=6)[
        1:
    ].tolist()
    outlines = json.loads((tmp_path / "m" / "tissue.geojson").read_text())
    assert record["outlines"]["min_area_um2"] == 400
    found = [feature["properties"]["measurements"]["Region area µm^2"] for feature in outlines["features"]]
    assert len(found) == pytest.approx(sum(map(len, find_regions(labels).values())), rel=0.1)
    assert min(found) > 300  # µm²: their borders are simplified
    for level in open_labels(tmp_path / "m" / "tissue.ome.zarr").levels[1:]:
        coarse = level.read().result()
        assert (np.bincount(coarse.ravel(), minlength=6) > 0).tolist() == [
            count > 0 for count in np.bincount(labels.ravel(), minlength=6)
        ]


@pytest.mark.smoke
@pytest.mark.parametrize("least", [1e6, -1.0, float("nan"), float("inf")])
def test_a_least_region_that_no_slide_has(picture, tmp_path, book, least):
    with pytest.raises(InputError, match="--min-region") as caught:
        run(picture, tmp_path / "out", Settings(tile=128, min_region=least), book)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["fixed", "assign"])
def test_labels_do_not_depend_on_threads_or_batch(picture, tmp_path, book, mode):
    def labels(**changes):
        settings = Settings(**{"tile": 128, "batch": 4, "mode": mode, "concepts": 6} | changes)
        return run(picture, tmp_path, settings, book, overwrite=True)[1]

    first = labels()
    assert (labels(threads=7) == first).all()
    assert (labels(batch=1) != first).mean() <= 1e-4 and (labels(batch=5) != first).mean() <= 1e-4


def write_zarr(path: Path, pixels: np.ndarray) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=3)
    group.create_array("0", data=pixels, chunks=(96, 128, 3))
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    axes.append({"name": "c", "type": "channel"})
    scales = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    datasets = [{"path": "0", "coordinateTransformations": scales}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}


TILED = {"photometric": "rgb", "tile": (96, 128), "compression": "lzw"}
OME = {"axes": "YXS", "PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0}
CONTAINERS = {
    "tissue.svs": partial(
        tifffile.imwrite,
        description="Aperio Image Library v12\n|AppMag = 10|MPP = 1.0",
        metadata=None,
        **TILED,
    ),
    "tissue.tif": partial(tifffile.imwrite, **TILED),
    "tissue.tiff": partial(tifffile.imwrite, photometric="rgb", rowsperstrip=17, compression="zlib"),
    "tissue.ome.tif": partial(tifffile.imwrite, metadata=OME, **TILED),
    "tissue.ome.zarr": write_zarr,
    "tissue": lambda path, pixels: write_series(path, [pixels], mpp=1.0, syntax=JPEG2000Lossless),
}


@pytest.fixture(scope="module")
def expected(picture, tmp_path_factory, book) -> np.ndarray:
    return run(picture, tmp_path_factory.mktemp("png"), codebook=book)[1]


@pytest.mark.parametrize("name", CONTAINERS)
def test_labels_do_not_depend_on_the_file_they_come_in(picture, tmp_path, book, expected, name):
    """Bitwise: an Aperio slide, a tiled and a striped TIFF, OME-TIFF, OME-Zarr and DICOM, all lossless."""
    CONTAINERS[name](tmp_path / name, np.asarray(Image.open(picture)))
    record, labels = run(tmp_path / name, tmp_path / "out", codebook=book)
    assert record["slide"]["format"] != "image"
    np.testing.assert_array_equal(labels, expected)


def test_labels_do_not_depend_on_the_order_of_tiles(picture, tmp_path, book, monkeypatch):
    """Bitwise: the tiles of each row are read, encoded and solved from right to left."""
    _, first = run(picture, tmp_path, Settings(tile=128, batch=1), book)
    tiles = Plan.tiles
    orders = []

    def leftwards(plan):
        orders.append(sorted(tiles(plan), key=lambda tile: (tile[0], -tile[1])))
        return orders[-1]

    monkeypatch.setattr(Plan, "tiles", leftwards)
    _, again = run(picture, tmp_path, Settings(tile=128, batch=1), book, overwrite=True)
    assert orders[-1][0][1] > orders[-1][1][1]
    assert (first == again).all()


def test_without_tissue_every_pixel_has_a_label(tmp_path, book):
    """Also where the slide ends within its last pixel: 101 pixels of 0.25 µm are 25.25 of 1 µm."""
    Image.fromarray(pictures.immunohistochemistry()[:401, :301]).save(tmp_path / "tissue.png")
    with open_slide(tmp_path / "tissue.png", 0.25) as slide:
        segment_slide(slide, tmp_path / "out", ENCODER, book, Settings(tile=128, tissue="all"))
    labels = open_labels(tmp_path / "out" / "tissue.ome.zarr").levels[0].read().result()
    assert labels.shape == (101, 76) and labels.min() >= 1


def test_a_codebook_brings_its_resolution(picture, tmp_path, book, caplog):
    coarse = Codebook(book.centers, Provenance(encoder="classical", mpp=2.0))
    record, labels = run(picture, tmp_path / "a", Settings(tile=64), coarse)
    assert record["parameters"]["mpp"] == 2.0 and labels.shape == (192, 256) and not caplog.records
    run(picture, tmp_path / "b", Settings(tile=128, mpp=1.0), coarse)
    assert "made at 2 µm per pixel, and is used at 1" in caplog.text


def test_two_runs_give_the_same_bytes(picture, tmp_path):
    for folder in ("a", "b"):
        run(picture, tmp_path / folder)
    for path in sorted((tmp_path / "a").rglob("*")):
        if path.is_file() and path.name != "tissue.json":
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path


@pytest.mark.parametrize("fitted", [False, True])
def test_nothing_recompiles_for_a_slide_of_another_size(picture, tmp_path, book, fitted):
    compiled = (fseg._solve_tiles, fseg.label_pixels, lloyd._fit, blending.store_tiles, blending.blend_tiles)
    settings = Settings(k=5, tile=128, batch=4, mpp=0.5)
    run(picture, tmp_path / "a", settings, None if fitted else book)
    sizes = [f._cache_size() for f in compiled]
    other = tmp_path / "other.png"
    Image.open(picture).crop((0, 0, 480, 384)).save(other)
    with open_slide(other, 1.0) as slide:
        segment_slide(slide, tmp_path / "b", ENCODER, None if fitted else book, settings)
    assert [f._cache_size() for f in compiled] == sizes


class Broken:
    """The classical encoder, with one value of one token replaced."""

    card = ENCODER.card

    def __call__(self, images):
        return ENCODER(images).at[0, 3, 3, 0].set(jnp.nan)


@pytest.mark.parametrize("codebook", [None, "book"])
def test_nan_features_are_named_and_leave_nothing(picture, tmp_path, codebook, book):
    with (
        open_slide(picture, 1.0) as slide,
        pytest.raises(InputError, match="NaN or an infinity in the tile at"),
    ):
        segment_slide(slide, tmp_path / "out", Broken(), book if codebook else None, SETTINGS)
    assert not (tmp_path / "out").exists()


class Blind:
    """The classical encoder, which sees nothing in the last quarter of every tile's columns."""

    card = ENCODER.card

    def __call__(self, images):
        features = ENCODER(images)
        return features.at[:, :, 3 * features.shape[2] // 4 :].set(0)


@pytest.mark.parametrize("mode", ["fixed", "assign"])
def test_tissue_without_weight_in_any_cluster_is_uncovered_and_said_so(picture, tmp_path, book, mode, caplog):
    settings = Settings(tile=640, halo=0.05, tissue="all", batch=1, mode=mode, concepts=6, smoothing=0)
    with open_slide(picture, 1.0) as slide:
        record = segment_slide(slide, tmp_path, Blind(), book, settings)
    labels = open_labels(tmp_path / "tissue.ome.zarr").levels[0].read().result()
    first = 3 * 640 // 4 - 32  # what the encoder does not see, and half a token more, begins here
    assert (labels[:, first + 8 :] == 0).all() and (labels[:, : first - 8] > 0).all()
    assert (
        record["uncovered_mm2"] == pytest.approx((labels == 0).sum() * 1e-6, abs=1e-4)
        and record["uncovered_mm2"] > 0
    )
    assert record["tissue_mm2"] + record["uncovered_mm2"] == pytest.approx(384 * 512 * 1e-6, abs=1e-4)
    assert "of tissue have no weight in any cluster, and are background" in caplog.text


def test_tokens_that_have_not_converged_are_counted_and_said(picture, tmp_path, book, monkeypatch, caplog):
    record, _ = run(picture, tmp_path / "a", Settings(tile=128), book)
    assert record["tokens_not_converged"] == record["uncovered_mm2"] == 0 and not caplog.records
    impatient = partial(nmf.solve, method="cg", max_iterations=1)
    monkeypatch.setattr(nmf, "solve", impatient)
    fseg._solve_tiles.clear_cache()
    record, _ = run(picture, tmp_path / "b", Settings(tile=128), book)
    fseg._solve_tiles.clear_cache()
    whole = 384 * 512 // ENCODER.card.stride**2
    assert 0 < record["tokens_not_converged"] <= whole
    assert (
        f"factorization of {record['tokens_not_converged']} tokens of tissue has not converged" in caplog.text
    )


def test_an_interruption_leaves_nothing(picture, tmp_path, book):
    def interrupt(phase, done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(picture, tmp_path, SETTINGS, book, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_record_is_written_last(picture, tmp_path, book, monkeypatch):
    replaced: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda a, b: (replaced.append(Path(b).name), replace(a, b))[1])
    run(picture, tmp_path, SETTINGS, book)
    assert replaced[-1] == "tissue.json" and "tissue.ome.zarr" in replaced


def test_existing_outputs_are_kept_unless_told(picture, tmp_path, book):
    run(picture, tmp_path, SETTINGS, book)
    before = (tmp_path / "tissue.json").read_bytes()
    with pytest.raises(InputError, match="--overwrite"):
        run(picture, tmp_path, SETTINGS, book)
    assert (tmp_path / "tissue.json").read_bytes() == before
    record, _ = run(picture, tmp_path, Settings(k=3, tile=128), overwrite=True)
    assert record["codebook"]["k"] == 3


def test_more_clusters_than_tokens(picture, tmp_path):
    with pytest.raises(InputError, match=r"--k 5000: tissue\.png has \d+ tokens of tissue"):
        run(picture, tmp_path, Settings(k=5000, tile=128))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.smoke
def test_no_tissue(tmp_path):
    Image.fromarray(np.full((300, 300, 3), 243, np.uint8)).save(tmp_path / "tissue.png")
    with pytest.raises(InputError, match="--no-tissue"):
        run(tmp_path / "tissue.png", tmp_path / "out")
    assert not (tmp_path / "out").exists()
