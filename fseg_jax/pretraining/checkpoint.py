"""Write and read the checkpoint that an interrupted pretraining goes on from."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from fseg_jax.errors import InputError
from fseg_jax.files.kinds import PRETRAINING, describe_kind
from fseg_jax.files.tensor_reader import BrokenFileError, open_tensors
from fseg_jax.files.tensor_writer import write_tensors
from fseg_jax.pretraining.simclr import State

FORMAT = PRETRAINING


class History(NamedTuple):
    """The course of a run.

    Attributes:
        losses: The loss of each step, and its two parts.
        scores: The step of each score, and the score.
    """

    losses: Float[np.ndarray, "steps 3"]
    scores: Float[np.ndarray, "scored 2"]


def save_checkpoint(path: Path, state: State, history: History, run: dict[str, Any]) -> None:
    """Write a state and its history, whole or not at all; ``run`` says, as JSON, which run they are of."""
    tensors = dict(_name_leaves(state))
    tensors |= {"history.losses": history.losses, "history.scores": history.scores}
    write_tensors(path, tensors, {"format": FORMAT, "run": json.dumps(run, sort_keys=True)})


def load_checkpoint(path: Path, like: State, run: dict[str, Any]) -> tuple[State, History]:
    """Read the checkpoint of a run; ``like`` is a state with its shapes, dtypes and shardings.

    Raises:
        InputError: The file is damaged, or of another run, network or kind.
    """
    try:
        with open_tensors(path) as file:
            metadata = file.header.metadata
            is_checkpoint = metadata.get("format") == FORMAT
            tensors = {name: file.get(name) for name in file.header.entries} if is_checkpoint else {}
            stored_run = json.loads(metadata["run"]) if is_checkpoint else {}
        history = (
            History(tensors.pop("history.losses"), tensors.pop("history.scores")) if is_checkpoint else None
        )
    except (BrokenFileError, OSError, KeyError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged or cut short: remove it, or --overwrite") from error
    if history is None:
        raise InputError(f"{path}: {describe_kind(path)}, not a checkpoint: remove it, or --overwrite")
    has_columns = [
        rows.size == 0 or rows.shape[1:] == (columns,) for rows, columns in zip(history, (3, 2), strict=True)
    ]
    if not (isinstance(stored_run, dict) and all(has_columns)):
        raise InputError(f"{path}: damaged or cut short: remove it, or --overwrite")
    if differing := [key for key in run if json.loads(json.dumps(run[key])) != stored_run.get(key)]:
        if "views" in differing:
            raise InputError(f"{path}: is of a version that drew other views: --overwrite begins anew")
        raise InputError(
            f"{path}: is of a run with other {' and '.join(differing)}: give the same, or --overwrite to "
            "begin anew"
        )
    leaves = []
    for name, leaf in _name_leaves(like):
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != leaf.shape:
            fault = "lacks it" if tensor is None else f"is {tensor.shape}"
            raise InputError(f"{path}: {name} should be {leaf.shape} and {fault}: --overwrite begins anew")
        leaves.append(jax.device_put(tensor.astype(leaf.dtype), leaf.sharding))
    return jax.tree.unflatten(jax.tree.structure(like), leaves), history


def _name_leaves(state: State) -> list[tuple[str, Any]]:
    """Pair each array of a state with its name in the file."""
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)]
