"""Is ``he-small`` better than what it is made of? Macro F1 by matching on what it was not trained on.

    FSEG_DATA=... python -m benchmarks.evaluate_he_small [ENCODER [bcss] [ebhi]]

Beside it stand a network of the same shape that was not trained (its norms' statistics are of the training
images), the classical encoder, and, in every table, tokens without factorization. The data: the held-out
cases of EBHI-Seg (gland or not; every third image of the other cases teaches the matching), and BCSS (tumour
or not), of which nothing was trained on, cut into squares of 128 µm. Results go to
``benchmarks/results/he_small_*``.
"""

import json
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks.he_small_manifest import main as write_manifest
from fseg_jax.cohort.manifest import load_manifest
from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.encoder import Encoder
from fseg_jax.encoders.load import load_encoder
from fseg_jax.encoders.trained import calibrated, load_trained, save_trained
from fseg_jax.evaluation.datasets import Dataset, open_dataset
from fseg_jax.evaluation.experiment import evaluate
from fseg_jax.slides.reader import open_slide
from fseg_jax.training.simclr import TRUNK, Settings, trainer
from fseg_jax.training.views import Geometry, chances, draw, fields_of

RESULTS = Path(__file__).parent / "results"
K, STARTS = (32, 64), 3
STAINS = 1.0  # as he-small was made
SQUARE = 512  # pixels of BCSS, at 0.25 µm
CALIBRATION = 30  # steps without learning, after which a running statistic is 96 % of these images'


def untrained(like: Encoder, folder: Path) -> Encoder:
    """A network of the same shape at the start of its training, normed by the same images."""
    write_manifest(str(folder / "manifest.csv"))
    geometry, settings = Geometry(side=96), Settings(steps=CALIBRATION, pairs=32, learning_rate=1e-12, seed=1)
    fields = []
    for row in load_manifest(folder / "manifest.csv")[::10]:
        with open_slide(row.path, row.mpp) as slide:
            fields += fields_of(slide, row.site, geometry, 10, 0)
    made, chance = trainer(settings), chances(fields)
    state = made.begin
    for step in range(CALIBRATION):
        state, _ = made.step(state, draw(fields, chance, geometry, settings.pairs, seed=0, step=step))
    path = folder / "untrained.safetensors"
    trunk, card = made.trunk(state), replace(like.card, name="untrained")
    images = draw(fields, chance, geometry, 128, seed=0, step=CALIBRATION).images[0]
    stains = STAINS if like.card.channels > TRUNK.channels[-1] else 0
    save_trained(path, trunk, card, calibrated(trunk, card, jnp.asarray(images), stains))
    return load_trained(path)


def bcss_squares(source: Path, out: Path) -> Path:
    """BCSS's regions as squares, each its own case."""
    for name in ("images", "masks"):
        (out / name).mkdir(parents=True)
    for image in sorted((source / "images").glob("*.jpg")):
        mask = next((source / "masks").glob(f"{image.stem}.*"))
        with Image.open(image) as picture, Image.open(mask) as truth:
            pixels, labels = np.asarray(picture.convert("RGB")), np.asarray(truth.convert("L"))
        for y in range(0, pixels.shape[0] - SQUARE + 1, SQUARE):
            for x in range(0, pixels.shape[1] - SQUARE + 1, SQUARE):
                part = np.s_[y : y + SQUARE, x : x + SQUARE]
                name = f"{image.stem}-{y}-{x}.png"
                Image.fromarray(pixels[part]).save(out / "images" / name)
                Image.fromarray(np.where(labels[part] > 127, 255, 0).astype(np.uint8)).save(
                    out / "masks" / name
                )
    (out / "dataset.yaml").write_text(
        "name: BCSS in squares\nmpp: 0.25\n"
        "categories: [{name: other, value: 0}, {name: tumour, value: 255}]\n"
    )
    return out


def thinned(dataset: Dataset) -> Dataset:
    """A dataset with every third of its training images."""
    train = [n for n, item in enumerate(dataset.items) if item.split == "train"]
    kept = sorted({*range(len(dataset.items))} - {*train} | {*train[::3]})
    return replace(dataset, items=tuple(dataset.items[n] for n in kept), pixels=dataset.pixels[kept])


def main(name: str = "he-small", *chosen: str) -> None:
    data = Path(os.environ["FSEG_DATA"]).resolve()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ours = load_encoder(name)
        encoders = [ours, untrained(ours, folder), classical()]
        datasets = {
            "bcss": bcss_squares(data / "bcss_tumour", folder / "bcss"),
            "ebhi": data / "ebhi",
        }
        for short in chosen or tuple(datasets):
            path = datasets[short]
            out = folder / f"out-{short}"
            protocols = ("matching", "balanced matching")
            dataset = open_dataset(path)
            if short == "ebhi":
                dataset = thinned(dataset)
            evaluate(
                dataset,
                encoders,
                out=out,
                k=K,
                modes=("fixed",),
                protocols=protocols,
                starts=STARTS,
                report=lambda phase, done, total: (
                    print(f"{phase}: {done}/{total}", flush=True) if done == total else None
                ),
            )
            for kind in ("md", "csv", "json"):
                for file in out.glob(f"*.{kind}"):
                    shutil.copyfile(file, RESULTS / f"he_small_{short}_{file.name}")
            print((out / "results.md").read_text())
        print(json.dumps({"device": jax.devices()[0].device_kind, "encoder": ours.card.weights_hash}))


if __name__ == "__main__":
    main(*sys.argv[1:])
