"""Networks filled with tensors."""

import numpy as np
import pytest
from fixtures import read_fixture

from fseg_jax.encoders.architectures import build_abstract, fill_network, list_tensors
from fseg_jax.errors import InputError

VIT = "vit_layer_scale_patch16_resampled"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors.pop("norm.scale"), "lacks norm.scale"),
        (lambda tensors: tensors.update(more=np.zeros(2)), "holds more"),
        (lambda tensors: tensors.update({"norm.scale": np.zeros(3)}), r"norm.scale is \(3,\)"),
    ],
)
def test_filling_is_a_bijection(change, says):
    config = read_fixture(VIT).config
    empty = build_abstract(config)
    tensors = {name: np.zeros(place.shape, place.dtype) for name, place in list_tensors(empty).items()}
    fill_network(empty, tensors, label="x")
    change(tensors)
    with pytest.raises(InputError, match=says):
        fill_network(build_abstract(config), tensors, label="x")
