"""A trained classifier as files: its weights with what they mean, and the state that training goes on from.

The weights' file (``encoders/weights/weights_file.py``) says in its metadata which classes there are, which
size images have and how it was trained. The state is safetensors too: nothing in either is executed.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fseg_jax.cam.classifier import State, Trainer, logits
from fseg_jax.encoders.efficientnet.network import EfficientNet
from fseg_jax.encoders.weights import weights_file
from fseg_jax.errors import InputError
from fseg_jax.files.kinds import did_you_mean, kind_of
from fseg_jax.files.tensor_header import open_tensors
from fseg_jax.files.tensors import write_tensors

WEIGHTS = "classifier.safetensors"
LARGEST_SIDE = 4096  # pixels of an image that is classified whole


class Classifier(NamedTuple):
    """A classifier: its network, set to evaluate, its classes in order, the side of images it was trained on,
    and all that its file says.
    """

    network: EfficientNet
    classes: tuple[str, ...]
    size: int
    card: dict[str, Any]

    def logit(self, name: str) -> tuple[int, bool]:
        """Which logit speaks of a class, and whether it does so when it is low."""
        if name not in self.classes:
            near = did_you_mean(name, self.classes)
            raise InputError(f"--class {name}: {near}the classifier knows {', '.join(self.classes)}")
        position = self.classes.index(name)
        return (0, position == 0) if len(self.classes) == 2 else (position, False)


def write_classifier(
    path: Path, trainer: Trainer, state: State, classes: tuple[str, ...], **more: Any
) -> None:
    """Write the network as trained so far, with what it means; the file appears whole or not at all.

    ``more`` is what else its card says.
    """
    card = {"classes": list(classes), "training": asdict(trainer.settings), "epoch": state.epoch, **more}
    weights_file.write_network(
        path,
        trainer.network(state),
        trainer.config,
        name=trainer.settings.network,
        facts={"classifier": json.dumps(card)},
    )


def load_classifier(path: Path) -> Classifier:
    """Load a classifier; ``path`` is its file, or the folder that training wrote.

    Raises ``InputError`` where there is none, or the file is damaged or another network's.
    """
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS
    kind = kind_of(path)
    if path.exists() and "classifier" not in kind and not kind.startswith(("a damaged", "an empty")):
        raise InputError(f"{path}: {kind}, not a classifier: give one that fseg cam train wrote")
    loaded = weights_file.load(path)
    network = loaded.network
    try:
        card = json.loads(loaded.metadata["classifier"])
        classes, size = tuple(card["classes"]), card["training"]["size"]
        named = len(set(classes)) == len(classes) > 1 and all(type(name) is str and name for name in classes)
        sized = type(size) is int and 32 <= size <= LARGEST_SIDE
        fits = isinstance(network, EfficientNet) and network.config.num_classes == logits(len(classes))
    except (ValueError, LookupError, TypeError, RecursionError):
        named = sized = fits = False
    if not (named and sized and fits):
        raise InputError(f"{path}: its card is damaged: train the classifier again with fseg cam train")
    assert isinstance(network, EfficientNet)
    network.eval()
    return Classifier(network, classes, size, card | {"weights_sha256": loaded.metadata["sha256"]})


def write_state(path: Path, state: State, fingerprint: str) -> None:
    """Write what training goes on from."""
    leaves = jax.tree.leaves((state.parameters, state.statistics, state.optimiser))
    tensors = {f"{i:05d}": leaf for i, leaf in enumerate(leaves)}
    said = {"epoch": str(state.epoch), "best": repr(state.best), "fingerprint": fingerprint}
    write_tensors(path, tensors, said)


def read_state(path: Path, trainer: Trainer, fingerprint: str) -> State | None:
    """What training goes on from; None where nothing is, or it is damaged, and begins anew.

    Raises ``InputError`` where it is of other images or settings.
    """
    if not path.exists():
        return None
    begin = trainer.begin
    leaves, structure = jax.tree.flatten((begin.parameters, begin.statistics, begin.optimiser))
    try:
        with open_tensors(path) as file:
            said = file.header.metadata
            if said.get("fingerprint") != fingerprint:
                raise InputError(
                    f"{path}: is of a training with other images or settings: give --overwrite to begin anew"
                )
            found = [jnp.asarray(file.get(f"{i:05d}")) for i in range(len(leaves))]
        if any(a.shape != jnp.shape(b) for a, b in zip(found, leaves, strict=True)):
            return None
        trees = jax.tree.unflatten(structure, found)
        return State(int(said["epoch"]), float(said["best"]), *trees)
    except (OSError, KeyError, ValueError, TypeError):
        return None


def fingerprint(trainer: Trainer, *arrays: np.ndarray) -> str:
    """What makes a training what it is, but for how many epochs it takes: settings and images."""
    settings = {name: value for name, value in asdict(trainer.settings).items() if name != "epochs"}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
