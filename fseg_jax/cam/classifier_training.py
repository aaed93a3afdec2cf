"""Train the classifier of the CAM paper (Storås 2021, §2), epoch after epoch.

Binary cross-entropy on logits, Adam with its defaults, 25 epochs, batches of 16 at 224 pixels, no
augmentation: the paper's words, and where it is silent its published code's. As in that code, the epoch with
the best score on the held-out images is kept (the first of equals), so its accuracy is a little too good; the
accuracy of the last epoch is reported beside it.

Where this differs:

- A last batch that is too small is filled up with images from the beginning of the epoch's order, so that
  nothing compiles twice. The published code has a smaller batch there.
- The best epoch is the one with the best mean recall over the classes. Where one class is commoner among the
  held-out images, plain accuracy prefers a network that has learnt nothing yet and always predicts that
  class.
- The batch norms' running statistics are measured anew after each epoch, on training images, with the weights
  of that epoch (Wu & Johnson 2021, "Rethinking Batch in BatchNorm", §3). Running averages begin at 0 and 1
  and lag: with a few hundred images, a network that is right on every training batch can be no better than
  chance in evaluation for several epochs.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float, Int, PyTree, UInt8

from fseg_jax.cam.classifier import (
    ClassifierScore,
    ClassifierSettings,
    LabelledImages,
    NetworkState,
    configure_network,
    decide,
    find_normalisation,
    make_predictor,
    make_targets,
    normalise,
    score_classifier,
)
from fseg_jax.encoders.efficientnet.network import EfficientNet, EfficientNetConfig
from fseg_jax.errors import InputError
from fseg_jax.numerics.arrays import Array, Images, Key

STATISTICS_BATCHES = 32  # batches that the batch norms' statistics are measured on
HELD_BYTES = 2**30  # of images on an accelerator; of more, so many at once and as many that follow


class TrainingState(NamedTuple):
    """Everything that training changes.

    Attributes:
        epoch: Number of epochs done.
        best: Best balanced accuracy on held-out images so far, −1 before the first epoch.
        parameters: The network's weights.
        statistics: The batch norms' running statistics.
        moments: Adam's state.
    """

    epoch: int
    best: float
    parameters: NetworkState
    statistics: NetworkState
    moments: PyTree[Array]


class Epoch(NamedTuple):
    """The result of an epoch.

    Attributes:
        state: The state after it.
        number: The epoch's number, from 1.
        loss: Mean training loss over the epoch's batches.
        accuracy: Mean training accuracy over the epoch's batches.
        held_out: Score on the held-out images, if there are any.
        keep: Whether this is the best epoch so far.
    """

    state: TrainingState
    number: int
    loss: float
    accuracy: float
    held_out: ClassifierScore | None
    keep: bool


class Trainer(NamedTuple):
    """A training that is set up for settings and a number of classes.

    Attributes:
        begin: The state to begin with.
        run_epoch: Trains for an epoch; returns the new state, the mean loss and the mean accuracy.
        settings: How to train.
        graphdef: The network's definition.
        config: The network's configuration.
    """

    begin: TrainingState
    run_epoch: Callable[[TrainingState, LabelledImages], tuple[TrainingState, float, float]]
    settings: ClassifierSettings
    graphdef: nnx.GraphDef[EfficientNet]
    config: EfficientNetConfig

    def build_network(self, state: TrainingState) -> EfficientNet:
        """Build the network as trained so far, set to evaluate."""
        built = nnx.merge(self.graphdef, state.parameters, state.statistics, copy=True)
        built.eval()  # type: ignore[no-untyped-call]
        return built


class _Block(NamedTuple):
    """Steps whose images a device holds.

    Attributes:
        images: The images.
        targets: The targets of their logits.
        rows: The images of each step; of the last block's steps, some are not to be made.
        steps: Number of steps.
    """

    images: UInt8[Array, "m size size 3"]
    targets: Float[Array, "m k"]
    rows: Int[Array, "most batch"]
    steps: int


def make_trainer(
    settings: ClassifierSettings, classes: int, *, loop_on_device: bool | None = None
) -> Trainer:
    """Set up network, optimiser and step.

    Args:
        settings: How to train.
        classes: Number of classes.
        loop_on_device: Whether an epoch's steps are a loop on the device, which holds the images; None:
            unless it is a CPU. In a loop, XLA's gradients of convolutions take a CPU a hundred times as long.

    Raises:
        InputError: For settings or classes that cannot be.
    """
    settings.check()
    if classes < 2:
        raise InputError("all images are of one class: a classifier needs images of two at least")
    config = configure_network(settings.network, classes)
    built = (
        _draw_network(settings.seed, config) if settings.start == "random" else _load_trunk(settings, config)
    )
    built.train()  # type: ignore[no-untyped-call]
    graphdef, *(parameters, statistics) = nnx.split(built, nnx.Param, nnx.BatchStat)
    key = jax.random.key(settings.seed)
    if loop_on_device is None:
        loop_on_device = jax.default_backend() != "cpu"

    def run_epoch(state: TrainingState, data: LabelledImages) -> tuple[TrainingState, float, float]:
        n, batch = len(data.images), min(settings.batch, len(data.images))
        epoch_key = jax.random.fold_in(key, state.epoch)
        order = np.asarray(jax.random.permutation(epoch_key, n))
        order = np.resize(order, -(-n // batch) * batch)  # repeats from its beginning
        targets = make_targets(data.labels, classes)
        if loop_on_device:
            return loop(state, data.images, targets, order.reshape(-1, batch), epoch_key)
        parameters, statistics, moments = state.parameters, state.statistics, state.moments
        losses, accuracies = [], []
        for begin in range(0, len(order), batch):
            part = order[begin : begin + batch]
            parameters, statistics, moments, loss, accuracy = _step(
                graphdef,
                settings.learning_rate,
                settings.augment,
                parameters,
                statistics,
                moments,
                data.images[part],
                targets[part],
                jax.random.fold_in(epoch_key, begin + 1),
            )
            losses.append(loss)
            accuracies.append(accuracy)
        statistics = _measure_statistics(graphdef, parameters, statistics, data.images, order, batch)
        trained = TrainingState(state.epoch + 1, state.best, parameters, statistics, moments)
        return trained, float(np.mean(jax.device_get(losses))), float(np.mean(jax.device_get(accuracies)))

    def loop(
        state: TrainingState,
        images: UInt8[np.ndarray, "n size size 3"],
        targets: Float[np.ndarray, "n k"],
        rows: Int[np.ndarray, "steps batch"],
        epoch_key: Key,
    ) -> tuple[TrainingState, float, float]:
        carry = state.parameters, state.statistics, state.moments
        measures, begin = [], 0
        sent = jnp.asarray(images) if images.nbytes <= HELD_BYTES else images
        for block in _send_blocks(sent, targets, rows):
            carry, measured = _loop_steps(
                graphdef, settings.learning_rate, settings.augment, carry, block, begin, epoch_key
            )
            measures.append(measured[: block.steps])
            begin += block.steps
        parameters, statistics, moments = carry
        measured_rows = rows[:STATISTICS_BATCHES]
        total = jax.tree.map(jnp.zeros_like, statistics)
        for block in _send_blocks(sent, targets, measured_rows):
            total = _add_statistics(graphdef, parameters, statistics, total, block)
        statistics = jax.tree.map(lambda summed: summed / len(measured_rows), total)
        loss, accuracy = np.concatenate(jax.device_get(measures)).mean(0)
        trained = TrainingState(state.epoch + 1, state.best, parameters, statistics, moments)
        return trained, float(loss), float(accuracy)

    moments = optax.adam(settings.learning_rate).init(parameters)
    return Trainer(
        TrainingState(0, -1.0, parameters, statistics, moments), run_epoch, settings, graphdef, config
    )


def train_epochs(
    trainer: Trainer,
    data: LabelledImages,
    held_out: LabelledImages | None,
    state: TrainingState | None = None,
) -> Iterator[Epoch]:
    """Train epoch after epoch, from ``state`` or the beginning, and yield each epoch's result.

    An epoch is to be kept where its balanced accuracy on ``held_out`` exceeds all before; without held-out
    images every epoch is. The same settings and images give the same weights, interrupted or not.

    Raises:
        InputError: Where the loss is not finite.
    """
    state = state or trainer.begin
    while state.epoch < trainer.settings.epochs:
        state, loss, accuracy = trainer.run_epoch(state, data)
        score = None
        if held_out is not None and len(held_out.images):
            score = score_classifier(make_predictor(trainer.build_network(state)), held_out)
        keep = score is None or score.balanced > state.best
        if score is not None and keep:
            state = state._replace(best=score.balanced)
        if not np.isfinite(loss):
            raise InputError(
                f"training broke off in epoch {state.epoch}: the loss is no number; give a smaller "
                "--learning-rate"
            )
        yield Epoch(state, state.epoch, loss, accuracy, score, keep)


@jax.jit(static_argnums=(0, 1, 2))
def _step(
    graphdef: nnx.GraphDef[EfficientNet],
    learning_rate: float,
    augment: bool,
    parameters: NetworkState,
    statistics: NetworkState,
    moments: PyTree[Array],
    images: Images,
    targets: Float[Array, "b k"],
    key: Key,
) -> tuple[NetworkState, NetworkState, PyTree[Array], Float[Array, ""], Float[Array, ""]]:
    """Take one step of Adam; return what it changes, the loss, and the accuracy on the batch."""
    turn_key, drop_key = jax.random.split(key)
    config = nnx.merge(graphdef, parameters, statistics, copy=True).config
    x = normalise(_turn_images(images, turn_key) if augment else images, find_normalisation(config))

    def compute_loss(
        parameters: NetworkState,
    ) -> tuple[Float[Array, ""], tuple[Float[Array, "b k"], NetworkState]]:
        model = nnx.merge(graphdef, parameters, statistics, copy=True)
        logits = model(x, nnx.Rngs(drop_key))
        loss = optax.sigmoid_binary_cross_entropy(logits, targets).mean()
        return loss, (logits, nnx.state(model, nnx.BatchStat))

    (loss, (logits, statistics)), gradient = jax.value_and_grad(compute_loss, has_aux=True)(parameters)
    updates, moments = optax.adam(learning_rate).update(gradient, moments, parameters)
    accuracy = (decide(logits) == decide(2 * targets - 1)).mean()
    return optax.apply_updates(parameters, updates), statistics, moments, loss, accuracy


def _send_blocks(
    images: UInt8[np.ndarray | Array, "n size size 3"],
    targets: Float[np.ndarray, "n k"],
    rows: Int[np.ndarray, "steps batch"],
) -> Iterator[_Block]:
    """Send to the device what some steps need, block after block; nothing of images that are there."""
    steps, batch = rows.shape
    if isinstance(images, jax.Array):
        yield _Block(images, jnp.asarray(targets), jnp.asarray(rows), steps)
        return
    most = min(steps, max(1, HELD_BYTES // (batch * images[0].nbytes)))
    for begin in range(0, steps, most):
        part = rows[begin : begin + most]
        flat = np.resize(part, most * batch)  # of one size, for one program
        own = jnp.arange(most * batch).reshape(most, batch)
        yield _Block(jnp.asarray(images[flat]), jnp.asarray(targets[flat]), own, len(part))


@jax.jit(static_argnums=(0, 1, 2))
def _loop_steps(
    graphdef: nnx.GraphDef[EfficientNet],
    learning_rate: float,
    augment: bool,
    carry: tuple[NetworkState, NetworkState, PyTree[Array]],
    block: _Block,
    begin: int,
    key: Key,
) -> tuple[tuple[NetworkState, NetworkState, PyTree[Array]], Float[Array, "most 2"]]:
    """Take a block's steps; return what they change, and the loss and the accuracy of each."""
    batch = block.rows.shape[1]

    def take_step(number: Array, state: Any) -> Any:
        *carry, measures = state
        part = block.rows[number]
        step_key = jax.random.fold_in(key, (begin + number) * batch + 1)
        inputs = block.images[part], block.targets[part], step_key
        *carry, loss, accuracy = _step(graphdef, learning_rate, augment, *carry, *inputs)
        return (*carry, measures.at[number].set(jnp.stack([loss, accuracy])))

    measures = jnp.zeros((len(block.rows), 2), jnp.float32)
    *carry_out, measures = jax.lax.fori_loop(0, block.steps, take_step, (*carry, measures))
    return tuple(carry_out), measures


@jax.jit(static_argnums=0)
def _add_statistics(
    graphdef: nnx.GraphDef[EfficientNet],
    parameters: NetworkState,
    statistics: NetworkState,
    total: NetworkState,
    block: _Block,
) -> NetworkState:
    """Add up the batch norms' statistics with these weights over a block's batches."""

    def add(number: Array, total: NetworkState) -> NetworkState:
        images = block.images[block.rows[number]]
        measured = _measure_batch_statistics(graphdef, parameters, statistics, images)
        added: NetworkState = jax.tree.map(jnp.add, total, measured)
        return added

    summed: NetworkState = jax.lax.fori_loop(0, block.steps, add, total)
    return summed


def _measure_statistics(
    graphdef: nnx.GraphDef[EfficientNet],
    parameters: NetworkState,
    statistics: NetworkState,
    images: UInt8[np.ndarray, "n size size 3"],
    order: Int[np.ndarray, " m"],
    batch: int,
) -> NetworkState:
    """Measure the batch norms' statistics with these weights, averaged over an epoch's first batches."""
    measured = [
        _measure_batch_statistics(graphdef, parameters, statistics, images[order[begin : begin + batch]])
        for begin in range(0, min(len(order), STATISTICS_BATCHES * batch), batch)
    ]
    average: NetworkState = jax.tree.map(lambda *values: sum(values) / len(values), *measured)
    return average


@jax.jit(static_argnums=0)
def _measure_batch_statistics(
    graphdef: nnx.GraphDef[EfficientNet], parameters: NetworkState, statistics: NetworkState, images: Images
) -> NetworkState:
    model = nnx.merge(graphdef, parameters, statistics, copy=True)
    model.eval()  # type: ignore[no-untyped-call]  # without dropout
    for _, module in nnx.iter_graph(model):
        if isinstance(module, nnx.BatchNorm):
            module.use_running_average, module.momentum = False, 0.0
    model(normalise(images, find_normalisation(model.config)))
    return nnx.state(model, nnx.BatchStat)


def _turn_images(images: Images, key: Key) -> Images:
    """Mirror and turn each image in one of the eight ways, drawn at random."""
    ways = jax.random.randint(key, (images.shape[0],), 0, 8)

    def turn(image: Array, way: Array) -> Array:
        image = jnp.where(way & 1, image[::-1], image)
        image = jnp.where(way & 2, image[:, ::-1], image)
        return jnp.where(way & 4, image.swapaxes(0, 1), image)

    return jax.vmap(turn)(images, ways)


def _draw_network(seed: int, config: EfficientNetConfig) -> EfficientNet:
    return EfficientNet(config, rngs=nnx.Rngs(seed))


def _load_trunk(settings: ClassifierSettings, config: EfficientNetConfig) -> EfficientNet:
    """Load the published trunk, and put the classifier's last layer on it, as it would be drawn."""
    from fseg_jax.encoders.load import load_network

    published = load_network(f"efficientnet-{settings.network}").network
    assert isinstance(published, EfficientNet)
    # Nothing but the last layer is computed.
    published.classifier = nnx.jit(lambda: _draw_network(settings.seed, config).classifier)()
    published.config = config
    return published
