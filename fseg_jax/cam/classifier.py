"""The classifier of the CAM paper (Storås 2021, §2): a small EfficientNet that learns image-level labels.

Binary cross-entropy on logits, Adam with its defaults, 25 epochs, batches of 16 at 224 pixels, no
augmentation: the paper's words, and where they are silent its published code's. As in that code, the epoch
that does best on the images held out is the one that is kept (the first of equals), so that its accuracy is a
little flattering; that of the last epoch is reported beside it. Two classes have one logit, of the second
class; more have one each, every class against the rest.

Where this differs:

- The published code trains on pixels in [0, 1] and explains images that are normalised; here both are
  normalised.
- A last batch that is too small is filled up with images from the beginning of the epoch's order, so that
  nothing compiles twice; the published code has a smaller batch there.
- The best epoch is that of the best mean accuracy over the classes. Where one class is commoner among the
  images held out, plain accuracy likes a network best that has not learnt anything yet and always says it.
- The batch norms' running statistics are measured anew after each epoch, on images trained on, with the
  weights as they then are (Wu & Johnson 2021, "Rethinking Batch in BatchNorm", §3). Running averages begin
  at 0 and 1 and lag: with a few hundred images a network that is right on every batch can for epochs be no
  better than chance when it evaluates.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float, Int

from fseg_jax.encoders.architectures import build_network
from fseg_jax.encoders.efficientnet.network import SCALES, EfficientNetConfig, configure_efficientnet
from fseg_jax.encoders.layers import Network
from fseg_jax.errors import InputError
from fseg_jax.files.kinds import did_you_mean
from fseg_jax.numerics.arrays import Array, Images

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in 0 … 1
STARTS = ("random", "imagenet")
# One block a stage, half as wide as b0: what a CPU can train.
SMALL = "small"
NETWORKS = (*SCALES, SMALL)
SETTLING = 32  # batches that the batch norms' statistics are measured on


@dataclass(frozen=True)
class Settings:
    """How to train: whatever here affects the weights.

    ``size`` is the side in pixels that images have; ``augment`` flips and turns them at random; ``start`` is
    "random", or "imagenet" for b0 and b1.
    """

    network: str = "b1"
    size: int = 224
    epochs: int = 25
    batch: int = 16
    learning_rate: float = 1e-3
    augment: bool = False
    start: str = "random"
    seed: int = 0

    def check(self) -> None:
        """Raise ``InputError`` for what cannot be trained."""
        if self.network not in NETWORKS:
            near = did_you_mean(self.network, NETWORKS)
            raise InputError(f"--network {self.network}: {near}choose {', '.join(NETWORKS)}")
        if self.start not in STARTS:
            raise InputError(f"--start {self.start}: choose {', '.join(STARTS)}")
        if self.start == "imagenet" and self.network not in ("b0", "b1"):
            raise InputError(f"--start imagenet: there are weights for b0 and b1, not for {self.network}")
        if self.size < 32:
            raise InputError(f"--size {self.size}: the network halves an image five times; give 32 or more")
        if self.epochs < 1 or self.batch < 2:
            raise InputError("one epoch and two images a batch are the least that can be trained")
        if not 0 < self.learning_rate < 1:
            raise InputError(f"--learning-rate {self.learning_rate:g}: give a number between 0 and 1")


class LabelledImages(NamedTuple):
    """Images of one size, ``uint8 (n, size, size, 3)``, and their classes 0…k−1, ``int (n,)``."""

    images: np.ndarray
    labels: np.ndarray


class Score(NamedTuple):
    """How a classifier does on labelled images: mean cross-entropy, and share and counts of what is right.

    ``confusion (k, k)`` counts images, true classes as rows.
    """

    loss: float
    accuracy: float
    confusion: Int[np.ndarray, "k k"]

    @property
    def balanced(self) -> float:
        """The mean over the classes of how many of a class are found; classes without images do not count."""
        of_each = self.confusion.sum(1)
        there = of_each > 0
        return float((np.diag(self.confusion)[there] / of_each[there]).mean())


class Epoch(NamedTuple):
    """What an epoch came to: ``number`` from 1, the training loss and accuracy as met on the way."""

    number: int
    loss: float
    accuracy: float
    held_out: Score | None


class State(NamedTuple):
    """All that training changes: ``epoch`` is how many are done, ``best`` the balanced held-out accuracy to
    beat.
    """

    epoch: int
    best: float
    parameters: Any
    statistics: Any
    optimiser: Any


class Trainer(NamedTuple):
    """What is compiled for settings and a number of classes, and where to begin."""

    begin: State
    epoch: Callable[[State, LabelledImages], tuple[State, float, float]]
    settings: Settings
    graphdef: Any
    config: EfficientNetConfig

    def network(self, state: State) -> Network:
        """The network as trained so far, set to evaluate."""
        built = nnx.merge(self.graphdef, state.parameters, state.statistics, copy=True)
        built.eval()
        return built


def logits(classes: int) -> int:
    """How many numbers tell so many classes apart."""
    return 1 if classes == 2 else classes


def configuration(name: str, classes: int) -> EfficientNetConfig:
    """The network of a name in ``NETWORKS``, for so many classes."""
    if name == SMALL:
        return EfficientNetConfig(width=0.5, depth=0.25, num_classes=logits(classes))
    return configure_efficientnet(name, num_classes=logits(classes))


def same_place(layer: str, config: EfficientNetConfig) -> str:
    """The block of a network that is where ``layer`` is in b1: in the same stage, as far through it.

    b1's own blocks keep their names, and so does what is no block. Raises ``InputError`` for a block that b1
    does not have, and for a network of other stages.
    """
    if not layer.startswith("blocks."):
        return layer
    if len(config.stages) != len(EfficientNetConfig().stages):
        raise InputError(f"{layer} is a block of b1, and this network has other stages: give --layer")
    depths = [math.ceil(stage[0] * config.depth) for stage in config.stages]
    number = int(layer.removeprefix("blocks."))
    for stage, of_b1 in enumerate(math.ceil(s[0] * SCALES["b1"][1]) for s in EfficientNetConfig().stages):
        if number < of_b1:
            within = math.ceil((number + 1) / of_b1 * depths[stage]) - 1
            return f"blocks.{sum(depths[:stage]) + within}"
        number -= of_b1
    raise InputError(f"--layer {layer}: EfficientNet-b1 has no such block; its last is blocks.22")


def trainer(settings: Settings, classes: int) -> Trainer:
    """Set up network, optimiser and step. Raises ``InputError`` for settings or classes that cannot be."""
    settings.check()
    if classes < 2:
        raise InputError("all images are of one class: a classifier needs images of two at least")
    config = configuration(settings.network, classes)
    built = build_network(config, seed=settings.seed)
    if settings.start == "imagenet":
        built = _from_imagenet(settings.network, built)
    built.train()
    graphdef, (parameters, statistics) = _parts(built)
    key = jax.random.key(settings.seed)

    def epoch(state: State, data: LabelledImages) -> tuple[State, float, float]:
        n, batch = len(data.images), min(settings.batch, len(data.images))
        of_epoch = jax.random.fold_in(key, state.epoch)
        order = np.asarray(jax.random.permutation(of_epoch, n))
        order = np.resize(order, -(-n // batch) * batch)  # repeats from its beginning
        wanted = targets(data.labels, classes)
        parameters, statistics, moments = state.parameters, state.statistics, state.optimiser
        losses, rights = [], []
        for begin in range(0, len(order), batch):
            part = order[begin : begin + batch]
            parameters, statistics, moments, value, right = _step(
                graphdef,
                settings.learning_rate,
                settings.augment,
                parameters,
                statistics,
                moments,
                data.images[part],
                wanted[part],
                jax.random.fold_in(of_epoch, begin + 1),
            )
            losses.append(value)
            rights.append(right)
        statistics = _settled(graphdef, parameters, statistics, data.images, order, batch)
        done = State(state.epoch + 1, state.best, parameters, statistics, moments)
        return done, float(np.mean(jax.device_get(losses))), float(np.mean(jax.device_get(rights)))

    begin = State(0, -1.0, parameters, statistics, optax.adam(settings.learning_rate).init(parameters))
    return Trainer(begin, epoch, settings, graphdef, config)


@jax.jit(static_argnums=(0, 1, 2))
def _step(
    graphdef: Any,
    learning_rate: float,
    augment: bool,
    parameters: Any,
    statistics: Any,
    moments: Any,
    images: Images,
    wanted: Float[Array, "b k"],
    key: Array,
) -> tuple[Any, Any, Any, Array, Array]:
    """One step of Adam: what has moved, the loss, and the share of the batch that was right."""
    turn, drop = jax.random.split(key)
    x = normalise(_turned(images, turn) if augment else images)

    def loss(parameters: Any) -> tuple[Array, tuple[Array, Any]]:
        model = nnx.merge(graphdef, parameters, statistics, copy=True)
        logits = model(x, nnx.Rngs(drop))
        value = optax.sigmoid_binary_cross_entropy(logits, wanted).mean()
        return value, (logits, nnx.state(model, nnx.BatchStat))

    (value, (logits, moved)), gradient = jax.value_and_grad(loss, has_aux=True)(parameters)
    updates, moments = optax.adam(learning_rate).update(gradient, moments, parameters)
    right = (decide(logits) == decide(2 * wanted - 1)).mean()
    return optax.apply_updates(parameters, updates), moved, moments, value, right


def _settled(
    graphdef: Any, parameters: Any, statistics: Any, images: np.ndarray, order: np.ndarray, batch: int
) -> Any:
    """The batch norms' statistics with these weights: the means over an epoch's first batches."""
    found = [
        _batch_statistics(graphdef, parameters, statistics, images[order[begin : begin + batch]])
        for begin in range(0, min(len(order), SETTLING * batch), batch)
    ]
    return jax.tree.map(lambda *of_batches: sum(of_batches) / len(of_batches), *found)


@jax.jit(static_argnums=0)
def _batch_statistics(graphdef: Any, parameters: Any, statistics: Any, images: Images) -> Any:
    model = nnx.merge(graphdef, parameters, statistics, copy=True)
    model.eval()  # nothing is dropped
    for _, module in nnx.iter_graph(model):
        if isinstance(module, nnx.BatchNorm):
            module.use_running_average, module.momentum = False, 0.0
    model(normalise(images))
    return nnx.state(model, nnx.BatchStat)


def train(
    trainer: Trainer,
    data: LabelledImages,
    held_out: LabelledImages | None,
    state: State | None = None,
) -> Iterator[tuple[State, Epoch, bool]]:
    """Train epoch after epoch, from ``state`` or the beginning: the state, how it did, and whether to keep
    it.

    An epoch is to be kept where its balanced accuracy on ``held_out`` exceeds all before; without images held
    out, each is. The same settings and images give the same weights, interrupted or not.
    """
    state = state or trainer.begin
    while state.epoch < trainer.settings.epochs:
        state, loss, accuracy = trainer.epoch(state, data)
        score = None
        if held_out is not None and len(held_out.images):
            score = evaluate(predictor(trainer.network(state)), held_out)
        keep = score is None or score.balanced > state.best
        if score is not None and keep:
            state = state._replace(best=score.balanced)
        if not np.isfinite(loss):
            raise InputError(
                f"training broke off in epoch {state.epoch}: the loss is no number; give a smaller "
                "--learning-rate"
            )
        yield state, Epoch(state.epoch, loss, accuracy, score), keep


def predictor(model: Network, batch: int = 16) -> Callable[[np.ndarray], Float[np.ndarray, "n k"]]:
    """A function from any number of images to their logits; batches are padded, so that it compiles once."""
    graphdef, state = nnx.split(model)

    def predict(images: np.ndarray) -> Float[np.ndarray, "n k"]:
        logits = []
        for begin in range(0, len(images), batch):
            part = images[begin : begin + batch]
            padded = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), np.uint8)])
            logits.append(np.asarray(_logits(graphdef, state, jnp.asarray(padded)))[: len(part)])
        return np.concatenate(logits)

    return predict


@jax.jit(static_argnums=0)
def _logits(graphdef: Any, state: Any, images: Images) -> Float[Array, "b k"]:
    return nnx.merge(graphdef, state)(normalise(images))


def evaluate(predict: Callable[[np.ndarray], Float[np.ndarray, "n k"]], data: LabelledImages) -> Score:
    """Hold predictions against labels; a logit above 0 is the second of two classes."""
    logits = predict(data.images)
    classes = max(2, logits.shape[1])
    loss = optax.sigmoid_binary_cross_entropy(jnp.asarray(logits), targets(data.labels, classes)).mean()
    found = np.asarray(decide(jnp.asarray(logits)))
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (data.labels, found), 1)
    return Score(float(loss), float(np.trace(confusion) / len(found)), confusion)


def normalise(images: Images) -> Float[Array, "b height width 3"]:
    """What the network takes: ImageNet's mean and standard deviation out of 0…1."""
    shape = (1, 1, 1, 3)
    mean, std = jnp.asarray(MEAN).reshape(shape), jnp.asarray(STD).reshape(shape)
    return (jnp.asarray(images).astype(jnp.float32) / 255 - mean) / std


def targets(labels: Int[np.ndarray, " n"], classes: int) -> Float[np.ndarray, "n k"]:
    """What the logits should say: one column for two classes, else one a class."""
    if classes == 2:
        return labels[:, None].astype(np.float32)
    return np.eye(classes, dtype=np.float32)[labels]


def decide(logits: Float[Array, "n k"]) -> Int[Array, " n"]:
    """The class of each image."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).astype(jnp.int32)
    return jnp.argmax(logits, axis=1).astype(jnp.int32)


def _turned(images: Images, key: Array) -> Images:
    """Each image as one of its eight mirrorings and quarter turns."""
    drawn = jax.random.randint(key, (images.shape[0],), 0, 8)

    def one(image: Array, which: Array) -> Array:
        image = jnp.where(which & 1, image[::-1], image)
        image = jnp.where(which & 2, image[:, ::-1], image)
        return jnp.where(which & 4, image.swapaxes(0, 1), image)

    return jax.vmap(one)(images, drawn)


def _parts(built: Network) -> tuple[Any, tuple[Any, Any]]:
    """A network's definition, and what training moves: its parameters and its running statistics."""
    graphdef, *states = nnx.split(built, nnx.Param, nnx.BatchStat)
    return graphdef, (states[0], states[1])


def _from_imagenet(name: str, built: Network) -> Network:
    """The published trunk under a classifier of our own."""
    from fseg_jax.encoders.load import load_network

    published = load_network(f"efficientnet-{name}").network
    published.classifier, published.config = built.classifier, built.config  # type: ignore[attr-defined]
    return published
