"""A picture of tissue, its embedding, made once for each test file, and seeds for it."""

import json
from pathlib import Path

import pytest
from embedded import SEEDS, embed
from PIL import Image
from skimage import data as pictures


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    """Write tissue of 512 × 384 pixels at 1 µm, with a band of glass."""
    image = pictures.immunohistochemistry()[:384].copy()
    image[230:340] = 244
    path = tmp_path_factory.mktemp("picture") / "tissue.png"
    Image.fromarray(image).save(path)
    return path


@pytest.fixture(scope="module")
def folder(picture, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("embedded")
    embed(picture, out)
    return out


@pytest.fixture
def seeds(tmp_path) -> Path:
    path = tmp_path / "seeds.json"
    path.write_text(json.dumps(SEEDS))
    return path
