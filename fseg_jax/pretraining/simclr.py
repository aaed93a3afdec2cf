"""Train by SimCLR (Chen et al. 2020, arXiv 2002.05709), contrasting regions as well as whole views.

A trunk ``f`` and a projection ``g`` learn to tell two views of the same tissue, cut and stained differently,
from views of all other tissue (§2.1). F-SEG reads the trunk's grid rather than its average. So the averages
of regions that both views show are contrasted too, after ReSim (Xiao et al. 2021, arXiv 2103.12902). The loss
is ``(1 − d) · L(views) + d · L(regions)``, with ``d`` the settings' ``dense``.

Where this differs from the paper:

- The trunk ends at stride 16.
- Stain is varied instead of colour.
- Regions of one pair of views are not each other's negatives: neighbours are often the same tissue.
- The optimiser is AdamW instead of LARS.
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

from fseg_jax.encoders.kernels.products import trace_products
from fseg_jax.encoders.layers import Linear, global_average
from fseg_jax.encoders.precision import parse_dtype
from fseg_jax.encoders.resnet.network import ResNet, ResNetConfig, fold_norms
from fseg_jax.errors import InputError
from fseg_jax.numerics.arrays import Array, Key
from fseg_jax.pretraining.augment import augment
from fseg_jax.pretraining.pages import PagedViews
from fseg_jax.pretraining.supply import make_view_key
from fseg_jax.pretraining.views import Views

# ResNet-18's trunk to stride 16, 256 non-negative channels, with a cheaper stem and a block less at stride 4.
TRUNK = ResNetConfig("basic", (1, 2, 2), (64, 128, 256), norms=True, patches=True)
LAYER, STRIDE = "layer3", 16
MEAN, STD = (0.70, 0.56, 0.70), (0.22, 0.26, 0.20)  # of H&E, RGB in 0…1
PROJECTION_CHANNELS = 128


@dataclass(frozen=True)
class TrainingSettings:
    """How to train. All of it affects the weights.

    Attributes:
        steps: Number of training steps.
        pairs: Pairs of views in a step, all contrasted with each other.
        temperature: Temperature τ of the loss.
        dense: Weight of the regions in the loss; that of the whole views is 1 − ``dense``.
        learning_rate: Largest learning rate.
        warmup: Fraction of the steps over which the learning rate rises; then it falls as a cosine.
        weight_decay: Weight decay of AdamW.
        chunk: Images that go through the network at once, which bounds memory and takes a third more time;
            batch norms then take their statistics over a chunk. None: all.
        dtype: Precision of the trunk's products.
        seed: Random seed.
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


class Projections(NamedTuple):
    """The projections ``z`` of images.

    Attributes:
        views: Of the whole views.
        regions: Of their regions.
    """

    views: Float[Array, "b 1 d"]
    regions: Float[Array, "b r d"]


class Losses(NamedTuple):
    """The loss of a step.

    Attributes:
        loss: The weighted sum of the two parts.
        views: The part of the whole views.
        regions: The part of the regions.
    """

    loss: Float[Array, ""]
    views: Float[Array, ""]
    regions: Float[Array, ""]


class State(NamedTuple):
    """Everything that a step changes.

    Attributes:
        step: Number of steps done.
        parameters: The network's weights.
        statistics: The batch norms' running statistics.
        optimiser: The optimiser's state.
    """

    step: Array
    parameters: Any
    statistics: Any
    optimiser: Any


class Projection(nnx.Module):
    """``g``: two layers with a batch norm and a ReLU between them (§4.2)."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.hidden = Linear(channels, channels, bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(channels, momentum=0.9, epsilon=1e-5, rngs=rngs)
        self.out = Linear(channels, PROJECTION_CHANNELS, rngs=rngs)

    def __call__(self, h: Float[Array, "n c"]) -> Float[Array, "n d"]:
        """Project averages of the trunk's grid."""
        return self.out(jax.nn.relu(self.norm(self.hidden(h))))


class SimCLR(nnx.Module):
    """The trunk ``f`` and a projection ``g`` each for views and for regions."""

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.trunk = ResNet(config, rngs=rngs, dtype=dtype)
        channels = config.channels[-1] * config.expansion
        self.views = Projection(channels, rngs=rngs)
        self.regions = Projection(channels, rngs=rngs)

    def __call__(self, x: Float[Array, "b H W 3"], boxes: Float[Array, "b r 4"]) -> Projections:
        """Project whole views and their regions; ``boxes`` are as in ``pool_regions``."""
        grid = self.trunk.features(x)
        b, r = boxes.shape[:2]
        pooled = pool_regions(grid, boxes)
        regions = self.regions(pooled.reshape(b * r, -1)).reshape(b, r, -1)
        return Projections(self.views(global_average(grid))[:, None], regions)


def pool_regions(grid: Float[Array, "b h w c"], boxes: Float[Array, "b r 4"]) -> Float[Array, "b r c"]:
    """Average a grid over boxes (top, left, bottom, right), fractions 0…1 of the grid.

    A token counts by how much of it is inside the box.
    """

    def inside(begin: Float[Array, "b r"], end: Float[Array, "b r"], n: int) -> Float[Array, "b r n"]:
        edge = jnp.arange(n, dtype=jnp.float32).reshape(1, 1, n) / n
        overlap = jnp.minimum(end[..., None], edge + 1 / n) - jnp.maximum(begin[..., None], edge)
        overlap = jnp.maximum(overlap, 0)
        return overlap / overlap.sum(-1, keepdims=True)

    top, left, bottom, right = jnp.moveaxis(boxes, -1, 0)
    rows, columns = inside(top, bottom, grid.shape[1]), inside(left, right, grid.shape[2])
    return jnp.einsum("bhwc,brh,brw->brc", grid, rows, columns, precision="highest")


def nt_xent(z: Float[Array, "2 n r d"], temperature: float) -> Float[Array, ""]:
    """Compute NT-Xent (§2.1, equation 1): the mean of ``ℓ(i, j)`` over all positive pairs, in float32.

    ``z[0, k, m]`` and ``z[1, k, m]`` are a positive pair; their negatives are those of every other ``k``.
    """
    n, r = z.shape[1:3]
    z = z.reshape(2 * n * r, -1).astype(jnp.float32)
    z = z * jax.lax.rsqrt(jnp.sum(z * z, -1, keepdims=True) + 1e-12)
    s = jnp.matmul(z, z.T, precision="highest") / temperature
    i = jnp.arange(2 * n * r)
    partner = (i + n * r) % (2 * n * r)
    pair = i // r % n
    is_same_pair = pair[:, None] == pair[None, :]
    is_positive = partner[:, None] == i[None, :]
    s = jnp.where(is_same_pair & ~is_positive, -jnp.inf, s)
    return jnp.mean(jax.nn.logsumexp(s, axis=1) - jnp.sum(jnp.where(is_positive, s, 0), axis=1))


class Trainer(NamedTuple):
    """A training that is set up for settings.

    Attributes:
        step: The compiled step, from a state and views, or what they are cut from, to the next state and the
            losses.
        begin: The state to begin with.
        shared: Where arrays lie that all devices hold whole.
        graphdef: The network's definition.
    """

    step: Callable[[State, Any], tuple[State, Losses]]
    begin: State
    shared: NamedSharding
    graphdef: nnx.GraphDef[SimCLR]

    def build_trunk(self, state: State) -> ResNet:
        """Build the trunk as trained so far, its batch norms folded."""
        model = nnx.merge(self.graphdef, state.parameters, state.statistics, copy=True)
        model.eval()  # type: ignore[no-untyped-call]
        return fold_norms(model.trunk)


def normalise(x: Float[Array, "b H W 3"]) -> Float[Array, "b H W 3"]:
    """Normalise images of 0 … 1 as the trunk takes them."""
    return (x - jnp.asarray(MEAN).reshape(1, 1, 1, 3)) / jnp.asarray(STD).reshape(1, 1, 1, 3)


def make_schedule(settings: TrainingSettings) -> optax.Schedule:
    """Make the function from a step to its learning rate: a linear rise, then a cosine to zero."""
    warm = max(1, round(settings.warmup * settings.steps))
    return optax.warmup_cosine_decay_schedule(0, settings.learning_rate, warm, max(settings.steps, warm + 1))


def separate_planes(views: Views, key: Key) -> PagedViews:
    """Take views that the host cut as a device cuts them."""
    images = views.images.reshape(-1, *views.images.shape[2:])
    planes = jnp.moveaxis(jnp.asarray(images, jnp.float32), -1, 1)
    return PagedViews(planes, jnp.asarray(views.regions))


def make_trainer(
    settings: TrainingSettings,
    config: ResNetConfig = TRUNK,
    *,
    trunk: ResNet | None = None,
    cut: Callable[[Any, Key], PagedViews] = separate_planes,
) -> Trainer:
    """Set up the network, the optimiser and the step, over all local devices.

    The trunk, of ``config``, begins with random weights, or with those of ``trunk``, which has norms.

    Args:
        settings: How to train.
        config: The trunk's configuration.
        trunk: The weights to begin with.
        cut: Cuts a step's views from what the step is given, by a key, within the step's program.

    Raises:
        InputError: The chunk does not divide a step's views.
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
    dtype = parse_dtype(settings.dtype)
    model = SimCLR(config, rngs=nnx.Rngs(settings.seed), dtype=dtype)
    if trunk is not None:
        nnx.update(model.trunk, nnx.state(trunk))
    model.train()  # type: ignore[no-untyped-call]
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    parameters, statistics = states
    optimiser = optax.adamw(
        make_schedule(settings),
        weight_decay=settings.weight_decay,
        mask=lambda p: jax.tree.map(lambda leaf: leaf.ndim > 1, p),
    )
    key = jax.random.key(settings.seed)

    def prepare(step: Array, given: Any) -> tuple[Array, Array]:
        views = cut(given, make_view_key(settings.seed, step))
        planes = jax.lax.with_sharding_constraint(views.planes, split)
        x = jnp.moveaxis(augment(planes, jax.random.fold_in(key, step)), 1, -1)
        return normalise(x), views.regions.reshape(images, *views.regions.shape[2:])

    def embed(parameters: Any, statistics: Any, x: Array, boxes: Array) -> tuple[Projections, Any]:
        model = nnx.merge(graphdef, parameters, statistics, copy=True)
        return model(x, boxes), nnx.state(model, nnx.BatchStat)

    def contrast(z: Projections) -> tuple[Array, Losses]:
        views, regions = (
            nt_xent(part.reshape(2, settings.pairs, *part.shape[1:]), settings.temperature) for part in z
        )
        loss = (1 - settings.dense) * views + settings.dense * regions
        return loss, Losses(loss, views, regions)

    def update(state: State, gradient: Any, statistics: Any) -> State:
        updates, moments = optimiser.update(gradient, state.optimiser, state.parameters)
        return State(state.step + 1, optax.apply_updates(state.parameters, updates), statistics, moments)

    @jax.jit
    def step_whole(state: State, given: Any) -> tuple[State, Losses]:
        x, boxes = prepare(state.step, given)

        def compute_loss(parameters: Any) -> tuple[Array, tuple[Losses, Any]]:
            z, statistics = embed(parameters, state.statistics, x, boxes)
            loss, losses = contrast(z)
            return loss, (losses, statistics)

        gradient, (losses, statistics) = jax.grad(compute_loss, has_aux=True)(state.parameters)
        return update(state, gradient, statistics), losses

    # In chunks (Gao et al. 2021, arXiv 2101.06983): project all, differentiate the loss by the projections,
    # then go back through the network a chunk at a time. The host calls these programs: in a compiled loop,
    # XLA's CPU convolutions run on one core.
    compiled_prepare, compiled_embed, compiled_update = jax.jit(prepare), jax.jit(embed), jax.jit(update)
    differentiate = jax.jit(jax.grad(contrast, has_aux=True))

    @jax.jit
    def add_gradient(
        gradient: Any, parameters: Any, statistics: Any, x: Array, boxes: Array, dz: Projections
    ) -> Any:
        _, pull_back = jax.vjp(lambda p: embed(p, statistics, x, boxes)[0], parameters)
        return jax.tree.map(jnp.add, gradient, pull_back(dz)[0])

    def step_in_chunks(state: State, given: Any) -> tuple[State, Losses]:
        x, boxes = compiled_prepare(state.step, given)
        parts = [slice(begin, begin + chunk) for begin in range(0, images, chunk)]
        results = [compiled_embed(state.parameters, state.statistics, x[part], boxes[part]) for part in parts]
        z = jax.tree.map(lambda *chunks: jnp.concatenate(chunks), *(z for z, _ in results))
        dz, losses = differentiate(z)
        gradient = jax.tree.map(jnp.zeros_like, state.parameters)
        for part in parts:
            dz_part = jax.tree.map(lambda a, part=part: a[part], dz)
            gradient = add_gradient(
                gradient, state.parameters, state.statistics, x[part], boxes[part], dz_part
            )
        statistics = jax.tree.map(
            lambda *chunks: sum(chunks) / len(chunks), *(statistics for _, statistics in results)
        )
        return compiled_update(state, gradient, statistics), losses

    run = step_whole if chunk == images else step_in_chunks

    def step(state: State, given: Any) -> tuple[State, Losses]:
        with trace_products(settings.dtype):
            return run(state, given)

    begin = State(jnp.zeros((), jnp.int32), parameters, statistics, optimiser.init(parameters))
    return Trainer(step, jax.device_put(begin, shared), shared, graphdef)
