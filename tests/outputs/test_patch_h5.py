"""Patch features of TRIDENT's and CLAM's layouts, in and out: by h5py, as MIL programs read them."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from fseg_jax.errors import InputError
from fseg_jax.outputs.patch_h5 import read_patch_features, read_patch_file, write_patch_file

COORDS = np.array([[0, 0], [512, 0], [512, 1024]])
TRIDENT = {
    "patch_size": 256,
    "patch_size_level0": 512,
    "level0_magnification": 40,
    "target_magnification": 20,
    "overlap": 0,
    "level0_width": 4000,
    "level0_height": 3000,
    "name": "s",
    "savetodir": "None",
}
CLAM = {"patch_size": 256, "patch_level": 1, "downsample": (2.0, 2.0), "name": "s", "save_path": "p"}


def write(path: Path, features=None, coords=COORDS, attributes=TRIDENT, of_features=None) -> Path:
    features = np.arange(12, dtype=np.float32).reshape(3, 4) if features is None else features
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = features, coords
        file["coords"].attrs.update(attributes)
        file["features"].attrs.update(of_features or {})
    return path


@pytest.mark.parametrize(
    ("attributes", "side", "magnification", "size"),
    [
        (TRIDENT, 512, 40, (3000, 4000)),
        (TRIDENT | {"level0_width": "None", "patch_size_level0": "None"}, 512, 40, None),
        (TRIDENT | {"level0_magnification": "None"}, 512, None, (3000, 4000)),
        (CLAM, 512, None, None),
        (CLAM | {"patch_level": 0, "downsample": "None", "custom_downsample": 2}, 512, None, None),
    ],
)
def test_both_layouts_of_attributes_are_read(tmp_path, attributes, side, magnification, size):
    (tmp_path / "features_uni_v2").mkdir()
    found = read_patch_file(write(tmp_path / "features_uni_v2" / "s.h5", attributes=attributes))
    assert (found.side, found.magnification, found.size) == (side, magnification, size)
    assert found.name == "s" and found.encoder == "uni_v2" and found.channels == 4
    np.testing.assert_array_equal(found.corners, COORDS)
    (part,) = read_patch_features(found)
    np.testing.assert_array_equal(part, np.arange(12).reshape(3, 4))


def test_features_with_a_leading_axis_are_read(tmp_path):
    found = read_patch_file(write(tmp_path / "s.h5", features=np.ones((1, 3, 4), np.float16)))
    assert found.channels == 4 and next(read_patch_features(found)).shape == (3, 4)


def test_what_is_written_is_read_as_trident_has_it(tmp_path):
    attributes = TRIDENT | {"savetodir": None}
    write_patch_file(tmp_path / "s.h5", iter([np.ones((2, 4)), np.zeros((1, 4))]), COORDS, 4, attributes)
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["coords"].dtype == np.int64 and file["features"].dtype == np.float32
        assert dict(file["coords"].attrs) == TRIDENT
        assert file["features"][:].sum() == 8
    assert read_patch_file(tmp_path / "s.h5").side == 512


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"coords": COORDS[:2]}, "3 features and 2 coordinates"),
        ({"attributes": {}}, "does not say how large a patch is on level 0"),
        ({"attributes": {"patch_size": 256, "patch_level": 2}}, "does not say how large a patch is"),
        ({"of_features": {"name": "t"}}, "features of 's' and coordinates of 't': two slides"),
        ({"coords": COORDS[[0, 1, 1]]}, "1 of 3 patches lie where another does: of two slides"),
        ({"attributes": TRIDENT | {"level0_width": 512}}, "a patch lies outside the slide of 512 × 3000"),
        ({"coords": np.array([[0, 0], [1, np.nan], [3, 3]])}, "are no corners in level-0 pixels"),
        ({"features": np.zeros((3, 4), int)}, "are no numbers"),
        ({"features": np.zeros((3, 4, 2), np.float32)}, r"features are 3 × 4 × 2"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, options, says):
    with pytest.raises(InputError, match=says) as caught:
        read_patch_file(write(tmp_path / "s.h5", **options))
    assert "\n" not in str(caught.value) and "s.h5" in str(caught.value)


def test_a_feature_that_is_no_number_is_named(tmp_path):
    found = read_patch_file(write(tmp_path / "s.h5", features=np.array([[1.0], [np.nan], [2.0]], np.float32)))
    with pytest.raises(InputError, match="the feature in row 1 holds a NaN"):
        list(read_patch_features(found))


def test_files_of_other_kinds_are_one_line(tmp_path):
    (tmp_path / "s.h5").write_bytes(b"not HDF5")
    with pytest.raises(InputError, match=r"s\.h5: cannot be read"):
        read_patch_file(tmp_path / "s.h5")
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["a/features"] = np.zeros((3, 4))
    with pytest.raises(InputError, match="holds no dataset 'features' at its top, but the groups a"):
        read_patch_file(tmp_path / "t.h5")


def test_a_size_that_is_only_stated_is_not_believed(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("features", (1 << 30, 1024), "f4", chunks=(64, 1024))
        file["coords"] = COORDS
    with pytest.raises(InputError, match="and the file is small"):
        read_patch_file(tmp_path / "s.h5")
