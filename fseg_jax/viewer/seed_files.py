"""The buttons of a tab that export results and load a seeds file."""

import asyncio
import base64
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from bokeh.document import Document
from bokeh.models import FileInput

from fseg_jax.errors import InputError
from fseg_jax.viewer.frame import Frame
from fseg_jax.viewer.seeding import Seeding

_EXPORTS = {  # name of the button: its label, and the end of the file's name
    "geojson": ("QuPath", ".sic.geojson"),
    "mask": ("Mask", ".sic.ome.zarr"),
    "anndata": ("AnnData", ".sic.h5ad"),
    "seeds": ("Seeds", ".seeds.geojson"),
}


class SeedFiles:
    """The export buttons and the file input of a tab."""

    def __init__(
        self, frame: Frame, seeding: Seeding, document: Document, announce: Callable[[str], None]
    ) -> None:
        """Add the buttons to a frame.

        Args:
            frame: The tab's frame.
            seeding: The slide's seeding.
            document: The tab's document.
            announce: Called with a message about a written file, or "" after loading one.
        """
        self._frame, self._seeding, self._document = frame, seeding, document
        self._announce = announce
        self._tasks: set[asyncio.Task[None]] = set()
        for name, (label, _) in _EXPORTS.items():
            frame.add_button(name, label, partial(self._start_export, name))
        file_input = frame.add(FileInput(accept=".geojson,.json", width=210), "load")
        file_input.on_change("filename", lambda attribute, old, new: self._load(file_input))

    def _load(self, file_input: FileInput) -> None:
        if not file_input.filename:
            return
        try:
            data = base64.b64decode(str(file_input.value))
        except ValueError:
            data = b""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "seeds"  # the browser's file name may be invalid on this machine
            path.write_bytes(data)
            self._seeding.load_file(path, str(file_input.filename))
        file_input.clear()  # so that the same file can be loaded again
        self._announce("")

    def _start_export(self, name: str) -> None:
        # Bokeh awaits no callback of a button, and a tab shows nothing while a callback runs: use a task.
        task = asyncio.get_running_loop().create_task(self._export(name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _export(self, name: str) -> None:
        """Write the files of the seeds, and have the browser download the one of a button."""
        seeding, folder = self._seeding, self._seeding.folder
        if name != "seeds" and await seeding.export(anndata=name == "anndata") is None:
            return
        file = f"{seeding.name}{_EXPORTS[name][1]}"
        if not seeding.annotation.seeds and not (folder / file).exists():
            seeding.refuse("no seeds yet: place some first")
            return
        try:
            seeding.restore_file()
        except InputError as error:
            seeding.refuse(str(error))
            return
        self._document.add_next_tick_callback(lambda: self._frame.download(file))
        self._announce(f"written: {folder / file}")
