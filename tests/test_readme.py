"""What README says of Python runs as it stands, with a small encoder and small arrays."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from skimage import data as pictures

import fseg_jax as fseg
from fseg_jax.codebook import Codebook, Provenance, save_all
from fseg_jax.pipeline.clicks import seed_slide
from fseg_jax.pipeline.embed import embed_slide

README = Path(__file__).parents[1] / "README.md"
STANDS_FOR = {'"uni"': '"classical"', '"tissue.safetensors", k=64': '"book.safetensors", k=4'}


@pytest.mark.long
def test_the_snippet_runs(tmp_path, monkeypatch):
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    for said, small in STANDS_FOR.items():
        assert snippet.count(said) == 1
        snippet = snippet.replace(said, small)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    centers = rng.gamma(0.5, size=(4, 20)).astype(np.float32)
    save_all("book.safetensors", {4: Codebook(centers, Provenance(encoder="classical", mpp=1.0))})
    image = pictures.immunohistochemistry()[:128, :128]
    options = {"tile": (64, 64), "resolution": (10_000, 10_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite("slide.tif", image, **options)
    Path("slide.tif").rename("slide.svs")
    given = {
        "image": image,
        "images": jnp.asarray(image[None, :64, :64]),
        "A": jnp.asarray(rng.gamma(0.5, size=(16, 20)), jnp.float32),
        "H": jnp.asarray(centers),
        "X": jnp.asarray(rng.gamma(0.5, size=(64, 20)), jnp.float32),
        "k": 3,
        "key": jax.random.key(0),
    }
    exec(snippet, given)
    assert np.asarray(given["labels"]).shape == image.shape[:2]
    assert sorted(path.name for path in Path("out").iterdir()) == [
        f"slide{suffix}" for suffix in (".csv", ".geojson", ".json", ".ome.zarr", ".png")
    ]


def test_what_opens_a_slide_takes_its_path_as_text(tmp_path):
    encoder = fseg.load_encoder("classical")
    for function in (fseg.segment_slide, embed_slide):
        with pytest.raises(fseg.InputError, match=r"none\.svs: no such file"):
            function("none.svs", str(tmp_path / "out"), encoder)
    with pytest.raises(fseg.InputError, match="holds no embedded slide"):
        seed_slide(str(tmp_path), "clicks.geojson")
