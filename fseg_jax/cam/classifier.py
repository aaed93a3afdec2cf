"""The classifier of the CAM paper (Storås 2021, §2): a small EfficientNet that learns image-level labels.

Two classes have one logit, of the second class. More classes have one logit each, every class against the
rest. The paper's code trains on pixels in [0, 1] and explains images that are normalised; here both are
normalised.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float, Int, UInt8

from fseg_jax.cam.batching import map_batches
from fseg_jax.encoders.catalog.row import IMAGENET, LITE, Normalisation
from fseg_jax.encoders.efficientnet.network import (
    SCALES,
    EfficientNet,
    EfficientNetConfig,
    configure_efficientnet,
)
from fseg_jax.errors import InputError
from fseg_jax.files.kinds import suggest_names
from fseg_jax.numerics.arrays import Array, Images

Start = Literal["random", "imagenet"]
SMALL = "small"  # one block a stage, half as wide as b0: what a CPU can train
NETWORKS = (*SCALES, SMALL)
PRETRAINED = ("b0", "b1", "lite0", "lite1", "lite2")  # the catalog has their weights

NetworkState = nnx.State[Any, Any]  # weights or running statistics, by path
Predictor = Callable[[UInt8[np.ndarray, "n side side 3"]], Float[np.ndarray, "n k"]]


@dataclass(frozen=True)
class ClassifierSettings:
    """How to train a classifier: everything that affects its weights.

    Attributes:
        network: EfficientNet "b0" to "b7", "lite0" to "lite4", or "small".
        size: Side of the images in pixels.
        epochs: Number of epochs.
        batch: Number of images a step.
        learning_rate: Adam's learning rate.
        augment: Whether images are mirrored and turned at random.
        start: Initial weights: "random", or "imagenet" for networks in ``PRETRAINED``.
        seed: Random seed.
    """

    network: str = "b1"
    size: int = 224
    epochs: int = 25
    batch: int = 16
    learning_rate: float = 1e-3
    augment: bool = False
    start: Start = "random"
    seed: int = 0

    def check(self) -> None:
        """Raise ``InputError`` for settings that cannot be trained with."""
        if self.network not in NETWORKS:
            near = suggest_names(self.network, NETWORKS)
            raise InputError(f"--network {self.network}: {near}choose {', '.join(NETWORKS)}")
        if self.start not in get_args(Start):
            raise InputError(f"--start {self.start}: choose {', '.join(get_args(Start))}")
        if self.start == "imagenet" and self.network not in PRETRAINED:
            raise InputError(
                f"--start imagenet: there are weights for {', '.join(PRETRAINED)}, not for {self.network}"
            )
        if self.size < 32:
            raise InputError(f"--size {self.size}: the network halves an image five times; give 32 or more")
        if self.epochs < 1 or self.batch < 2:
            raise InputError("one epoch and two images a batch are the least that can be trained")
        if not 0 < self.learning_rate < 1:
            raise InputError(f"--learning-rate {self.learning_rate:g}: give a number between 0 and 1")


class LabelledImages(NamedTuple):
    """Images of one size in memory, with their classes.

    Attributes:
        images: The pixels, ``uint8 (n, size, size, 3)``.
        labels: The classes 0…k−1, ``int (n,)``.
    """

    images: UInt8[np.ndarray, "n size size 3"]
    labels: Int[np.ndarray, " n"]


class ClassifierScore(NamedTuple):
    """How well a classifier does on labelled images.

    Attributes:
        loss: Mean cross-entropy.
        accuracy: Share of the images that are classified rightly.
        confusion: Counts of images; rows are the true classes, columns the predicted ones.
    """

    loss: float
    accuracy: float
    confusion: Int[np.ndarray, "k k"]

    @property
    def balanced(self) -> float:
        """Mean recall over the classes; classes without images do not count."""
        totals = self.confusion.sum(1)
        present = totals > 0
        return float((np.diag(self.confusion)[present] / totals[present]).mean())


def count_logits(classes: int) -> int:
    """Count the logits that tell so many classes apart.

    >>> count_logits(2), count_logits(3)
    (1, 3)
    """
    return 1 if classes == 2 else classes


def configure_network(name: str, classes: int) -> EfficientNetConfig:
    """Return the configuration of a network in ``NETWORKS``, for so many classes."""
    if name == SMALL:
        return EfficientNetConfig(width=0.5, depth=0.25, num_classes=count_logits(classes))
    # Lite is published in TensorFlow's dialect alone.
    is_lite = name.startswith("lite")
    return configure_efficientnet(name, tensorflow=is_lite, num_classes=count_logits(classes))


def find_equivalent_layer(layer: str, config: EfficientNetConfig) -> str:
    """Find the block of a network that is where ``layer`` is in b1: in the same stage, as far through it.

    b1's own blocks keep their names, and so do layers that are no blocks. Raises ``InputError`` for a block
    that b1 does not have, and for a network with other stages.

    >>> find_equivalent_layer("blocks.14", configure_network("small", 2))
    'blocks.4'
    """
    if not layer.startswith("blocks."):
        return layer
    if len(config.stages) != len(EfficientNetConfig().stages):
        raise InputError(f"{layer} is a block of b1, and this network has other stages: give --layer")
    depths = config.repeats()
    number = int(layer.removeprefix("blocks."))
    for stage, b1_depth in enumerate(configure_efficientnet("b1").repeats()):
        if number < b1_depth:
            position = math.ceil((number + 1) / b1_depth * depths[stage]) - 1
            return f"blocks.{sum(depths[:stage]) + position}"
        number -= b1_depth
    raise InputError(f"--layer {layer}: EfficientNet-b1 has no such block; its last is blocks.22")


def find_normalisation(config: EfficientNetConfig) -> Normalisation:
    """Find how the images of a network are normalised."""
    return LITE if config.activation == "relu6" else IMAGENET


def normalise(images: Images, normalisation: Normalisation = IMAGENET) -> Float[Array, "b height width 3"]:
    """Scale pixels to [0, 1], and take a mean and a standard deviation out."""
    mean, std = (jnp.asarray(statistic).reshape(1, 1, 1, 3) for statistic in normalisation)
    return (jnp.asarray(images).astype(jnp.float32) / 255 - mean) / std


def make_targets(labels: Int[np.ndarray, " n"], classes: int) -> Float[np.ndarray, "n k"]:
    """Make the targets of the logits: one column for two classes, else one-hot rows."""
    if classes == 2:
        return labels[:, None].astype(np.float32)
    one_hot: np.ndarray = np.eye(classes, dtype=np.float32)[labels]
    return one_hot


def decide(logits: Float[Array, "n k"]) -> Int[Array, " n"]:
    """Choose the class of each image; a logit above 0 means the second of two classes."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).astype(jnp.int32)
    return jnp.argmax(logits, axis=1).astype(jnp.int32)


def make_predictor(network: EfficientNet) -> Predictor:
    """Make the function from any number of images to their logits; it compiles once."""
    graphdef, state = nnx.split(network)

    def predict(images: UInt8[np.ndarray, "n side side 3"]) -> Float[np.ndarray, "n k"]:
        return map_batches(lambda batch: _predict(graphdef, state, batch), images)

    return predict


@jax.jit(static_argnums=0)
def _predict(
    graphdef: nnx.GraphDef[EfficientNet], state: NetworkState, images: Images
) -> Float[Array, "b k"]:
    network = nnx.merge(graphdef, state)
    logits: Array = network(normalise(images, find_normalisation(network.config)))
    return logits


def score_classifier(predict: Predictor, data: LabelledImages) -> ClassifierScore:
    """Score predictions against labels."""
    logits = jnp.asarray(predict(data.images))
    classes = max(2, logits.shape[1])
    loss = optax.sigmoid_binary_cross_entropy(logits, make_targets(data.labels, classes)).mean()
    predicted = np.asarray(decide(logits))
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (data.labels, predicted), 1)
    return ClassifierScore(float(loss), float(np.trace(confusion) / len(predicted)), confusion)
