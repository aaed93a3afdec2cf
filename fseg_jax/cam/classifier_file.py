"""Write and read a trained classifier, and the state that an interrupted training goes on from.

The file of weights (``encoders/weights/weights_file.py``) says in its metadata which classes there are, which
size images have and how it was trained: the classifier's card. The state is safetensors too: nothing in
either file is executed.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from fseg_jax.cam.classifier import ClassifierScore, ClassifierSettings, count_logits
from fseg_jax.cam.classifier_training import Trainer, TrainingState
from fseg_jax.encoders.efficientnet.network import EfficientNet
from fseg_jax.encoders.weights import weights_file
from fseg_jax.errors import InputError
from fseg_jax.files.kinds import describe_kind, suggest_names
from fseg_jax.files.tensor_reader import open_tensors
from fseg_jax.files.tensor_writer import write_tensors

WEIGHTS = "classifier.safetensors"
LARGEST_SIDE = 4096  # pixels of an image that is classified whole


@dataclass(frozen=True)
class ClassifierCard:
    """What a classifier's file says of it.

    Attributes:
        classes: Names of the classes, in the order of the logits.
        training: How it was trained.
        epoch: Number of epochs it was trained for.
        held_out_accuracy: Accuracy on the held-out images, if there were any.
        held_out_balanced_accuracy: Mean recall over the classes on the same images.
    """

    classes: tuple[str, ...]
    training: ClassifierSettings
    epoch: int
    held_out_accuracy: float | None = None
    held_out_balanced_accuracy: float | None = None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Read the card back. Raises ``LookupError`` or ``TypeError`` where it is damaged."""
        facts = {**content, "classes": tuple(content["classes"])}
        return cls(**{**facts, "training": ClassifierSettings(**content["training"])})

    def to_json(self) -> dict[str, Any]:
        """Return the card as it is in files."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained classifier.

    Attributes:
        network: The network, set to evaluate.
        classes: Names of the classes, in the order of the logits.
        size: Side in pixels of the images it was trained on.
        card: What its file says of it.
        weights_sha256: Hash of its weights.
    """

    network: EfficientNet
    classes: tuple[str, ...]
    size: int
    card: ClassifierCard
    weights_sha256: str

    def logit(self, name: str) -> tuple[int, bool]:
        """Return the logit that speaks for a class, and whether the class is meant when it is low.

        Raises ``InputError`` for a class that the classifier does not know.
        """
        if name not in self.classes:
            near = suggest_names(name, self.classes)
            raise InputError(f"--class {name}: {near}the classifier knows {', '.join(self.classes)}")
        position = self.classes.index(name)
        return (0, position == 0) if len(self.classes) == 2 else (position, False)


def write_classifier(
    path: Path,
    trainer: Trainer,
    state: TrainingState,
    classes: tuple[str, ...],
    held_out: ClassifierScore | None = None,
) -> None:
    """Write the network as trained so far, with its card; the file appears whole or not at all."""
    card = ClassifierCard(
        classes,
        trainer.settings,
        state.epoch,
        held_out.accuracy if held_out else None,
        held_out.balanced if held_out else None,
    )
    weights_file.write_network(
        path,
        trainer.build_network(state),
        trainer.config,
        name=trainer.settings.network,
        facts={"classifier": json.dumps(card.to_json())},
    )


def load_classifier(path: Path) -> Classifier:
    """Load a classifier; ``path`` is its file, or the folder that training wrote.

    Raises ``InputError`` where there is none, or the file is damaged or another network's.
    """
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS
    kind = describe_kind(path)
    if path.exists() and "classifier" not in kind and not kind.startswith(("a damaged", "an empty")):
        raise InputError(f"{path}: {kind}, not a classifier: give one that fseg cam train wrote")
    loaded = weights_file.load(path)
    network = loaded.network
    try:
        card = ClassifierCard.from_json(json.loads(loaded.metadata["classifier"]))
    except (ValueError, LookupError, TypeError, RecursionError):
        card = None
    if card is None or not isinstance(network, EfficientNet) or not _fits(card, network):
        raise InputError(f"{path}: its card is damaged: train the classifier again with fseg cam train")
    network.eval()  # type: ignore[no-untyped-call]
    return Classifier(network, card.classes, card.training.size, card, loaded.metadata["sha256"])


def _fits(card: ClassifierCard, network: EfficientNet) -> bool:
    """Whether a card's classes and size are possible, and the network has their logits."""
    classes, size = card.classes, card.training.size
    named = all(type(name) is str and name for name in classes) and len(set(classes)) == len(classes) > 1
    sized = type(size) is int and 32 <= size <= LARGEST_SIDE
    return named and sized and network.config.num_classes == count_logits(len(classes))


def write_state(path: Path, state: TrainingState, fingerprint: str) -> None:
    """Write the state that a training goes on from."""
    leaves = jax.tree.leaves((state.parameters, state.statistics, state.moments))
    tensors = {f"{i:05d}": leaf for i, leaf in enumerate(leaves)}
    metadata = {"epoch": str(state.epoch), "best": repr(state.best), "fingerprint": fingerprint}
    write_tensors(path, tensors, metadata)


def read_state(path: Path, trainer: Trainer, fingerprint: str) -> TrainingState | None:
    """Read the state that a training goes on from; None where there is none, or it is damaged.

    Raises ``InputError`` where it belongs to a training with other images or settings.
    """
    if not path.exists():
        return None
    begin = trainer.begin
    leaves, structure = jax.tree.flatten((begin.parameters, begin.statistics, begin.moments))
    try:
        with open_tensors(path) as file:
            metadata = file.header.metadata
            if metadata.get("fingerprint") != fingerprint:
                raise InputError(
                    f"{path}: is of a training with other images or settings: give --overwrite to begin anew"
                )
            tensors = [jnp.asarray(file.get(f"{i:05d}")) for i in range(len(leaves))]
        if any(a.shape != jnp.shape(b) for a, b in zip(tensors, leaves, strict=True)):
            return None
        trees = jax.tree.unflatten(structure, tensors)
        return TrainingState(int(metadata["epoch"]), float(metadata["best"]), *trees)
    except (OSError, KeyError, ValueError, TypeError):
        return None


def fingerprint_training(trainer: Trainer, *arrays: np.ndarray) -> str:
    """Hash the settings, but for the number of epochs, and the images of a training."""
    settings = {name: value for name, value in asdict(trainer.settings).items() if name != "epochs"}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
