"""How a slide's outputs are written. No label depends on it."""

from dataclasses import dataclass
from typing import Literal

from fseg_jax.errors import InputError

Outlines = Literal["regions", "clusters", "detections"]
_SLIDE = "{slide}"  # of a prefix


@dataclass(frozen=True)
class OutputForm:
    """How a slide's outputs are written.

    Attributes:
        image: Whether the OME-Zarr holds an image of the slide, with the labels inside; they stand alone
            otherwise.
        shards: Whether chunks of labels share files, which a web server must give parts of.
        outlines: What QuPath gets: an annotation for each region, one for all regions of a cluster, or a
            detection for each region, of which it bears more.
        class_prefix: What QuPath's classes are called before the cluster's name; ``{slide}`` is the slide's.
    """

    image: bool = True
    shards: bool = True
    outlines: Outlines = "regions"
    class_prefix: str = ""

    def __post_init__(self) -> None:
        if ":" in self.class_prefix or not self.class_prefix.isprintable():
            raise InputError(
                f"--class-prefix {self.class_prefix!r}: QuPath splits classes at colons; give other "
                "letters, all printable"
            )

    def name_classes(self, clusters: tuple[str, ...], slide: str) -> tuple[str, ...]:
        """Name QuPath's classes for clusters of a slide; colons in the slide's name become dashes."""
        prefix = self.class_prefix.replace(_SLIDE, slide.replace(":", "-"))
        return tuple(prefix + name for name in clusters)


DEFAULT_FORM = OutputForm()
