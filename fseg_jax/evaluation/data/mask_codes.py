"""What the pixels of a mask mean: category indices by value, or by colour."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from fseg_jax.errors import InputError
from fseg_jax.slides.masks import Mask, check_size, open_mask

IGNORED = 255  # a pixel that is of no category, and counts for nothing
UNKNOWN = 254  # a pixel whose code means nothing: the mask is refused
MOST_CATEGORIES = 254
_NAMED_CODES = 5  # unknown codes that a message names


@dataclass(frozen=True)
class MaskCodes:
    """What each code of a mask means. A mask of 1 bit has the codes 0 and 255."""

    meaning: Mapping[int, int]  # category index or ``IGNORED`` by code
    colours: bool = False  # whether codes are colours, 0xRRGGBB, and not values

    def read(self, path: Path) -> UInt8[np.ndarray, "height width"]:
        """Read a mask as category indices; pixels of no known code are ``UNKNOWN``.

        Raises:
            InputError: The file cannot be read, or its compression may have changed its codes.
        """
        table = np.full(1 << (24 if self.colours else 16), UNKNOWN, np.uint8)
        for code, category in self.meaning.items():
            table[code] = category
        with open_mask(path, "a mask") as mask:
            check_size(mask)
            truth = np.empty(mask.shape, np.uint8)
            for y, codes in self._blocks(mask):
                known = (codes >= 0) & (codes < table.size)
                truth[y : y + len(codes)] = table[np.where(known, codes, 0)]
                truth[y : y + len(codes)][~known] = UNKNOWN
        return truth

    def describe_unknown(self, path: Path) -> str:
        """List the codes of a mask that mean nothing, with their pixels: ``7 (24 pixels), 9 (3 pixels)``."""
        pixels: Counter[int] = Counter()
        with open_mask(path, "a mask") as mask:
            for _, codes in self._blocks(mask):
                distinct, counts = np.unique(codes, return_counts=True)
                pixels.update(dict(zip(distinct.tolist(), counts.tolist(), strict=True)))
        unknown = sorted(pixels.keys() - self.meaning.keys())
        texts = [
            f"{f'#{code:06x}' if self.colours else code} ({pixels[code]} pixels)"
            for code in unknown[:_NAMED_CODES]
        ]
        more = len(unknown) - _NAMED_CODES
        return ", ".join(texts) + (f" and {more} more" if more > 0 else "")

    def _blocks(self, mask: Mask) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the first row of each block of a mask, and its codes."""
        if mask.lossy and (self.colours or not self.meaning.keys() >= set(range(256))):
            raise InputError(
                f"{mask.path}: its compression may have changed its values, which mean something: give a PNG"
            )
        if not self.colours:
            yield from mask.yield_codes()
            return
        for y, rgb in mask.yield_colours():
            red, green, blue = np.moveaxis(rgb.astype(np.int32), -1, 0)
            yield y, red << 16 | green << 8 | blue
