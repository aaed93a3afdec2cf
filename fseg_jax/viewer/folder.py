"""A folder of outputs, whose slides are opened when a page asks for them."""

from pathlib import Path

from fseg_jax.errors import InputError
from fseg_jax.files.kinds import suggest_names
from fseg_jax.pipeline.clicks import SeedSettings
from fseg_jax.viewer.session import SlideSession, list_slides


class Folder:
    """The slides of a folder.

    Attributes:
        path: The folder of outputs.
        names: Names of the slides that can be looked at.
    """

    def __init__(self, path: Path, slides: Path | None, settings: SeedSettings) -> None:
        """List the slides of a folder.

        Args:
            path: The folder of outputs.
            slides: The folder of the slide files, if they were moved.
            settings: Settings of SIC.

        Raises:
            InputError: The folder holds no slide to look at.
        """
        self.path = path
        self.names = list_slides(path)
        self._slides, self._settings = slides, settings
        self._sessions: dict[str, SlideSession] = {}

    def open(self, name: str) -> SlideSession:
        """Open a slide, or return it if it is open already.

        Raises:
            InputError: There is no such slide, or it cannot be opened.
        """
        if name not in self.names:
            hint = suggest_names(name, self.names)
            raise InputError(f"{self.path}: holds no slide {name!r}; {hint}it holds {', '.join(self.names)}")
        if name not in self._sessions:
            self._sessions[name] = SlideSession(self.path, name, self._slides, self._settings)
            self._sessions[name].start()
        return self._sessions[name]

    def get(self, name: str) -> SlideSession | None:
        """Return a slide if it is open."""
        return self._sessions.get(name)

    def close(self) -> None:
        """Close every slide."""
        for session in self._sessions.values():
            session.close()
