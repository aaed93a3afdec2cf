"""The counts that a MIRAX slide's ``Slidedat.ini`` states, looked at before OpenSlide makes room for them.

It ends the process where there is no such room.
"""

import re
from pathlib import Path

from fseg_jax.errors import InputError

_MOST_BYTES = 8 << 20
_MOST_IMAGES = 25_000_000  # of the camera: 5,000 along each side
_COUNT = re.compile(
    r"^[ \t]*((?:NON)?HIER(?:_\d+)?_COUNT|FILE_COUNT|IMAGENUMBER_[XY]|DIGITIZER_(?:WIDTH|HEIGHT)"
    r"|CameraImageDivisionsPerSide|IMAGE_CONCAT_FACTOR)[ \t]*=[ \t]*([+-]?\d+)",
    re.M | re.A,
)
_MOST, _MOST_FACTOR = 100_000, 1000


def check_counts(path: Path) -> None:
    """Fail where the description beside an ``.mrxs`` file states counts that no slide has."""
    description = path.with_suffix("") / "Slidedat.ini"
    try:
        with description.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError:
        return  # OpenSlide says what is missing
    text = content.decode("utf-8", "replace")
    images = 1
    for name, digits in _COUNT.findall(text):
        count = int(digits[:20])
        if not 0 <= count <= (_MOST_FACTOR if name.endswith(("PerSide", "FACTOR")) else _MOST):
            raise InputError(f"{path}: says {name} = {digits[:20]} in Slidedat.ini: it is damaged")
        images *= count if name.startswith("IMAGENUMBER") else 1
    if len(content) > _MOST_BYTES or images > _MOST_IMAGES:
        raise InputError(f"{path}: says in Slidedat.ini that it has {images} images: it is damaged")
