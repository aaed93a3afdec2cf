"""Features that another program has computed are seeded as our own: TRIDENT's grid, and CLAM's grids."""

import json
from pathlib import Path

import numpy as np
import pytest
from embedded import embed

from fseg_jax import open_slide
from fseg_jax.errors import InputError
from fseg_jax.outputs.embeddings import open_embeddings
from fseg_jax.outputs.labels import open_labels
from fseg_jax.outputs.patch_h5 import read_patch_file, write_patch_file
from fseg_jax.pipeline.clicks import seed_slide
from fseg_jax.pipeline.patch_export import tabulate_patches
from fseg_jax.pipeline.patch_import import find_lattice, import_patches

CENTRES = np.array([[0.0, 0.0, 1.0], [1.0, 0.5, 0.0]], np.float32)


def write(path: Path, corners: np.ndarray, side: int, **attributes) -> Path:
    """Patches whose feature says whether they are in the left half of the slide."""
    is_left = corners[:, 0] < np.median(corners[:, 0])
    rng = np.random.default_rng(0)
    features = CENTRES[is_left.astype(int)] + rng.normal(0, 0.05, (len(corners), 3)).astype(np.float32)
    stated = {"patch_size_level0": side, "name": path.stem, "level0_magnification": 20} | attributes
    write_patch_file(path, [features], corners, 3, stated)
    return path


def lay(
    side: int, step: int, offset: tuple[int, int] = (0, 0), rows: int = 6, columns: int = 8
) -> np.ndarray:
    y, x = np.mgrid[:rows, :columns].reshape(2, -1) * step
    return np.stack([x + offset[0], y + offset[1]], 1)


@pytest.mark.parametrize(
    ("corners", "side"),
    [
        (lay(512, 512), 512),
        (lay(512, 256), 512),
        (lay(512, 384), 512),
        (lay(448, 448), 448),
        (np.concatenate([lay(512, 512, (37, 111)), lay(512, 512, (5013, 9))]), 512),  # CLAM: two contours
        (lay(512, 512)[:1] + 1024, 512),
    ],
)
def test_patches_lie_where_the_file_says(corners, side):
    scale, patch, step, grid = find_lattice(corners, side)
    assert patch * scale == pytest.approx(side) and 1 <= step <= patch and 16 <= patch <= 64
    np.testing.assert_allclose(grid[:, ::-1] * step * scale, corners, atol=side / 64)
    if len(corners) == 48:  # all on one grid
        np.testing.assert_allclose(grid[:, ::-1] * step * scale, corners)


@pytest.mark.parametrize("offset", [(0, 0), (37, 111)])
def test_seeds_segment_what_another_program_has_embedded(tmp_path, offset):
    corners = lay(512, 512, offset)
    path = write(tmp_path / "s.h5", corners, 512, level0_width=4200, level0_height=3300)
    import_patches(path, tmp_path / "out")
    seeds = tmp_path / "clicks.json"
    places = {"left": (300, 700), "right": (3600, 700)}
    content = {"seeds": [{"x": x, "y": y, "class": name} for name, (x, y) in places.items()]}
    seeds.write_text(json.dumps(content))
    record = seed_slide(tmp_path / "out", seeds)
    pyramid = open_labels(tmp_path / "out" / "s.sic.ome.zarr")
    labels = pyramid.read(0)
    mpp = pyramid.mpp[0]
    assert record["slide"] | {"height": 3300, "width": 4200, "mpp": 0.5} == record["slide"]
    for (x, y), expected in zip(places.values(), (1, 2), strict=True):
        assert labels[int(y * 0.5 / mpp), int(x * 0.5 / mpp)] == expected
    covered = (labels > 0).sum() * mpp**2
    assert covered == pytest.approx(48 * 256**2, rel=0.03)  # µm²


def test_patches_may_reach_over_the_edge_of_the_slide(tmp_path):
    corners = lay(512, 512, (37, 111))  # CLAM's, which pads the slide; the last begin at 2671
    import_patches(write(tmp_path / "s.h5", corners, 512, level0_width=4200, level0_height=2700), tmp_path)
    embedded = open_embeddings(tmp_path / "s.embeddings.zarr")
    np.testing.assert_allclose(embedded.centers[:, ::-1] - 256, corners, atol=8)
    assert embedded.tissue.shape == (169, 262) and embedded.tissue[-1].any()


def test_our_own_patches_come_back(picture, tmp_path):
    embed(picture, tmp_path, h5=True)
    before = open_embeddings(tmp_path / "tissue.embeddings.zarr")
    with open_slide(picture, 1.0) as slide:
        (tmp_path / "h5").mkdir()
        (tmp_path / "tissue.embeddings.h5").rename(tmp_path / "h5" / "tissue.h5")
        import_patches(tmp_path / "h5" / "tissue.h5", tmp_path / "again", slide=slide)
    after = open_embeddings(tmp_path / "again" / "tissue.embeddings.zarr")
    np.testing.assert_array_equal(after.read(), before.read())
    np.testing.assert_allclose(after.centers, before.centers)
    assert after.provenance["slide"]["identity"] == before.provenance["slide"]["identity"]
    assert after.provenance["encoder"]["name"] == "classical"
    assert read_patch_file(tmp_path / "h5" / "tissue.h5").side == 64
    np.testing.assert_allclose(tabulate_patches(after).corners, tabulate_patches(before).corners)


def test_features_of_another_slide_or_without_a_resolution_write_nothing(picture, tmp_path):
    far = write(tmp_path / "tissue.h5", lay(64, 64) + 4000, 64)
    with open_slide(picture, 1.0) as slide, pytest.raises(InputError, match=r"is not of .*tissue\.png"):
        import_patches(far, tmp_path / "out", slide=slide)
    bare = write(tmp_path / "bare.h5", lay(64, 64), 64, level0_magnification=None)
    with pytest.raises(InputError, match="states no resolution; give it with --mpp-override"):
        import_patches(bare, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert import_patches(bare, tmp_path / "out", mpp=0.25)["slide"]["mpp"] == 0.25
