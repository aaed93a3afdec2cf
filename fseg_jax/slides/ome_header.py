"""The OME header of a TIFF: its images, each with its own pixel size, channels, and where its pixels are."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from fseg_jax.slides.channels import Channel
from fseg_jax.slides.units import convert_to_um


class Planes(NamedTuple):
    """Pages that hold planes of an image.

    Attributes:
        file: Name of their file; None for the file that holds the header.
        first: The first page, from 0.
        number: How many there are; None for all that follow.
    """

    file: str | None
    first: int
    number: int | None


class OmeImage(NamedTuple):
    """An image that an OME header describes.

    Attributes:
        number: Its place in the header, from 0.
        name: Its name; empty where there is none.
        mpp: µm per pixel along y and x; None where the header states none.
        channels: What it says of its channels; one entry may be of several samples.
        planes: Where its pixels are.
    """

    number: int
    name: str
    mpp: tuple[float, float] | None
    channels: tuple[Channel, ...]
    planes: tuple[Planes, ...]

    def is_in(self, file: str) -> bool:
        """Return whether some of its pixels are in a file that does not hold the header."""
        return any(planes.file == file for planes in self.planes)


class OmeHeader(NamedTuple):
    """An OME header.

    Attributes:
        images: The images that it describes.
        elsewhere: Name of the file that holds the header in this one's place; None where this is the header.
    """

    images: tuple[OmeImage, ...]
    elsewhere: str | None

    def find(self, page: Any, file: str | None) -> OmeImage | None:
        """Find the image that a page is of.

        Args:
            page: tifffile's page.
            file: Name of its file; None for the file that holds the header.
        """
        index = page.index if isinstance(page.index, int) else page.index[0]
        for image in self.images:
            for planes in image.planes:
                end = math.inf if planes.number is None else planes.first + planes.number
                if planes.file == file and planes.first <= index < end:
                    return image
        return None


def parse_header(xml: str, file: str) -> OmeHeader | None:
    """Parse an OME header; return None where it is no XML.

    Args:
        xml: The header.
        file: Name of the file that holds it.
    """
    try:
        root = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError):
        return None
    for element in _find(root, "BinaryOnly"):
        return OmeHeader((), element.get("MetadataFile"))
    elements = list(_find(root, "Image"))
    own = _find_own_ids(root, elements, file)
    images = [_parse_image(number, element, own) for number, element in enumerate(elements)]
    return OmeHeader(tuple(images), None)


def _find_own_ids(
    root: ElementTree.Element, images: Sequence[ElementTree.Element], file: str
) -> set[str | None]:
    """Find the UUIDs by which a header calls the file that holds it."""
    entries = {
        (entry.text, entry.get("FileName", ""))
        for image in images
        for entry in image.iter()
        if _name(entry) == "UUID"
    }
    if len(entries) == 1:  # one file, which may have been renamed since
        return {text for text, _ in entries}
    if uuid := root.get("UUID"):
        return {uuid}
    return {text for text, name in entries if name.lower() == file.lower()}


def _parse_image(number: int, element: ElementTree.Element, own: set[str | None]) -> OmeImage:
    planes, channels, mpp = [], [], None
    for pixels in _find(element, "Pixels"):
        mpp = _parse_mpp(pixels)
        channels += [_parse_channel(channel) for channel in _find(pixels, "Channel")]
        for data in _find(pixels, "TiffData"):
            file = None
            for uuid in _find(data, "UUID"):
                file = None if uuid.text in own else uuid.get("FileName", "")
                break
            first = _parse_int(data.get("IFD"), 0)
            count = data.get("PlaneCount", data.get("NumPlanes", "1" if "IFD" in data.attrib else None))
            planes.append(Planes(file, first, None if count is None else _parse_int(count, 1)))
    return OmeImage(number, element.get("Name", ""), mpp, tuple(channels), tuple(planes))


def _parse_mpp(pixels: ElementTree.Element) -> tuple[float, float] | None:
    values = []
    for axis in "YX":
        unit = convert_to_um(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        try:
            value = float(pixels.attrib[f"PhysicalSize{axis}"])
        except (KeyError, ValueError):
            return None
        if unit is None or not (math.isfinite(value) and value > 0):
            return None
        values.append(value * unit)
    return values[0], values[1]


def _parse_channel(channel: ElementTree.Element) -> Channel:
    colour = None
    if "Color" in channel.attrib:
        value = _parse_int(channel.get("Color"), -1) & 0xFFFFFFFF  # red, green, blue, alpha, a byte each
        colour = (value >> 24, value >> 16 & 255, value >> 8 & 255)
    # Fluor and EmissionWavelength do not say so: scanners state them for the three colours of a camera too.
    is_fluorescence = channel.get("ContrastMethod", "").lower() == "fluorescence"
    return Channel(channel.get("Name", ""), colour, is_fluorescence)


def _parse_int(text: str | None, default: int) -> int:
    try:
        return int(text or default)
    except ValueError:
        return default


def _find(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    """Yield an element's children of a name, in whatever version of OME's namespace."""
    return (child for child in element if _name(child) == name)


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
