"""How a slide's outputs are written. No label depends on it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OutputForm:
    """How a slide's outputs are written.

    Attributes:
        image: Whether the OME-Zarr holds an image of the slide, with the labels inside; they stand alone
            otherwise.
        shards: Whether chunks of labels share files, which a web server must give parts of.
    """

    image: bool = True
    shards: bool = True


DEFAULT_FORM = OutputForm()
