"""SimCLR (Chen et al. 2020, arXiv 2002.05709) on tissue, with regions contrasted as well as whole views.

Two views of the same tissue, cut and stained differently, should be told from all other tissue by a trunk
``f`` and a projection ``g`` (§2.1). F-SEG reads the trunk's grid rather than its average, so the averages of
regions that both views see are contrasted too (Xiao et al. 2021, ReSim, arXiv 2103.12902, has the idea): the
loss is ``(1 − d) · L(views) + d · L(regions)``, with ``d`` the ``dense`` of the settings. Where this differs
from the paper: the trunk ends at stride 16; stain varies instead of colours; regions of one pair of views are
not each other's negatives, for neighbours are often the same tissue; AdamW instead of LARS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Float

from fseg_jax.encoders.layers import Linear, global_average
from fseg_jax.encoders.resnet.network import ResNet, ResNetConfig, fold_norms
from fseg_jax.errors import InputError
from fseg_jax.numerics.arrays import Array
from fseg_jax.pretraining.augment import augment
from fseg_jax.pretraining.views import Views

# ResNet-18's trunk to stride 16, 256 non-negative channels, with a cheaper stem and a block less at stride 4.
TRUNK = ResNetConfig("basic", (1, 2, 2), (64, 128, 256), norms=True, patches=True)
LAYER, STRIDE = "layer3", 16
MEAN, STD = (0.70, 0.56, 0.70), (0.22, 0.26, 0.20)  # of H&E, RGB in 0 … 1
PROJECTED = 128


@dataclass(frozen=True)
class Settings:
    """How to train: whatever here affects the weights.

    ``pairs`` of views a step, whose loss contrasts them all, are put through the network ``chunk`` images at
    a time where that is given: memory is then a chunk's, for a third more time, and a batch norm's statistics
    are a chunk's. The learning rate rises over ``warmup`` of the steps and falls as a cosine.
    """

    steps: int = 2000
    pairs: int = 128
    temperature: float = 0.2
    dense: float = 0.5
    learning_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 1e-4
    chunk: int | None = None
    dtype: str = "float32"
    seed: int = 0


class Projected(NamedTuple):
    """The projections ``z`` of whole views and of their regions."""

    views: Float[Array, "b 1 d"]
    regions: Float[Array, "b r d"]


class Losses(NamedTuple):
    """Of a step: the loss, and its two parts."""

    loss: Float[Array, ""]
    views: Float[Array, ""]
    regions: Float[Array, ""]


class State(NamedTuple):
    """All that a step changes: ``step`` is how many are done."""

    step: Array
    parameters: Any
    statistics: Any
    optimiser: Any


class Projection(nnx.Module):
    """``g``: two layers with a batch norm and a ReLU between them (§4.2)."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.hidden = Linear(channels, channels, bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(channels, momentum=0.9, epsilon=1e-5, rngs=rngs)
        self.out = Linear(channels, PROJECTED, rngs=rngs)

    def __call__(self, h: Float[Array, "n c"]) -> Float[Array, "n d"]:
        return self.out(jax.nn.relu(self.norm(self.hidden(h))))


class SimCLR(nnx.Module):
    """The trunk ``f`` and a projection ``g`` each for views and for regions."""

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.trunk = ResNet(config, rngs=rngs, dtype=dtype)
        channels = config.channels[-1] * config.expansion
        self.views = Projection(channels, rngs=rngs)
        self.regions = Projection(channels, rngs=rngs)

    def __call__(self, x: Float[Array, "b H W 3"], boxes: Float[Array, "b r 4"]) -> "Projected":
        """The projections of whole views and of their regions."""
        grid = self.trunk.features(x)
        b, r = boxes.shape[:2]
        pooled = pool_regions(grid, boxes)
        regions = self.regions(pooled.reshape(b * r, -1)).reshape(b, r, -1)
        return Projected(self.views(global_average(grid))[:, None], regions)


def pool_regions(grid: Float[Array, "b h w c"], boxes: Float[Array, "b r 4"]) -> Float[Array, "b r c"]:
    """The mean of a grid over boxes (top, left, bottom, right; 0 … 1): tokens count by how much of them is
    inside.
    """

    def inside(begin: Float[Array, "b r"], end: Float[Array, "b r"], n: int) -> Float[Array, "b r n"]:
        edge = jnp.arange(n, dtype=jnp.float32).reshape(1, 1, n) / n
        overlap = jnp.minimum(end[..., None], edge + 1 / n) - jnp.maximum(begin[..., None], edge)
        overlap = jnp.maximum(overlap, 0)
        return overlap / overlap.sum(-1, keepdims=True)

    top, left, bottom, right = jnp.moveaxis(boxes, -1, 0)
    rows, columns = inside(top, bottom, grid.shape[1]), inside(left, right, grid.shape[2])
    return jnp.einsum("bhwc,brh,brw->brc", grid, rows, columns)


def nt_xent(z: Float[Array, "2 n r d"], temperature: float) -> Float[Array, ""]:
    """NT-Xent (§2.1, equation 1), the mean of ``ℓ(i, j)`` over all positive pairs, in float32.

    ``z[0, k, m]`` and ``z[1, k, m]`` are a positive pair; negatives are all of other ``k``.
    """
    n, r = z.shape[1:3]
    z = z.reshape(2 * n * r, -1).astype(jnp.float32)
    z = z * jax.lax.rsqrt(jnp.sum(z * z, -1, keepdims=True) + 1e-12)
    s = z @ z.T / temperature
    i = jnp.arange(2 * n * r)
    partner = (i + n * r) % (2 * n * r)
    owner = i // r % n
    own = owner[:, None] == owner[None, :]
    positive = partner[:, None] == i[None, :]
    s = jnp.where(own & ~positive, -jnp.inf, s)
    return jnp.mean(jax.nn.logsumexp(s, axis=1) - jnp.sum(jnp.where(positive, s, 0), axis=1))


class Trainer(NamedTuple):
    """A compiled step for settings: ``step(state, views) -> (state, losses)``, and where to begin."""

    step: Callable[[State, Views], tuple[State, Losses]]
    begin: State
    graphdef: Any

    def trunk(self, state: State) -> ResNet:
        """The trunk as trained so far, its batch norms folded."""
        model = nnx.merge(self.graphdef, state.parameters, state.statistics, copy=True)
        model.eval()
        return fold_norms(model.trunk)


def schedule(settings: Settings) -> optax.Schedule:
    """The learning rate by step: a linear rise, then a cosine to zero."""
    warm = max(1, round(settings.warmup * settings.steps))
    return optax.warmup_cosine_decay_schedule(0, settings.learning_rate, warm, max(settings.steps, warm + 1))


def trainer(settings: Settings, config: ResNetConfig = TRUNK) -> Trainer:
    """Set up the network, the optimiser and the step, over all local devices.

    Raises ``InputError`` for a chunk that does not divide a step's views.
    """
    devices = jax.local_device_count()
    images = 2 * settings.pairs
    chunk = settings.chunk or images
    if images % chunk or chunk % devices:
        raise InputError(
            f"--chunk {chunk}: must divide the {images} views of a step, and be a multiple of the {devices} "
            "device(s)"
        )
    mesh = jax.make_mesh((devices,), ("views",), axis_types=(AxisType.Auto,))
    shared, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("views"))
    model = SimCLR(config, rngs=nnx.Rngs(settings.seed), dtype=jnp.dtype(settings.dtype))
    model.train()
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    parameters, statistics = states
    optimiser = optax.adamw(
        schedule(settings),
        weight_decay=settings.weight_decay,
        mask=lambda p: jax.tree.map(lambda leaf: leaf.ndim > 1, p),
    )
    key = jax.random.key(settings.seed)

    def prepare(step: Array, images: Array) -> Array:
        x = augment(images, jax.random.fold_in(key, step))
        return (x - jnp.asarray(MEAN).reshape(1, 1, 1, 3)) / jnp.asarray(STD).reshape(1, 1, 1, 3)

    def embed(parameters: Any, statistics: Any, x: Array, boxes: Array) -> tuple[Projected, Any]:
        model = nnx.merge(graphdef, parameters, statistics, copy=True)
        return model(x, boxes), nnx.state(model, nnx.BatchStat)

    def contrast(z: Projected) -> tuple[Array, Losses]:
        of_views, of_regions = (
            nt_xent(part.reshape(2, settings.pairs, *part.shape[1:]), settings.temperature) for part in z
        )
        total = (1 - settings.dense) * of_views + settings.dense * of_regions
        return total, Losses(total, of_views, of_regions)

    def move(state: State, gradient: Any, statistics: Any) -> State:
        updates, moments = optimiser.update(gradient, state.optimiser, state.parameters)
        return State(state.step + 1, optax.apply_updates(state.parameters, updates), statistics, moments)

    @jax.jit
    def whole(state: State, images: Array, boxes: Array) -> tuple[State, Losses]:
        def loss(parameters: Any) -> tuple[Array, tuple[Losses, Any]]:
            z, statistics = embed(parameters, state.statistics, prepare(state.step, images), boxes)
            total, losses = contrast(z)
            return total, (losses, statistics)

        gradient, (losses, statistics) = jax.grad(loss, has_aux=True)(state.parameters)
        return move(state, gradient, statistics), losses

    # In chunks (Gao et al. 2021, arXiv 2101.06983): project all, differentiate the loss by the projections,
    # then go back through the network a chunk at a time. The programs are called from the host, for in a
    # compiled loop XLA's CPU convolutions run on one core.
    prepared, forward, moved = jax.jit(prepare), jax.jit(embed), jax.jit(move)
    contrasted = jax.jit(jax.grad(contrast, has_aux=True))

    @jax.jit
    def backward(parameters: Any, statistics: Any, x: Array, boxes: Array, dz: Projected, total: Any) -> Any:
        _, back = jax.vjp(lambda p: embed(p, statistics, x, boxes)[0], parameters)
        return jax.tree.map(jnp.add, total, back(dz)[0])

    def in_chunks(state: State, images: Array, boxes: Array) -> tuple[State, Losses]:
        x = prepared(state.step, images)
        parts = [slice(begin, begin + chunk) for begin in range(0, len(images), chunk)]
        done = [forward(state.parameters, state.statistics, x[part], boxes[part]) for part in parts]
        z = jax.tree.map(lambda *chunks: jnp.concatenate(chunks), *(z for z, _ in done))
        dz, losses = contrasted(z)
        gradient = jax.tree.map(jnp.zeros_like, state.parameters)
        for part in parts:
            of_part = jax.tree.map(lambda a, part=part: a[part], dz)
            gradient = backward(state.parameters, state.statistics, x[part], boxes[part], of_part, gradient)
        statistics = jax.tree.map(lambda *chunks: sum(chunks) / len(chunks), *(after for _, after in done))
        return moved(state, gradient, statistics), losses

    run = whole if chunk == images else in_chunks

    def step(state: State, views: Views) -> tuple[State, Losses]:
        images, boxes = (jax.device_put(a.reshape(-1, *a.shape[2:]), split) for a in views)
        return run(state, images, boxes)

    begin = State(jnp.zeros((), jnp.int32), parameters, statistics, optimiser.init(parameters))
    return Trainer(step, jax.device_put(begin, shared), graphdef)
