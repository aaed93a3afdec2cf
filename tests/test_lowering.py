"""What the numerics become on a GPU and a TPU, shown without either: programs are lowered for both."""

import re
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import optax
import pytest
from fixtures import list_fixtures, read_fixture
from flax import nnx
from planted_squares import configure_tiny

from fseg_jax.cam import classifier_training
from fseg_jax.cam.global_features import global_features
from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.efficientnet.network import EfficientNet
from fseg_jax.encoders.encoder import build_encoder
from fseg_jax.encoders.precision import DTYPES
from fseg_jax.encoders.resnet.network import ResNetConfig
from fseg_jax.evaluation.protocols import counts, linear_probe
from fseg_jax.methods import cam, fseg
from fseg_jax.numerics import blending, nmf, smoothing
from fseg_jax.numerics.kmeans import lloyd, plus_plus, seeded, seeding, shards
from fseg_jax.pretraining.augment import augment
from fseg_jax.pretraining.fields import Geometry
from fseg_jax.pretraining.pages import Cutter, Pages
from fseg_jax.pretraining.simclr import TrainingSettings, make_trainer, nt_xent, pool_regions
from fseg_jax.pretraining.views import FieldTable

KEY = jax.random.key(0)
X = np.zeros((40, 8), np.float32)
CENTERS = X[:5]
TILES = np.zeros((2, 4, 4, 8), np.float32)
IMAGES = np.zeros((1, 64, 64, 3), np.uint8)
PAGES = Pages(
    np.zeros((1, 3, 64, 64), np.uint8),
    np.zeros((5, 3), np.int32),
    FieldTable(np.full((5, 2), 60, np.float32), np.ones(5, np.float32), np.ones(5, np.float32)),
)
ONES, INTEGERS = np.ones(40, np.float32), np.zeros(40, np.int32)

PRODUCT = re.compile(r"stablehlo\.(dot_general|convolution|dot)\b")
OPERANDS = re.compile(r": \(tensor<(?:\w+x)*(\w+)>, tensor<(?:\w+x)*(\w+)>\)")


def lower(f, *arrays) -> str:
    """A function's programs for a GPU and a TPU, one after the other."""
    traced = jax.jit(f).trace(*arrays)
    return "".join(traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cuda", "tpu"))


def list_precisions(program: str) -> set[tuple[str, str]]:
    """The dtype of the operands of each product of floats, and the precision that it asks for."""
    found = set()
    for start in (match.start() for match in PRODUCT.finditer(program)):
        operation = program[start : OPERANDS.search(program, start).end()]
        left, right = OPERANDS.search(operation).groups()
        assert left == right
        if left.startswith(("f", "bf")):
            asked = re.findall(r"\b(?:HIGHEST|HIGH|DEFAULT)\b", operation)
            found.add((left, asked[0] if asked else "DEFAULT"))
    return found


def lower_encoder(name: str, dtype: str) -> str:
    fixture = read_fixture(name)
    network = fixture.network(DTYPES[dtype])
    encoder = build_encoder(network, replace(classical().card, layer=network.layers()[-1]), dtype)
    return lower(encoder.apply, encoder.weights, fixture.x)


def lower_pretraining() -> str:
    trunk = ResNetConfig("basic", (1, 1, 1), (8, 8, 16), stem_channels=8, norms=True, patches=True)
    trainer = make_trainer(TrainingSettings(pairs=2), trunk, cut=Cutter(Geometry(32), 2, 51))
    program = lower(trainer.step, trainer.begin, PAGES)
    assert "callback" not in program and "f64" not in program
    return program


def lower_classifier() -> str:
    built = EfficientNet(configure_tiny("tiny", 2), rngs=nnx.Rngs(0))
    graphdef, *variables = nnx.split(built, nnx.Param, nnx.BatchStat)
    carry = (*variables, optax.adam(1e-3).init(variables[0]))
    images = np.zeros((6, 32, 32, 3), np.uint8)
    block = classifier_training._Block(images, np.zeros((6, 1), np.float32), np.zeros((3, 2), int), 3)
    run = partial(classifier_training._loop_steps, graphdef, 1e-3, True)
    program = lower(lambda carry, block, key: run(carry, block, 0, key), carry, block, KEY)
    assert "callback" not in program and "f64" not in program
    return program


def add_batch(*, exact: bool) -> str:
    points = shards.Points(X, jax.devices()[:1], X[0], False)
    zeros, against = points._zeros([5]), points._join({5: CENTERS}, [5])
    add = partial(shards._add, ks=(5,), layout=points.layout, spherical=False, exact=exact)
    return lower(add, zeros, np.zeros((points.layout.padded, 8), np.float16), 0, 40, against)


NUMERICS = {
    "weights": lambda: lower(nmf.solve_weights, X, CENTERS),
    "weights by cg": lambda: lower(partial(nmf.solve_weights, method="cg"), X, CENTERS),
    "weights by mu": lambda: lower(partial(nmf.solve_weights, method="mu"), X, CENTERS),
    "hals": lambda: lower(lambda A: nmf.factorize(A, 3, key=KEY), X),
    "accelerated": lambda: lower(lambda A: nmf.factorize(A, 3, key=KEY, method="accelerated"), X),
    "mu": lambda: lower(lambda A: nmf.factorize(A, 3, key=KEY, method="mu"), X),
    "tiles, fixed": lambda: lower(
        lambda f, m: fseg.solve_tiles(f, m, KEY, mode="fixed", mixtures=m), TILES, CENTERS
    ),
    "tiles, assign": lambda: lower(
        lambda f, m: fseg.solve_tiles(f, m, KEY, mode="assign", concepts=3), TILES, CENTERS
    ),
    "concept cam": lambda: lower(lambda f: cam.concept_cam(lambda g: g.mean((1, 2)), f, key=KEY), TILES),
    "k-means": lambda: lower(lambda X: lloyd._fit(X, KEY, 3, 9, 1e-4), X),
    "k-means++": lambda: lower(lambda X: plus_plus(X, 3, KEY), X),
    "k-means‖": lambda: lower(lambda X: seeding.draw_candidates(X, KEY, 20), X),
    "seeded k-means": lambda: lower(seeded.fit_members, X, ONES > 0, CENTERS, ONES[:5] > 0, INTEGERS),
    "k-means of a cohort": lambda: add_batch(exact=True),
    "nearest centres": lambda: lower(counts.score_nearest, X[None], CENTERS, INTEGERS[:1]),
    "linear probe": lambda: lower(
        linear_probe._minimise, X, INTEGERS, ONES, ONES[:3] > 0, np.float32(1), np.float32(40)
    ),
    "smoothing": lambda: lower(
        lambda W, weight: smoothing.smooth(W, weight, smoothing.Likeness(CENTERS, ONES[0]), 1.0, 1),
        np.zeros((1, 6, 6, 5), np.float32),
        np.zeros((1, 6, 6), np.float32),
    ),
    "classical": lambda: lower(classical().apply, None, np.zeros((1, 32, 32, 3), np.float32)),
    "views": lambda: lower(Cutter(Geometry(32), 2, 51), PAGES, KEY),
    "augmented views": lambda: lower(lambda x: augment(x, KEY), np.zeros((1, 3, 64, 64), np.float32)),
    "step of pretraining": lower_pretraining,
    "epoch of a classifier": lower_classifier,
    "contrast": lambda: lower(lambda z: nt_xent(z, 0.2), np.zeros((2, 3, 1, 8), np.float32)),
    "regions": lambda: lower(pool_regions, TILES, np.zeros((2, 1, 4), np.float32)),
    "global features": lambda: lower(global_features, IMAGES),
}


@pytest.mark.parametrize("name", NUMERICS)
def test_float32_is_multiplied_as_float32(name):
    # Sums over clusters are products with 0 and 1 of the three bfloat16 that a float32 is made of.
    exact = {("bf16", "DEFAULT")} if name == "k-means" else set()
    assert list_precisions(NUMERICS[name]()) == {("f32", "HIGHEST")} | exact


def test_labels_are_made_without_a_gather():
    program = lower(partial(fseg.label_pixels, stride=16), np.zeros((1, 4, 4, 300), np.float32))
    assert "stablehlo.while" in program
    assert not re.search(r"stablehlo\.(gather|dynamic_gather|scatter|sort)", program)


def test_tiles_are_stored_and_blended_without_a_scatter():
    ring, near, tokens = blending.make_ring(6, 8, 3), np.zeros((2, 9), np.int32), np.zeros((2, 12), np.int32)
    program = lower(partial(blending.blend_tiles, halo=1, frame=3), ring, near, tokens, tokens)
    program += lower(partial(blending.store_tiles, halo=1), ring, np.zeros((2, 8, 8, 3), np.float32), 0)
    assert "stablehlo.dynamic_update_slice" in program
    assert not re.search(r"stablehlo\.(scatter|sort|while)", program)


def test_points_of_a_cohort_are_multiplied_in_bfloat16_while_centres_move():
    assert list_precisions(add_batch(exact=False)) == {("bf16", "DEFAULT")}


@pytest.mark.parametrize(
    "name", [list_fixtures(family)[0] for family in ("efficientnet", "resnet", "swin", "vit")]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_encoders_multiply_as_their_precision_says(name, dtype):
    wanted = {"float32": ("f32", "HIGHEST"), "tf32": ("f32", "HIGH"), "bfloat16": ("bf16", "DEFAULT")}
    # What no precision rounds: resampled positions, a gate's few numbers.
    assert list_precisions(lower_encoder(name, dtype)) | {wanted["float32"]} == {
        wanted[dtype],
        wanted["float32"],
    }
