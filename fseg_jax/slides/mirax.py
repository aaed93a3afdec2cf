"""A check of a MIRAX slide's folder, and of the counts that its ``Slidedat.ini`` states, before it is opened.

The ``.mrxs`` file itself is a preview, a small JPEG, which must not be read in the slide's place. OpenSlide
allocates memory for as many as are stated, and ends the process where there is not enough.
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


def check_description(path: Path) -> None:
    """Check the description of an ``.mrxs`` file.

    Raises:
        InputError: It is not there, or states counts that no slide has.
    """
    folder = path.with_suffix("")
    try:
        with (folder / "Slidedat.ini").open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        if folder.is_dir():
            reason = error.strerror or error
            raise InputError(f"{path}: Slidedat.ini in its folder cannot be read ({reason})") from None
        link = f"; it is a link: give {path.resolve()} itself" if path.is_symlink() else ""
        raise InputError(
            f"{path}: its folder {folder.name} is not beside it, which has the slide's pixels: keep the two "
            f"together{link}"
        ) from None
    text = content.decode("utf-8", "replace")
    images = 1
    for name, digits in _COUNT.findall(text):
        count = int(digits[:20])
        if not 0 <= count <= (_MAX_FACTOR if name.endswith(("PerSide", "FACTOR")) else _MAX_COUNT):
            raise InputError(f"{path}: says {name} = {digits[:20]} in Slidedat.ini: it is damaged")
        images *= count if name.startswith("IMAGENUMBER") else 1
    if len(content) > _MAX_BYTES or images > _MAX_IMAGES:
        raise InputError(f"{path}: says in Slidedat.ini that it has {images} images: it is damaged")
