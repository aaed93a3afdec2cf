"""Every architecture against its publisher's network, stage by stage."""

import jax.numpy as jnp
import pytest
from fixtures import FOLDER, compute_outputs, list_fixtures, read_fixture, relative_error

FAMILIES = ("efficientnet", "resnet", "swin", "vit")
EVERY = [name for family in FAMILIES for name in list_fixtures(family)]

# PathFM's code rounds q and k to bfloat16, and what the last bit of a float32 tips there is seen downstream.
BOUNDS = {"vit_pathfm": 1e-3}


def test_every_family_and_no_other_has_fixtures():
    assert all(list_fixtures(family) for family in FAMILIES)
    assert sorted([*EVERY, *list_fixtures("text")]) == sorted(
        path.stem for path in FOLDER.glob("*.safetensors")
    )


@pytest.mark.parametrize("name", EVERY)
def test_every_stage_is_the_publishers(name):
    theirs = read_fixture(name)
    ours = compute_outputs(theirs.network(), theirs.x)
    assert ours.keys() == theirs.stages.keys()
    for stage, output in ours.items():
        assert relative_error(output, theirs.stages[stage]) <= BOUNDS.get(name, 1e-5), stage


@pytest.mark.parametrize("name", [name for name in EVERY if name not in list_fixtures("vit")])
def test_bfloat16_ends_where_float32_does(name):
    theirs = read_fixture(name)
    output = compute_outputs(theirs.network(jnp.bfloat16), theirs.x)["head"]
    assert output.dtype == jnp.float32
    assert relative_error(output, theirs.stages["head"]) <= 2e-2


@pytest.mark.parametrize("name", list_fixtures("vit"))
def test_bfloat16_stays_with_float32_at_every_stage(name):
    """Transformers sum many products a block, and stray no further for it."""
    theirs = read_fixture(name)
    ours = theirs.network(jnp.bfloat16)
    assert ours.blocks[0].mlp.fc1.kernel.dtype == jnp.bfloat16
    for stage, output in compute_outputs(ours, theirs.x).items():
        assert output.dtype == jnp.float32, stage
        assert relative_error(output, theirs.stages[stage]) <= 2e-2, stage
