"""Rows by their names: of the catalog, and of timm."""

import re

import pytest

from fseg_jax.encoders.catalog.names import OTHER_NAMES, _squeeze, find_row
from fseg_jax.encoders.catalog.published import CATALOG
from fseg_jax.encoders.catalog.unsupported import UNSUPPORTED
from fseg_jax.errors import InputError

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("vrchow", "virchow"),
        ("optimus-0", "h-optimus-0"),
        ("kaiko", "kaiko-s8"),
        ("lunit", "lunit-resnet50"),
        ("resnet5", "resnet50"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(asked, hint):
    with pytest.raises(InputError, match=hint) as error:
        find_row(asked)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("asked", ["virchow3", "uni3", "phikon-v3", "h-optimus-2", "resnet151", "digepath"])
def test_another_number_is_another_model(asked):
    with pytest.raises(InputError) as error:
        find_row(asked)
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("asked", UNSUPPORTED)
def test_a_known_model_is_never_answered_with_the_most_similar_name(asked):
    assert asked not in CATALOG and asked == asked.lower()
    with pytest.raises(
        InputError, match=rf"^{asked} is .+, which the catalog lacks: .+\. Near it: .+$"
    ) as error:
        find_row(asked)
    assert "did you mean" not in str(error.value)
    words = re.findall(r"[a-z0-9:_.-]*[a-z0-9]", UNSUPPORTED[asked].near)
    named = [word for word in words if word in CATALOG or word.startswith("timm:")]
    assert named, "what comes near is in the catalog"
    for name in named:
        find_row(name)


@pytest.mark.parametrize("asked", ["RudolfV2", "rudolfv2_s", "ATLAS2"])
def test_a_known_model_is_known_however_it_is_written(asked):
    with pytest.raises(InputError, match="which the catalog lacks"):
        find_row(asked)


def test_names_are_read_kindly():
    for name in ("UNI2_h", "uni-2h", "uni2h"):
        assert find_row(name) is CATALOG["uni2-h"]
    assert find_row("hoptimus0").name == "h-optimus-0" and find_row("conch_v15").name == "conch-v1.5"


def test_other_programs_names_are_those_encoders():
    assert find_row("uni_v1").name == "uni" and find_row("gigapath").name == "prov-gigapath"
    keys = [_squeeze(name) for name in (*CATALOG, *OTHER_NAMES, *UNSUPPORTED)]
    assert len(keys) == len(set(keys))
    for other, name in OTHER_NAMES.items():
        assert find_row(other) is CATALOG[name]


def test_a_timm_name_makes_a_row():
    row = find_row("timm:vit_base_patch14_reg4_dinov2.lvd142m")
    assert (row.repo, row.prefix, row.stride, row.layer) == (
        "timm/vit_base_patch14_reg4_dinov2.lvd142m",
        5,
        14,
        "blocks.11",
    )
    row = find_row("timm:vit_large_patch16_dinov3.sat493m")
    assert (row.licence, row.prefix, row.input_size) == ("DINOv3 License", 5, 256)
    assert row.normalisation.mean == (0.430, 0.411, 0.296)
    assert find_row("timm:vit_small_patch16_224.augreg_in21k").normalisation.mean == (0.5, 0.5, 0.5)
    assert find_row("timm:vit_small_patch16_224.dino").normalisation.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    "name",
    [
        "timm:convnext_tiny.fb_in1k",
        "timm:resnet50",
        "timm:vit_base_patch16_clip_224.x",
        "timm:vit_base_patch16_dinov3.eupe_x",
    ],
)
def test_a_timm_name_that_is_no_plain_network_is_said_in_one_line(name):
    with pytest.raises(InputError, match="timm:resnet34") as error:
        find_row(name)
    assert "\n" not in str(error.value)
