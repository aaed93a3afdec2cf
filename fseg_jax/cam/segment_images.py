"""Step 3: segment images with a trained classifier.

Writes ``masks/NAME.png``, ``overlays/NAME.png``, ``masks.csv`` and ``masks.json``.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from fseg_jax.cam.classifier_file import Classifier, ClassifierCard
from fseg_jax.cam.heat_mapper import HeatMapper, MaskSettings
from fseg_jax.cam.image_folder import read_image
from fseg_jax.cam.step_outputs import (
    StepRecord,
    check_record_is_new,
    make_folder,
    take_provenance,
    write_json,
)
from fseg_jax.errors import InputError
from fseg_jax.outputs.csv_table import write_csv
from fseg_jax.outputs.masks import write_mask, write_picture
from fseg_jax.pipeline.publish import together
from fseg_jax.process import Progress

RECORD = "masks.json"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class MasksRecord(StepRecord):
    """The record of a segmentation, ``masks.json``.

    Attributes:
        classifier: The classifier's card.
        weights_sha256: Hash of the classifier's weights.
        settings: How masks were made.
        class_name: The class that the masks show; "class" in the file.
        images: Number of images with a mask.
        unreadable: Images that could not be read, or not be cut into tiles.
    """

    classifier: ClassifierCard
    weights_sha256: str
    settings: MaskSettings
    class_name: str
    images: int
    unreadable: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is in its file."""
        content = super().to_json()
        content["classifier"]["weights_sha256"] = content.pop("weights_sha256")
        return {"class" if name == "class_name" else name: value for name, value in content.items()}


def segment_files(
    files: Sequence[Path],
    names: Sequence[str],
    classifier: Classifier,
    out: Path,
    settings: MaskSettings,
    *,
    truth: Callable[[int], Bool[np.ndarray, "height width"]] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MasksRecord:
    """Segment images, and write masks, pictures, the table and the record to ``out``.

    ``names`` are the files' paths without suffix below ``masks``; ``truth`` gives the true mask of an image
    by its number, for the picture. A warning and the record name each unreadable image, which is left out.

    Raises:
        InputError: Where no image can be read, two have one name, or a record would be lost.
    """
    check_record_is_new(out, RECORD, overwrite)
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two images are called {repeated[0]!r}: segment them to different folders")
    mapper = HeatMapper(classifier, settings)
    started = time.time()
    rows: list[dict[str, object]] = []
    unreadable = []
    with together(RECORD, Path(out)) as folder:
        for number, (path, name) in enumerate(zip(files, names, strict=True)):
            try:
                image = read_image(path)
                heat, probability = mapper(image)
            except InputError as error:
                _LOG.warning("%s; it is left out", error)
                unreadable.append(str(path))
                continue
            mask = mapper.threshold(heat)
            _write_images(folder, name, mapper, image, heat, mask, truth(number) if truth else None)
            rows.append(
                {
                    "image": path.name if "/" not in name else f"{Path(name).parent.as_posix()}/{path.name}",
                    "mask": f"masks/{name}.png",
                    "class": mapper.class_name,
                    "probability": f"{probability:.4f}",
                    "pixels": int(mask.sum()),
                    "share": f"{mask.mean():.6f}",
                }
            )
            if progress:
                progress("segment", number + 1, len(files))
        if not rows:
            raise InputError(f"none of the {len(files)} images can be read: give images")
        write_csv(folder / "masks.csv", list(rows[0]), rows)
        record = MasksRecord(
            take_provenance(started),
            classifier=classifier.card,
            weights_sha256=classifier.weights_sha256,
            settings=settings,
            class_name=mapper.class_name,
            images=len(rows),
            unreadable=tuple(unreadable),
        )
        write_json(folder / RECORD, record.to_json())
    return record


def _write_images(
    folder: Path,
    name: str,
    mapper: HeatMapper,
    image: UInt8[np.ndarray, "height width 3"],
    heat: Float[np.ndarray, "height width"],
    mask: Bool[np.ndarray, "height width"],
    truth: Bool[np.ndarray, "height width"] | None,
) -> None:
    """Write an image's mask and its picture."""
    for subfolder in ("masks", "overlays"):
        make_folder((folder / subfolder / name).parent)
    write_mask(folder / "masks" / f"{name}.png", mask)
    title = f"{mapper.class_name}, {mapper.settings.method}"
    write_picture(folder / "overlays" / f"{name}.png", image, heat, mask, title=title, truth=truth)
