"""A run of self-supervision, from fields of tissue to an encoder's file: resumed as if never interrupted.

While it runs, ``NAME.checkpoint.safetensors`` beside the output holds everything that a step changes.
``NAME.json`` says what was trained on what, ``NAME.png`` draws the curves: both come with the encoder, in
place of those of before, and with that the checkpoint goes.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.encoder import Encoder, EncoderCard
from fseg_jax.encoders.resnet.network import ResNet, ResNetConfig
from fseg_jax.encoders.trained import Gains, assemble, calibrate_gains, save_trained
from fseg_jax.errors import InputError
from fseg_jax.files.exchange import exchange_outputs
from fseg_jax.files.kinds import PRETRAINING, describe_kind
from fseg_jax.files.partial_folders import partial_folder, recover_outputs
from fseg_jax.files.tensor_header import BrokenFileError, open_tensors
from fseg_jax.files.tensors import write_tensors
from fseg_jax.outputs.style import OKABE_ITO, drawing, save_figure
from fseg_jax.pipeline.record import made_with
from fseg_jax.pretraining.simclr import (
    LAYER,
    MEAN,
    STD,
    STRIDE,
    TRUNK,
    Settings,
    State,
    schedule,
    trainer,
)
from fseg_jax.pretraining.views import Field, Geometry, chances, draw, stream

_LOG = logging.getLogger(__name__)
FORMAT = PRETRAINING
TILE, MPP = 512, 1.0  # what the encoder is used at unless told otherwise: F-SEG's


class Report(NamedTuple):
    """Where a run is: ``score`` is the last one taken, if any."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    images_per_second: float
    score: float | None


class History(NamedTuple):
    """Of each step its loss and the two parts of it; of each score its step and what it was."""

    losses: np.ndarray
    scores: np.ndarray


def pretrain(
    fields: Sequence[Field],
    out: Path,
    *,
    name: str,
    settings: Settings,
    geometry: Geometry,
    config: ResNetConfig = TRUNK,
    licence: str = "",
    stains: float = 0.0,
    score: Callable[[Encoder], float] | None = None,
    every: int = 100,
    overwrite: bool = False,
    report: Callable[[Report], None] = lambda where: None,
) -> dict[str, Any]:
    """Train an encoder called ``name`` on views of fields, and write it to ``out``, a ``.safetensors`` file.

    With ``stains`` the classical encoder's channels stand beside the trunk's, with so many times their
    standard deviation. Every so many steps it is scored, where there is a score, and a checkpoint is written,
    from which the same call goes on; so does one that was interrupted. Returns what ``NAME.json`` holds.
    Raises ``InputError`` where there are no fields, where a checkpoint is of another run or damaged (unless
    with ``overwrite``, which begins anew), and where the loss is no longer a number: the last checkpoint then
    stays. An encoder that is there is replaced; ``check_output`` says whether it may be.
    """
    if not fields:
        raise InputError("no field of tissue to train on: give slides or images that hold some")
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: an encoder's file must end in .safetensors")
    made = trainer(settings, config)
    chance = chances(fields)
    checkpoint = out.with_suffix(".checkpoint.safetensors")
    what = {
        "settings": asdict(settings),
        "geometry": asdict(geometry),
        "network": asdict(config),
        "fields": _digest(fields),
    }
    state, history = made.begin, History(np.zeros((0, 3), np.float32), np.zeros((0, 2), np.float32))
    if checkpoint.exists():
        try:
            state, history = load_checkpoint(checkpoint, made.begin, what)
            _LOG.warning("going on from %s", checkpoint)
        except InputError:
            if not overwrite:
                raise
            _LOG.warning("%s does not fit this run, which begins anew", checkpoint)
    start = int(state.step)
    losses, scores = list(history.losses), list(history.scores)
    rates = schedule(settings)
    began, last = time.perf_counter(), time.perf_counter()

    def card() -> EncoderCard:
        return EncoderCard(
            name=name,
            layer=LAYER,
            channels=config.channels[-1] * config.expansion + (classical().card.channels if stains else 0),
            stride=STRIDE,
            tile=TILE,
            mpp=MPP,
            mean=MEAN,
            std=STD,
            licence=licence,
            citation="trained with fseg pretrain: SimCLR (Chen et al. 2020, arXiv 2002.05709)",
            weights_hash="",
        )

    def gains(trunk: ResNet) -> Gains:
        unseen = views(settings.steps).images[0]  # of the step after the last
        return calibrate_gains(trunk, card(), jnp.asarray(unseen), stains)

    def save() -> None:
        save_checkpoint(checkpoint, state, History(np.array(losses), np.array(scores)), what)

    def views(step: int) -> Any:
        return draw(fields, chance, geometry, settings.pairs, seed=settings.seed, step=step)

    steps = range(start, settings.steps)
    try:
        for step, drawn in zip(steps, stream(views, start, settings.steps), strict=True):
            after, measured = made.step(state, drawn)
            values = [float(value) for value in measured]
            if not math.isfinite(values[0]):
                kept = f"{checkpoint} holds the last good state" if checkpoint.exists() else "nothing is kept"
                raise InputError(
                    f"the loss is {values[0]} at step {step + 1}: lower --learning-rate and begin anew with "
                    f"--overwrite; {kept}"
                )
            state = after
            losses.append(np.array(values, np.float32))
            if (step + 1) % every == 0 or step + 1 == settings.steps:
                if score is not None:
                    trunk = made.trunk(state)
                    measure = score(assemble(trunk, card(), gains(trunk)))
                    scores.append(np.array([step + 1, measure], np.float32))
                save()
            now = time.perf_counter()
            rate = 2 * settings.pairs / (now - last)
            last = now
            latest = float(scores[-1][1]) if scores else None
            report(Report(step + 1, settings.steps, values[0], float(rates(step)), rate, latest))
    except KeyboardInterrupt:
        save()
        raise
    history = History(np.array(losses).reshape(-1, 3), np.array(scores).reshape(-1, 2))
    record = {
        "method": "SimCLR (Chen et al. 2020, arXiv 2002.05709), views and regions",
        **made_with().to_json(),
        **what,
        "name": name,
        "stains": stains,
        "sites": {site: sum(f.site == site for f in fields) for site in sorted({f.site for f in fields})},
        "losses": [round(float(value), 5) for value in history.losses[:, 0]],
        "scores": [[int(step), round(float(value), 5)] for step, value in history.scores],
        "seconds": round(time.perf_counter() - began, 1),
        "resumed_at": start or None,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    trunk = made.trunk(state)
    outputs = [out.with_suffix(".json").name, out.with_suffix(".png").name, out.name]
    with partial_folder(out.name, out.parent, wait=True) as folder:
        save_trained(folder / out.name, trunk, card(), gains(trunk))
        draw_curves(folder / outputs[1], history, settings)
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        (folder / outputs[0]).write_text(text, encoding="utf-8")
        exchange_outputs(folder, [*outputs, checkpoint.name])
    return json.loads(text)


def check_output(out: Path, overwrite: bool) -> None:
    """Raise ``InputError`` if an encoder is there and may not be replaced, or none can be written there."""
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: an encoder's file must end in .safetensors")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder; make it first")
    if out.is_dir():
        raise InputError(f"{out}: is a folder; choose another name")
    recover_outputs(out.name, out.parent)
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists: choose another name, or --overwrite")


def save_checkpoint(path: Path, state: State, history: History, what: dict[str, Any]) -> None:
    """Write everything that a step changes, and of which run it is, whole or not at all."""
    tensors = dict(_named(state))
    tensors |= {"history.losses": history.losses, "history.scores": history.scores}
    write_tensors(path, tensors, {"format": FORMAT, "run": json.dumps(what, sort_keys=True)})


def load_checkpoint(path: Path, like: State, what: dict[str, Any]) -> tuple[State, History]:
    """Read a checkpoint of this run; InputError for one of another run or shape, or a damaged one."""
    try:
        with open_tensors(path) as file:
            metadata = file.header.metadata
            ours = metadata.get("format") == FORMAT
            tensors = {name: file.get(name) for name in file.header.entries} if ours else {}
            run = json.loads(metadata["run"]) if ours else {}
        history = History(tensors.pop("history.losses"), tensors.pop("history.scores")) if ours else None
    except (BrokenFileError, OSError, KeyError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged or cut short: remove it, or --overwrite") from error
    if history is None:
        raise InputError(f"{path}: {describe_kind(path)}, not a checkpoint: remove it, or --overwrite")
    whole = [
        rows.size == 0 or rows.shape[1:] == (width,) for rows, width in zip(history, (3, 2), strict=True)
    ]
    if not (isinstance(run, dict) and all(whole)):
        raise InputError(f"{path}: damaged or cut short: remove it, or --overwrite")
    if other := [key for key in what if json.loads(json.dumps(what[key])) != run.get(key)]:
        raise InputError(
            f"{path}: is of a run with other {' and '.join(other)}: give the same, or --overwrite to begin "
            "anew"
        )
    leaves = []
    for name, leaf in _named(like):
        found = tensors.get(name)
        if found is None or found.shape != leaf.shape:
            shape = "lacks it" if found is None else f"is {found.shape}"
            raise InputError(f"{path}: {name} should be {leaf.shape} and {shape}: --overwrite begins anew")
        leaves.append(jax.device_put(found.astype(leaf.dtype), leaf.sharding))
    return jax.tree.unflatten(jax.tree.structure(like), leaves), history


def draw_curves(path: Path, history: History, settings: Settings) -> None:
    """Draw the loss, smoothed over 20 steps, and the held-out score."""
    from matplotlib.figure import Figure

    with drawing():
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.add_subplot()
        losses = history.losses[:, 0]
        window = min(20, len(losses))
        smooth = np.convolve(losses, np.ones(window) / window, "valid")
        axes.plot(np.arange(window, len(losses) + 1), smooth, color=OKABE_ITO[0], label="loss")
        axes.set_xlabel("step")
        axes.set_ylabel("NT-Xent loss", color=OKABE_ITO[0])
        axes.set_xlim(0, settings.steps)
        if len(history.scores):
            right = axes.twinx()
            right.plot(*history.scores.T, "o-", color=OKABE_ITO[5], markersize=4)
            right.set_ylabel("held-out score, macro F1", color=OKABE_ITO[5])
            right.spines["right"].set_visible(True)
            right.grid(visible=False)
        save_figure(figure, path, 160)


def _named(state: State) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)]


def _digest(fields: Sequence[Field]) -> str:
    """A hash of what is trained on: another image, or another order, is another run."""
    digest = hashlib.sha256()
    for field in fields:
        digest.update(f"{field.pixels.shape} {field.mpp} {field.site}".encode())
        digest.update(np.ascontiguousarray(field.pixels).data)
    return digest.hexdigest()
