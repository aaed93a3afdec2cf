"""What the tests of several commands use."""

from pathlib import Path

import pytest
import tifffile
from skimage import data as pictures


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    """Write a TIFF of 256 × 256 pixels at 1 µm."""
    path = tmp_path_factory.mktemp("slide") / "small.tif"
    resolution = {"resolution": (10000, 10000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pictures.immunohistochemistry()[:256, :256], tile=(128, 128), **resolution)
    return path
