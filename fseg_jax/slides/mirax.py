"""A check of the counts that a MIRAX slide's ``Slidedat.ini`` states, before OpenSlide opens the slide.

OpenSlide allocates memory for as many as are stated, and ends the process where there is not enough.
"""

import re
from pathlib import Path

from fseg_jax.errors import InputError

_MAX_BYTES = 8 << 20  # of the file
_MAX_IMAGES = 25_000_000  # camera images of a slide: 5,000 along each side
_MAX_FACTOR = 1000  # images that are divided or joined
_MAX_COUNT = 100_000  # any other count
_COUNT = re.compile(
    r"^[ \t]*((?:NON)?HIER(?:_\d+)?_COUNT|FILE_COUNT|IMAGENUMBER_[XY]|DIGITIZER_(?:WIDTH|HEIGHT)"
    r"|CameraImageDivisionsPerSide|IMAGE_CONCAT_FACTOR)[ \t]*=[ \t]*([+-]?\d+)",
    re.M | re.A,
)


def check_counts(path: Path) -> None:
    """Raise ``InputError`` where the description of an ``.mrxs`` file states counts that no slide has."""
    description = path.with_suffix("") / "Slidedat.ini"
    try:
        with description.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError:
        return  # OpenSlide says what is missing
    text = content.decode("utf-8", "replace")
    images = 1
    for name, digits in _COUNT.findall(text):
        count = int(digits[:20])
        if not 0 <= count <= (_MAX_FACTOR if name.endswith(("PerSide", "FACTOR")) else _MAX_COUNT):
            raise InputError(f"{path}: says {name} = {digits[:20]} in Slidedat.ini: it is damaged")
        images *= count if name.startswith("IMAGENUMBER") else 1
    if len(content) > _MAX_BYTES or images > _MAX_IMAGES:
        raise InputError(f"{path}: says in Slidedat.ini that it has {images} images: it is damaged")
