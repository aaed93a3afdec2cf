"""Map where a classifier sees its class in images of any size, and threshold the maps to masks."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from fseg_jax.cam.classifier import find_normalisation, normalise
from fseg_jax.cam.classifier_file import Classifier
from fseg_jax.cam.image_folder import resize_image, resize_map
from fseg_jax.errors import InputError
from fseg_jax.methods import cam


@dataclass(frozen=True)
class MaskSettings:
    """How masks are made from heat maps; ``methods.cam`` says what each setting does.

    Attributes:
        layer: Name of the layer that is read.
        method: Method that makes the maps: one of ``methods.cam.METHODS``.
        lower: The mask is above this value of the map.
        upper: And below this one, if there is one.
        tiles: An image is cut into so many × so many tiles, each mapped and scaled by itself (the paper's run
            1: 2).
        whole: Tiles are not cut apart; an image is mapped in one piece, as large as its tiles, and scaled
            once.
        reject: The mask is empty where the classifier does not see the class in an image, or in a tile.
        largest: Number of a mask's largest pieces to keep; None for all.
        fill_holes: Whether the holes of a mask are filled.
        of_class: Name of the class to find; None for the last.
        seed: Random seed.
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
        """The two thresholds."""
        return cam.Band(self.lower, self.upper)


class MappingSpeed(NamedTuple):
    """Seconds an image from the decoded image to its mask: the first three columns of the paper's Table 2.

    Attributes:
        average: Mean over the images.
        minimum: Time of the fastest image.
        maximum: Time of the slowest image.
    """

    average: float
    minimum: float
    maximum: float


class HeatMapper:
    """The function from an image to its heat map; the network is compiled once, for one size and batch.

    Attributes:
        settings: How maps and masks are made.
        class_name: The class that is mapped.
    """

    def __init__(self, classifier: Classifier, settings: MaskSettings) -> None:
        """Set up the maps. Raises ``InputError`` for settings that do not fit the classifier."""
        settings.band.check()
        if settings.tiles < 1 or (settings.largest is not None and settings.largest < 1):
            raise InputError("--tiles and --largest: give 1 or more")
        self.settings = settings
        self.class_name = settings.of_class or classifier.classes[-1]
        self._size = classifier.size
        self._logit, negative = classifier.logit(self.class_name)
        self._sign = -1 if negative else 1
        self._make_maps = cam.compile_heat_maps(
            classifier.network,
            settings.layer,
            partial(normalise, normalisation=find_normalisation(classifier.network.config)),
            method=settings.method,
            class_index=self._logit,
            negative=negative,
            seed=settings.seed,
        )

    def __call__(
        self, image: UInt8[np.ndarray, "height width 3"]
    ) -> tuple[Float[np.ndarray, "height width"], float]:
        """Map an image; return the map in [0, 1] at its size, and the probability of the class.

        The probability is the highest of the image's tiles. Raises ``InputError`` for an image with fewer
        pixels than tiles along a side.
        """
        n, size = self.settings.tiles, self._size
        height, width = image.shape[:2]
        if min(height, width) < n:
            raise InputError(f"an image of {width} × {height} pixels cannot be cut into {n} × {n} tiles")
        if self.settings.whole:
            n, size = 1, n * size
        boxes = cut_into_tiles((height, width), n)
        tiles = jnp.asarray(np.stack([resize_image(image[box], size) for box in boxes]))
        result = self._make_maps(tiles)
        maps = np.asarray(result.maps)
        probabilities = np.asarray(jax.nn.sigmoid(self._sign * result.logits[:, self._logit]))
        heat = np.zeros((height, width), np.float32)
        for box, tile_map, probability in zip(boxes, maps, probabilities, strict=True):
            if not (self.settings.reject and probability < 0.5):
                heat[box] = resize_map(tile_map, heat[box].shape)
        return heat, float(probabilities.max())

    def threshold(self, heat: Float[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
        """Threshold a map to a mask; fill holes and keep the largest pieces as the settings say."""
        mask = cam.threshold_maps(heat, self.settings.band)
        return cam.tidy(mask, largest=self.settings.largest, fill_holes=self.settings.fill_holes)


def cut_into_tiles(shape: tuple[int, int], n: int) -> list[tuple[slice, slice]]:
    """Cut an image's height and width into n × n boxes of nearly equal size, row by row.

    >>> cut_into_tiles((4, 5), 2)[1]
    (slice(0, 2, None), slice(2, 5, None))
    """
    rows, columns = (np.linspace(0, side, n + 1).round().astype(int).tolist() for side in shape)
    return [
        (slice(rows[i], rows[i + 1]), slice(columns[j], columns[j + 1])) for i in range(n) for j in range(n)
    ]


def choose_thresholds(
    mapper: HeatMapper,
    examples: Iterable[tuple[UInt8[np.ndarray, "_ _ 3"], Bool[np.ndarray, "_ _"]]],
) -> tuple[cam.Band, float]:
    """Choose the thresholds with the best mean Dice on images with masks, and return them with that Dice."""
    maps, truths = [], []
    for image, truth in examples:
        maps.append(mapper(image)[0])
        truths.append(truth)
    return cam.choose_band(maps, truths)


def measure_speed(mapper: HeatMapper, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> MappingSpeed:
    """Time images one by one, compilation excluded: the first is done once before the clock starts."""
    mapper.threshold(mapper(images[0])[0])
    seconds = []
    for image in images:
        started = time.perf_counter()
        mapper.threshold(mapper(image)[0])
        seconds.append(time.perf_counter() - started)
    return MappingSpeed(float(np.mean(seconds)), min(seconds), max(seconds))
