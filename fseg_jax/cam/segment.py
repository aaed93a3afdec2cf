"""Masks of a folder's images: ``masks/``, ``overlays/``, ``masks.csv``, ``masks.json``."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from fseg_jax.cam import classifier as training
from fseg_jax.cam.classifier_file import Classifier
from fseg_jax.cam.images import read_image, resize_image, resize_map
from fseg_jax.cam.labels import write_table
from fseg_jax.cam.record import fresh, make_folder, write_record
from fseg_jax.errors import InputError
from fseg_jax.methods import cam
from fseg_jax.outputs.masks import write_mask, write_picture
from fseg_jax.pipeline.record import together
from fseg_jax.process import Progress

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskSettings:
    """How masks are made: ``methods.cam`` says what each does.

    ``layer``: a layer's name; ``tiles``: an image is cut into so many × so many, each of them mapped and
    scaled by itself (the paper's run 1: 2); ``whole``: they are not cut apart, but an image is mapped in one
    piece, as large as its tiles together, and scaled once; ``reject``: nothing is masked where the classifier
    says that an image, or a tile, is not of the class; ``of_class``: None for the last.
    """

    layer: str = "blocks.14"
    method: str = "grad-cam"
    lower: float = 0.4
    upper: float | None = 0.7
    tiles: int = 1
    whole: bool = False
    reject: bool = False
    largest: int | None = None
    fill_holes: bool = False
    of_class: str | None = None
    seed: int = 0

    @property
    def band(self) -> cam.Band:
        return cam.Band(self.lower, self.upper)


class Mapper:
    """From an image of any size to its heat map: the network compiled once, for one size and batch."""

    def __init__(self, classifier: Classifier, settings: MaskSettings) -> None:
        settings.band.check()
        if settings.tiles < 1 or (settings.largest is not None and settings.largest < 1):
            raise InputError("--tiles and --largest: give 1 or more")
        self.settings, self.size = settings, classifier.size
        self.name = settings.of_class or classifier.classes[-1]
        logit, negative = classifier.logit(self.name)
        self.logit, self.sign = logit, -1 if negative else 1
        self._maps = cam.compile_heat_maps(
            classifier.network,
            settings.layer,
            training.normalise,
            method=settings.method,
            class_index=logit,
            negative=negative,
            seed=settings.seed,
        )

    def __call__(self, image: np.ndarray) -> tuple[Float[np.ndarray, "height width"], float]:
        """The map in [0, 1] at the image's size, and the probability of the class (the highest of its
        tiles).
        """
        n, size = self.settings.tiles, self.size
        height, width = image.shape[:2]
        if min(height, width) < n:
            raise InputError(f"an image of {width} × {height} pixels cannot be cut into {n} × {n} tiles")
        if self.settings.whole:
            n, size = 1, n * size
        rows, columns = (np.linspace(0, side, n + 1).round().astype(int) for side in (height, width))
        boxes = [
            (slice(rows[i], rows[i + 1]), slice(columns[j], columns[j + 1]))
            for i in range(n)
            for j in range(n)
        ]
        found = self._maps(jnp.asarray(np.stack([resize_image(image[box], size) for box in boxes])))
        maps = np.asarray(found.maps)
        chances = np.asarray(jax.nn.sigmoid(self.sign * found.logits[:, self.logit]))
        heat = np.zeros((height, width), np.float32)
        for box, part, chance in zip(boxes, maps, chances, strict=True):
            if not (self.settings.reject and chance < 0.5):
                heat[box] = resize_map(part, heat[box].shape)
        return heat, float(chances.max())

    def mask(self, heat: Float[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
        """The mask of a map."""
        found = cam.threshold_maps(heat, self.settings.band)
        return cam.tidy(found, largest=self.settings.largest, fill_holes=self.settings.fill_holes)


def segment_files(
    files: Sequence[Path],
    names: Sequence[str],
    classifier: Classifier,
    out: Path,
    settings: MaskSettings,
    *,
    truth: Callable[[int], Bool[np.ndarray, "height width"]] | None = None,
    overwrite: bool = False,
    report: Progress | None = None,
) -> dict[str, Any]:
    """Segment images: writes ``masks/NAME.png``, ``overlays/NAME.png``, ``masks.csv``, and the record, which
    it returns.

    ``names`` are the files' paths without suffix below ``masks``. An unreadable image is named in a warning
    and in the record, and left out; ``InputError`` where none can be read.
    """
    name_of_record = fresh(out, "masks.json", overwrite).name
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two images are called {twice[0]!r}: segment them to different folders")
    mapper = Mapper(classifier, settings)
    started, rows, unreadable = time.time(), [], []
    with together(name_of_record, Path(out)) as folder:
        for done, (path, name) in enumerate(zip(files, names, strict=True), 1):
            try:
                image = read_image(path)
                heat, chance = mapper(image)
            except InputError as error:
                _LOG.warning("%s; it is left out", error)
                unreadable.append(str(path))
                continue
            mask = mapper.mask(heat)
            for kind in ("masks", "overlays"):
                make_folder((folder / kind / name).parent)
            write_mask(folder / "masks" / f"{name}.png", mask)
            write_picture(
                folder / "overlays" / f"{name}.png",
                image,
                heat,
                mask,
                title=f"{mapper.name}, {settings.method}",
                truth=truth(done - 1) if truth else None,
            )
            rows.append(
                {
                    "image": path.name if "/" not in name else f"{Path(name).parent.as_posix()}/{path.name}",
                    "mask": f"masks/{name}.png",
                    "class": mapper.name,
                    "probability": f"{chance:.4f}",
                    "pixels": int(mask.sum()),
                    "share": f"{mask.mean():.6f}",
                }
            )
            if report:
                report("segment", done, len(files))
        if not rows:
            raise InputError(f"none of the {len(files)} images can be read: give images")
        write_table(folder / "masks.csv", rows, list(rows[0]))
        return write_record(
            folder / name_of_record,
            {
                "classifier": classifier.card,
                "settings": asdict(settings),
                "class": mapper.name,
                "images": len(rows),
                "unreadable": unreadable,
            },
            started,
        )
