"""How good the CAM method's masks of polyps are, and how fast: the paper's tables with ours, in results/.

    FSEG_DATA=/path/to/data python benchmarks/cam_polyps.py [OUT]     the five runs, and the speed
    FSEG_DATA=/path/to/data python benchmarks/cam_polyps.py speed     the speed alone

``$FSEG_DATA/polyps`` holds 240 images of HyperKvasir (Borgli et al. 2020, CC BY 4.0) as images/ and masks/.
The runs are those of ``fseg cam reproduce`` with the network that a CPU can train, small at 96 pixels; the
speed is that of the paper's network, b1 at 224 pixels, which does not depend on its weights. With OUT the
runs' folder is kept, and an interrupted benchmark goes on there.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import jax
from flax import nnx
from PIL import Image

from fseg_jax.encoders.efficientnet import EfficientNet
from fseg_jax.evaluation.cam import RUNS, load_run, reproduce, throughput
from fseg_jax.evaluation.cam_runs import Reproduction
from fseg_jax.evaluation.masks import markdown, open_pairs
from fseg_jax.folders.images import read_image
from fseg_jax.folders.segment import Mapper, MaskSettings
from fseg_jax.training.classifier import SMALL, Settings, configuration
from fseg_jax.training.classifier_file import Classifier

RESULTS = Path(__file__).parent / "results"
SHOWN = ("run-1", "run-5")  # runs of which a few pictures are kept
PICTURES = 3
IMAGES = 20  # that are timed


def runs(dataset: Path, out: Path) -> None:
    """The five runs, their tables and a few pictures."""
    started = time.time()

    def report(phase: str, done: int, total: int) -> None:
        if done == total or phase == "epochs":
            print(f"{time.time() - started:7.0f} s  {phase}: {done} of {total}", flush=True)

    setting = Reproduction(Settings(network=SMALL, size=96))
    reproduce(dataset, out, [load_run(name) for name in RUNS], setting, report=report)
    for kept in ("results.md", "results.json"):
        (RESULTS / kept.replace("results", "cam_polyps")).write_bytes((out / kept).read_bytes())
    rows = []
    for run in SHOWN:
        rows += [Image.open(path) for path in sorted((out / run / "overlays").glob("*.png"))[:PICTURES]]
    canvas = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), "white")
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height
    canvas.resize((canvas.width // 2, canvas.height // 2)).save(RESULTS / "cam_polyps.png")


def speed(dataset: Path) -> None:
    """Seconds from a decoded image to its mask with the paper's network, layer by layer."""
    images = [read_image(pair.image) for pair in open_pairs(dataset)[:IMAGES]]
    network = EfficientNet(configuration("b1", 2), rngs=nnx.Rngs(0))
    network.eval()
    classifier = Classifier(network, ("non-polyp", "polyp"), 224, {})
    lines, record = [], []
    for layer, tiles in (
        ("blocks.14", 2),
        ("blocks.13", 1),
        ("blocks.14", 1),
        ("blocks.20", 1),
        ("blocks.22", 1),
    ):
        found = throughput(Mapper(classifier, MaskSettings(layer=layer, tiles=tiles)), images)
        what = f"{layer}{', four tiles' if tiles > 1 else ''}"
        lines.append([what, *(f"{s:.3f}" for s in found), *(f"{1 / s:.2f}" for s in found)])
        record.append({"layer": layer, "tiles": tiles, **found._asdict()})
        print(lines[-1], flush=True)
    head = ["EfficientNet-b1, 224 pixels", "Av-time", "Mi-time", "Ma-time", "Av-fps", "Mi-fps", "Ma-fps"]
    said = (
        f"{IMAGES} images of 352 × 352 pixels, one at a time, from decoded image to mask, compilation "
        f"excluded; {jax.devices()[0].device_kind}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}. The paper has 0.09 to 0.11 s, 9 to 11 frames/s.\n\n"
    )
    (RESULTS / "cam_speed.md").write_text(said + markdown(head, lines), encoding="utf-8")
    (RESULTS / "cam_speed.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    polyps = Path(os.environ["FSEG_DATA"]) / "polyps"
    given = sys.argv[1:]
    if given != ["speed"]:
        with tempfile.TemporaryDirectory() as folder:
            runs(polyps, Path(given[0]) if given else Path(folder))
    speed(polyps)
