"""Train an encoder by self-supervision, from fields of tissue to the encoder's file.

During a run, ``NAME.checkpoint.safetensors`` beside the output holds everything that a step changes; a run
resumed from it gives the same encoder as one that was never interrupted. At the end the encoder's file,
``NAME.json`` (what was trained on what) and ``NAME.png`` (the curves) replace earlier ones together, and the
checkpoint is removed.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.encoder import Encoder, EncoderCard
from fseg_jax.encoders.resnet.network import ResNet, ResNetConfig, unfold_norms
from fseg_jax.encoders.trained import Gains, Parts, assemble, calibrate_gains, save_trained
from fseg_jax.errors import InputError
from fseg_jax.files.exchange import exchange_outputs
from fseg_jax.files.partial_folders import open_partial_folder, recover_outputs
from fseg_jax.outputs.style import OKABE_ITO, save_figure, use_style
from fseg_jax.pipeline.publish import Json, now
from fseg_jax.pipeline.record import made_with
from fseg_jax.pretraining.checkpoint import History, load_checkpoint, save_checkpoint
from fseg_jax.pretraining.fields import Field, Geometry
from fseg_jax.pretraining.pages import make_cutter
from fseg_jax.pretraining.simclr import (
    LAYER,
    MEAN,
    STD,
    STRIDE,
    TRUNK,
    Losses,
    State,
    TrainingSettings,
    make_schedule,
    make_trainer,
    normalise,
    separate_planes,
)
from fseg_jax.pretraining.supply import Supply

_LOG = logging.getLogger(__name__)
VIEWS_VERSION = 2  # raised whenever a seed draws other views: a checkpoint of the former does not go on
TILE, MPP = 512, 1.0  # pixels and µm per pixel that the encoder is used at by default: F-SEG's


class StepReport(NamedTuple):
    """How far a run is.

    Attributes:
        step: Number of steps done.
        steps: Number of steps in all.
        loss: Loss of the last step.
        learning_rate: Learning rate of the last step.
        images_per_second: Views trained on per second since the run began or went on.
        score: Latest score of the encoder, if there is one.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    images_per_second: float
    score: float | None


def pretrain(
    fields: Sequence[Field],
    out: Path,
    *,
    name: str,
    settings: TrainingSettings,
    geometry: Geometry,
    config: ResNetConfig = TRUNK,
    start: Parts | None = None,
    licence: str = "",
    stains: float = 0.0,
    score: Callable[[Encoder], float] | None = None,
    every: int = 100,
    overwrite: bool = False,
    report: Callable[[StepReport], None] = lambda progress: None,
    cut_on_device: bool | None = None,
) -> Json:
    """Train an encoder on views of fields, and write it; an interrupted run goes on when called again.

    An encoder that exists is replaced; ``check_output`` checks beforehand whether it may be.

    Args:
        fields: The tissue.
        out: File to write, ``.safetensors``.
        name: Name of the encoder.
        settings: How to train.
        geometry: How views are cut.
        config: The trunk's configuration.
        start: An encoder that was trained before, to go on from with its trunk; None: from random weights.
        licence: Licence of the encoder, for its card.
        stains: Standard deviation of the classical encoder's channels, relative to the trunk's; 0: left out.
        score: Scores the encoder.
        every: Steps between two scores and between two checkpoints.
        overwrite: Whether to begin anew where a checkpoint does not fit this run.
        report: Called after each step.
        cut_on_device: Whether views are cut within the compiled step, of fields that the device holds, or on
            the host; None: unless the device is a CPU. Both cut the same views, but for rounding to 8 bits.

    Returns:
        The content of ``NAME.json``.

    Raises:
        InputError: There are no fields, a checkpoint is damaged or of another run, or the loss is not finite
            (the last checkpoint then stays).
    """
    if not fields:
        raise InputError("no field of tissue to train on: give slides or images that hold some")
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: an encoder's file must end in .safetensors")
    supply = Supply(fields, geometry, settings.pairs, settings.seed)
    trunk = None
    if start is not None:
        images = supply.draw(0).images[0]
        trunk = unfold_norms(start.network, normalise(jnp.asarray(images, jnp.float32) / 255))
        config = trunk.config
    on_device = jax.default_backend() != "cpu" if cut_on_device is None else cut_on_device
    cut = make_cutter(fields, geometry, settings.pairs) if on_device else separate_planes
    trainer = make_trainer(settings, config, trunk=trunk, cut=cut)
    checkpoint = out.with_suffix(".checkpoint.safetensors")
    run = {
        "settings": asdict(settings),
        "geometry": asdict(geometry),
        "network": asdict(config),
        "fields": _hash_fields(fields),
        "views": VIEWS_VERSION,
    }
    if start is not None:
        run["start"] = {"name": start.card.name, "weights_hash": start.card.weights_hash}
    state, history = trainer.begin, History(np.zeros((0, 3), np.float32), np.zeros((0, 2), np.float32))
    if checkpoint.exists():
        try:
            state, history = load_checkpoint(checkpoint, trainer.begin, run)
            _LOG.warning("going on from %s", checkpoint)
        except InputError:
            if not overwrite:
                raise
            _LOG.warning("%s does not fit this run, which begins anew", checkpoint)
    resumed_at = int(state.step)
    losses, scores = list(history.losses), list(history.scores)
    schedule = make_schedule(settings)
    started = time.perf_counter()
    stain_channels = classical().card.channels if stains else 0
    card = EncoderCard(
        name=name,
        layer=LAYER,
        channels=config.channels[-1] * config.expansion + stain_channels,
        stride=STRIDE,
        tile=TILE,
        mpp=MPP,
        mean=MEAN,
        std=STD,
        licence=licence,
        citation="trained with fseg pretrain: SimCLR (Chen et al. 2020, arXiv 2002.05709)",
        weights_hash="",
    )

    def calibrate(trunk: ResNet) -> Gains:
        unseen = supply.draw(settings.steps).images[0]  # of the step after the last
        return calibrate_gains(trunk, card, jnp.asarray(unseen), stains)

    def save() -> None:
        # An interrupt may come between a step's losses and its state.
        kept = History(np.array(losses[: int(state.step)]), np.array(scores))
        save_checkpoint(checkpoint, state, kept, run)

    def finish(reached: State, step_losses: Losses) -> None:
        """Take the result of a step: its losses, and a score and a checkpoint where it is time."""
        nonlocal state
        step, values = int(reached.step), [float(value) for value in step_losses]
        if not math.isfinite(values[0]):
            kept = f"{checkpoint} holds the last good state" if checkpoint.exists() else "nothing is kept"
            raise InputError(
                f"the loss is {values[0]} at step {step}: lower --learning-rate and begin anew with "
                f"--overwrite; {kept}"
            )
        losses.append(np.array(values, np.float32))
        state = reached
        if step % every == 0 or step == settings.steps:
            if score is not None:
                trunk = trainer.build_trunk(state)
                measure = score(assemble(trunk, card, calibrate(trunk)))
                scores.append(np.array([step, measure], np.float32))
            save()
        # Steps are reported while the next one runs, so that the time between two reports says little of one.
        rate = 2 * settings.pairs * (step - resumed_at) / (time.perf_counter() - started)
        latest = float(scores[-1][1]) if scores else None
        report(StepReport(step, settings.steps, values[0], float(schedule(step - 1)), rate, latest))

    if on_device:
        stream: Iterable[Any] = supply.stream_pages(resumed_at, settings.steps, trainer.shared)
    else:
        stream = supply.stream_views(resumed_at, settings.steps)
    try:
        running, begun = state, None
        for given in stream:
            running, step_losses = trainer.step(running, given)
            if begun is not None:
                finish(*begun)  # while the device is at the next step
            begun = running, step_losses
        if begun is not None:
            finish(*begun)
    except KeyboardInterrupt:
        save()
        raise
    history = History(np.array(losses).reshape(-1, 3), np.array(scores).reshape(-1, 2))
    record = {
        "method": "SimCLR (Chen et al. 2020, arXiv 2002.05709), views and regions",
        **made_with().to_json(),
        **run,
        "name": name,
        "stains": stains,
        "sites": {site: sum(f.site == site for f in fields) for site in sorted({f.site for f in fields})},
        "losses": [round(float(value), 5) for value in history.losses[:, 0]],
        "scores": [[int(step), round(float(value), 5)] for step, value in history.scores],
        "seconds": round(time.perf_counter() - started, 1),
        "resumed_at": resumed_at or None,
        "finished": now(),
    }
    trunk = trainer.build_trunk(state)
    outputs = [out.with_suffix(".json").name, out.with_suffix(".png").name, out.name]
    with open_partial_folder(out.name, out.parent, wait=True) as folder:
        save_trained(folder / out.name, trunk, card, calibrate(trunk))
        draw_curves(folder / outputs[1], history, settings)
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        (folder / outputs[0]).write_text(text, encoding="utf-8")
        exchange_outputs(folder, [*outputs, checkpoint.name])
    content: Json = json.loads(text)
    return content


def check_output(out: Path, overwrite: bool) -> None:
    """Check that an encoder can be written.

    Raises:
        InputError: The file exists and may not be replaced, or cannot be written.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: an encoder's file must end in .safetensors")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder; make it first")
    if out.is_dir():
        raise InputError(f"{out}: is a folder; choose another name")
    recover_outputs(out.name, out.parent)
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists: choose another name, or --overwrite")


def draw_curves(path: Path, history: History, settings: TrainingSettings) -> None:
    """Draw the loss, smoothed over 20 steps, and the held-out score."""
    from matplotlib.figure import Figure

    with use_style():
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


def _hash_fields(fields: Sequence[Field]) -> str:
    """Hash the fields in their order."""
    digest = hashlib.sha256()
    for field in fields:
        digest.update(f"{field.pixels.shape} {field.mpp} {field.site}".encode())
        digest.update(np.ascontiguousarray(field.pixels).data)
    return digest.hexdigest()
