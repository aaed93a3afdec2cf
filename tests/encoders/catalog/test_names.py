"""Rows by their names: of the catalog, and of timm."""

import pytest

from fseg_jax.encoders.catalog.names import find_row
from fseg_jax.encoders.catalog.published import CATALOG
from fseg_jax.errors import InputError

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize(
    ("asked", "hint"),
    [("uni-2h", "uni2-h"), ("gigapath", "prov-gigapath"), ("virchow3", "virchow2"), ("resnet5", "resnet50")],
)
def test_an_unknown_name_is_answered_with_the_nearest(asked, hint):
    with pytest.raises(InputError, match=hint) as error:
        find_row(asked)
    assert "\n" not in str(error.value)


def test_names_are_read_kindly():
    assert find_row("UNI2_h") is CATALOG["uni2-h"]


def test_a_timm_name_makes_a_row():
    row = find_row("timm:vit_base_patch14_reg4_dinov2.lvd142m")
    assert (row.repo, row.prefix, row.stride, row.layer) == (
        "timm/vit_base_patch14_reg4_dinov2.lvd142m",
        5,
        14,
        "blocks.11",
    )
    assert find_row("timm:vit_small_patch16_224.augreg_in21k").normalisation.mean == (0.5, 0.5, 0.5)
    assert find_row("timm:vit_small_patch16_224.dino").normalisation.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    "name", ["timm:convnext_tiny.fb_in1k", "timm:resnet50", "timm:vit_base_patch16_clip_224.x"]
)
def test_a_timm_name_that_is_no_plain_network_is_said_in_one_line(name):
    with pytest.raises(InputError, match="timm:resnet34") as error:
        find_row(name)
    assert "\n" not in str(error.value)
