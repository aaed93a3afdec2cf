"""Which slide a result is of, as records state it."""

from dataclasses import asdict, dataclass
from typing import Any, get_args

from fseg_jax.pipeline.publish import Json
from fseg_jax.slides.bounds import Frame, Origin
from fseg_jax.slides.identity import SlideFile, identify
from fseg_jax.slides.reader import Slide

_LONGEST_SIDE = 1 << 31  # pixels of a slide
_COARSEST_MPP = 1e9


@dataclass(frozen=True)
class SlideFacts:
    """Which slide a result is of.

    Attributes:
        path: Its file, or folder.
        identity: Hash of its content (``slides.identity``); None in records of earlier versions.
        format: The reader's name for its format; "" where a record does not say.
        height: Height of the finest level in pixels.
        width: Width of the finest level in pixels.
        mpp: µm per pixel of the finest level.
        frame: What coordinates on it count from (``slides.bounds``): ``"bounds"`` or ``"canvas"``.
        frame_x: Where that lies on the file's canvas, in pixels of the finest level from the left.
        frame_y: And from the top.
        series: Which of the file's images it is, where it has several.
    """

    path: str
    identity: str | None
    format: str
    height: int
    width: int
    mpp: float
    frame: Frame = "canvas"
    frame_x: int = 0
    frame_y: int = 0
    series: int | None = None

    @property
    def file(self) -> SlideFile:
        """Its path and identity."""
        return SlideFile(self.path, self.identity)

    @property
    def origin(self) -> Origin:
        """Where its coordinates count from."""
        return self.frame_y, self.frame_x

    def frame_to_json(self) -> Json:
        """Give what coordinates count from, as files of coordinates state it."""
        return {name: getattr(self, name) for name in ("frame", "frame_x", "frame_y")}

    def to_json(self) -> Json:
        """Give the facts as JSON; what is None is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: Any) -> "SlideFacts":
        """Read the facts from JSON.

        Raises:
            LookupError, TypeError, ValueError: Something is missing, or cannot be.
        """
        path, height, width, mpp = (value[key] for key in ("path", "height", "width", "mpp"))
        if not isinstance(path, str):
            raise TypeError("the slide's path is no text")
        for side in (height, width):
            if type(side) is not int or not 0 < side < _LONGEST_SIDE:
                raise ValueError("the slide's size cannot be")
        if type(mpp) not in (int, float) or not 0 < mpp < _COARSEST_MPP:
            raise ValueError("the slide's resolution cannot be")
        frame = value.get("frame", "canvas")  # records of earlier versions do not say
        corner = value.get("frame_x", 0), value.get("frame_y", 0)
        if frame not in get_args(Frame) or any(type(at) is not int for at in corner):
            raise ValueError("the slide's frame cannot be")
        series = value.get("series")
        if not (series is None or (type(series) is int and series >= 0)):
            raise ValueError("the slide's series cannot be")
        identity, kind = value.get("identity"), value.get("format", "")
        return cls(path, identity, kind, height, width, mpp, frame, *corner, series)


def slide_facts(slide: Slide) -> SlideFacts:
    """Collect which slide a result is of."""
    return SlideFacts(
        path=str(slide.path),
        identity=identify(slide.path),
        format=slide.format,
        height=slide.height,
        width=slide.width,
        mpp=slide.mpp,
        frame=slide.frame,
        frame_x=slide.origin[1],
        frame_y=slide.origin[0],
        series=slide.series,
    )
