"""SimCLR: the loss is the paper's, regions are averages of the grid, and chunks change nothing but memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fseg_jax.encoders.layers import Conv
from fseg_jax.encoders.resnet.network import ResNet, ResNetConfig, fold_norms, unfold_norms
from fseg_jax.errors import InputError
from fseg_jax.pretraining.augment import augment
from fseg_jax.pretraining.simclr import (
    MEAN,
    STD,
    SimCLR,
    TrainingSettings,
    make_schedule,
    make_trainer,
    nt_xent,
    pool_regions,
)
from fseg_jax.pretraining.views import Views

TINY = ResNetConfig("basic", (1, 1, 1), (8, 8, 16), stem_channels=8, norms=True, patches=True)


def views(pairs: int = 6, side: int = 32, seed: int = 0) -> Views:
    rng = np.random.default_rng(seed)
    begin = rng.uniform(0, 0.4, (2, pairs, 2, 2))
    boxes = np.concatenate([begin, begin + 0.5], -1).astype(np.float32)
    return Views(rng.integers(0, 256, (2, pairs, side, side, 3), dtype=np.uint8), boxes)


@pytest.mark.parametrize("regions", [1, 3])
def test_nt_xent_is_equation_1(regions: int):
    n, d, tau = 4, 5, 0.3
    z = np.random.default_rng(0).normal(size=(2, n, regions, d))
    flat = [(v, k, m) for v in range(2) for k in range(n) for m in range(regions)]

    def sim(a, b):
        return z[a] @ z[b] / np.linalg.norm(z[a]) / np.linalg.norm(z[b])

    losses = []
    for i in flat:
        j = (1 - i[0], *i[1:])
        others = [k for k in flat if k[1] != i[1]]
        bottom = np.exp(sim(i, j) / tau) + sum(np.exp(sim(i, k) / tau) for k in others)
        losses.append(-np.log(np.exp(sim(i, j) / tau) / bottom))
    np.testing.assert_allclose(nt_xent(jnp.asarray(z, jnp.float32), tau), np.mean(losses), rtol=1e-5)


def test_regions_are_means_of_the_grid():
    grid = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 8, 3)), jnp.float32)
    boxes = jnp.asarray([[[0, 0, 1, 1], [0.25, 0.5, 0.75, 0.75], [0, 0, 0.125, 0.1875]]], jnp.float32)
    out = np.asarray(pool_regions(grid, boxes))[0]
    np.testing.assert_allclose(out[0], grid[0].mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(out[1], grid[0, 1:3, 4:6].mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(out[2], (grid[0, 0, 0] * 2 + grid[0, 0, 1]) / 3, atol=1e-6)


def test_folding_changes_nothing():
    network = ResNet(TINY, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (4, 32, 48, 3))
    network.train()
    for scale in (1.0, 2.0, 3.0):
        network.features(scale * x + 1)
    network.eval()
    out = fold_norms(network)
    assert not out.config.norms
    np.testing.assert_allclose(out.features(x), network.features(x), atol=1e-4)
    assert out.features(x).shape == (4, 2, 3, 16) and float(out.features(x).min()) >= 0


def test_norms_are_unfolded_to_what_they_were_folded_from():
    config = ResNetConfig("basic", (1, 2), (8, 16), stem_channels=8, patches=True)
    folded = ResNet(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    for _, module in nnx.iter_modules(folded):
        if isinstance(module, Conv):
            module.bias[...] = jnp.asarray(rng.normal(size=module.bias.shape), jnp.float32)
    x = jnp.asarray(rng.normal(size=(6, 32, 32, 3)), jnp.float32)
    network = unfold_norms(folded, x)
    expected = folded.features(x)
    for mode in (network.eval, network.train):  # by the running statistics, and by the batch's own
        mode()
        np.testing.assert_allclose(network.features(x), expected, rtol=1e-3, atol=1e-4)
    again = unfold_norms(folded, x)
    again.eval()
    np.testing.assert_allclose(
        fold_norms(again).features(x[:2, :16]), folded.features(x[:2, :16]), rtol=1e-3, atol=1e-4
    )


def test_a_step_learns_and_compiles_once():
    made = make_trainer(TrainingSettings(steps=30, pairs=6, learning_rate=3e-3), TINY)
    state, losses = made.begin, []
    with jax.log_compiles(False):
        for _ in range(25):
            state, measured = made.step(state, views())
            losses.append(float(measured.loss))
    assert int(state.step) == 25
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    parts = 0.5 * float(measured.views) + 0.5 * float(measured.regions)
    np.testing.assert_allclose(float(measured.loss), parts, rtol=1e-5)
    assert made.build_trunk(state).features(jnp.zeros((1, 32, 32, 3))).shape == (1, 2, 2, 16)


def test_chunks_differentiate_the_same_loss():
    settings = TrainingSettings(steps=10, pairs=6, chunk=4, warmup=0)
    made = make_trainer(settings, TINY)
    drawn = views()
    # Plain SGD of the loss over chunks, by autodiff through all of them at once; Adam's first step is its
    # sign.
    model = SimCLR(TINY, rngs=nnx.Rngs(settings.seed))
    model.train()
    graphdef, parameters, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)
    images, boxes = (jnp.asarray(a.reshape(-1, *a.shape[2:])) for a in drawn)
    planes = jnp.moveaxis(images.astype(jnp.float32), -1, 1)
    x = augment(planes, jax.random.fold_in(jax.random.key(settings.seed), 0))
    x = jnp.moveaxis(x, 1, -1)
    x = (x - jnp.asarray(MEAN).reshape(1, 1, 1, 3)) / jnp.asarray(STD).reshape(1, 1, 1, 3)

    def loss(p):
        model = nnx.merge(graphdef, p, statistics, copy=True)
        z = [model(x[i : i + 4], boxes[i : i + 4]) for i in range(0, 12, 4)]
        v, r = (jnp.concatenate([part[i] for part in z]) for i in (0, 1))
        return 0.5 * nt_xent(v.reshape(2, 6, 1, -1), 0.2) + 0.5 * nt_xent(r.reshape(2, 6, 2, -1), 0.2)

    value, gradient = jax.jit(jax.value_and_grad(loss))(parameters)
    state, measured = made.step(made.begin, drawn)
    np.testing.assert_allclose(float(measured.loss), float(value), rtol=1e-5)
    first = jax.tree.leaves(state.optimiser[0].mu)  # a tenth of the gradient
    for moment, wanted in zip(first, jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(10 * moment, wanted, atol=1e-3, rtol=1e-2)


def test_the_learning_rate_rises_and_falls():
    rate = make_schedule(TrainingSettings(steps=100, warmup=0.1, learning_rate=1.0))
    assert float(rate(0)) == 0 and float(rate(10)) == 1 and abs(float(rate(55)) - 0.5) < 1e-6
    assert float(rate(100)) < 1e-6


def test_a_chunk_that_does_not_divide():
    with pytest.raises(InputError, match="--chunk 5: must divide the 12 views"):
        make_trainer(TrainingSettings(pairs=6, chunk=5), TINY)
