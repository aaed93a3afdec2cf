"""An open slide: its picture, label layer, seeding, projection, and the state its page was left in."""

import asyncio
import json
import secrets
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fseg_jax.errors import InputError, explain
from fseg_jax.files.lock import Lock, acquire_lock
from fseg_jax.files.partial_folders import recover_folder
from fseg_jax.outputs.embeddings import RECORD, list_embedded_slides, open_embeddings
from fseg_jax.outputs.labels import LabelPyramid, open_labels
from fseg_jax.pipeline.clicks import SeedSettings
from fseg_jax.pipeline.patch_records import read_provenance
from fseg_jax.pipeline.slide_facts import SlideFacts
from fseg_jax.process import raise_if_stopped
from fseg_jax.viewer.page_state import filter_page_state, read_page_state, write_page_state
from fseg_jax.viewer.picture import LabelLayer, open_picture
from fseg_jax.viewer.projection import read_projection
from fseg_jax.viewer.seeding import Seeding

_SAVE_DELAY = 0.3  # seconds without a change of the page's state


def list_slides(folder: Path) -> list[str]:
    """List the slides of a folder that can be looked at: the embedded and the segmented ones.

    Raises:
        InputError: There is none, or no such folder.
    """
    try:
        names = _find_slides(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be looked into ({error.strerror})") from None
    if not names:
        raise InputError(f"{folder}: holds no slide to look at; make one with fseg embed SLIDE -o {folder}")
    return names


def _find_slides(folder: Path) -> list[str]:
    if not folder.is_dir():
        if folder.exists():
            raise InputError(f"{folder}: is a file; give the folder of outputs, such as {folder.parent}")
        raise InputError(f"{folder}: no such folder; fseg embed or fseg segment make one")
    recover_folder(folder)
    labels = [path.name.removesuffix(".ome.zarr") for path in folder.glob("[!.]*.ome.zarr")]
    segmented = (
        name for name in labels if not name.endswith(".sic") and _is_nonempty_file(folder / f"{name}.json")
    )
    return sorted({*list_embedded_slides(folder), *segmented})


class SlideSession:
    """An open slide, shared by all tabs that show it.

    Attributes:
        folder: The folder of outputs.
        name: The slide's name.
        encoder: Name of the encoder.
        picture: The slide as tiles.
        layer: The label layer, if the slide is segmented.
        seeding: The live seeding, if the slide is embedded.
        projection: The projection of the embeddings, once it is computed.
        projection_status: Progress or failure of computing it, or "".
        page_state: The state the page was left in.
        version: A random part of tile addresses, so that browsers reuse no tile of an earlier session.
        listeners: Called after every change.
    """

    def __init__(self, folder: Path, name: str, slides: Path | None, settings: SeedSettings) -> None:
        """Lock and open a slide.

        Args:
            folder: The folder of outputs.
            name: The slide's name.
            slides: The folder of the slide files, if they were moved.
            settings: Settings of SIC.

        Raises:
            InputError: Another process has it open, or its files are damaged.
        """
        self.folder, self.name = folder, name
        self.listeners: set[Callable[[], None]] = set()
        self.seeding: Seeding | None = None
        self.layer: LabelLayer | None = None
        self.projection: Float[np.ndarray, "n 3"] | None = None
        self.projection_status = ""
        self.version = secrets.token_hex(4)
        self._lock = _lock_slide(folder, name)
        with ExitStack() as undo:  # what is open when something cannot be opened
            undo.callback(self._release_lock)
            thumbnail = None
            if _is_nonempty_file(folder / f"{name}{RECORD}"):
                embedded = open_embeddings(folder / f"{name}.embeddings.zarr")
                thumbnail = embedded.thumbnail
                facts = read_provenance(embedded)
                slide, self.encoder = facts.slide, facts.encoder.card.name
            else:
                slide, self.encoder = _read_record(folder / f"{name}.json")
            raise_if_stopped()
            self.picture = open_picture(slide, folder, slides, thumbnail)
            undo.callback(self.picture.close)
            raise_if_stopped()
            if thumbnail is not None:
                self.seeding = Seeding(folder, name, settings, self.notify)
                undo.callback(self.seeding.close)
                self.projection = read_projection(folder, name, self.seeding.patches.embedded)
            if (folder / f"{name}.ome.zarr").exists():
                labels = open_labels(folder / f"{name}.ome.zarr")
                check_labels(labels, slide)
                self.layer = LabelLayer(labels, self.picture.span)
            undo.pop_all()
        self._page_state_path = folder / f"{name}.view.json"
        self.page_state = read_page_state(self._page_state_path)
        self._save_timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def notify(self) -> None:
        """Call the listeners."""
        for listener in list(self.listeners):
            listener()

    def start(self) -> None:
        """Begin to load the embeddings, and to compute their projection if there is none."""
        loop = asyncio.get_running_loop()
        if self.seeding:
            self._tasks.append(loop.create_task(self.seeding.load()))
            if self.projection is None:
                self._tasks.append(loop.create_task(self._project()))

    def load_first_seeds(self, path: Path) -> None:
        """Take the seeds of a file before any are placed.

        Raises:
            InputError: There are seeds already, the slide is not embedded, or the file is damaged.
        """
        if self.seeding is None:
            raise InputError(f"{self.folder}: {self.name} has no patches to seed; fseg embed makes them")
        self.seeding.load_first_file(path)

    async def _project(self) -> None:
        """Compute the projection in another process; on failure set ``projection_status``."""
        assert self.seeding
        try:
            message = await self._run_umap()
        except Exception as error:
            message = explain(error, ())
        self.projection = read_projection(self.folder, self.name, self.seeding.patches.embedded)
        failed = self.projection is None
        self.projection_status = f"no UMAP: {message or 'it ended early'}" if failed else ""
        self.notify()

    async def _run_umap(self) -> str:
        """Run the projection program and follow its progress; return the last line of its stderr."""
        self.projection_status = "starting UMAP"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "fseg_jax.viewer.projection", str(self.folder), self.name),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout and process.stderr
        try:
            async for line in process.stdout:
                phase, fraction = json.loads(line)
                self.projection_status = f"{phase} ({fraction:.0%})" if fraction else phase
                self.notify()
            lines = (await process.stderr.read()).decode(errors="replace").strip().splitlines()
            await process.wait()
        except asyncio.CancelledError:
            if process.returncode is None:
                process.kill()
            await process.communicate()  # closes its pipes before the loop ends
            raise
        return lines[-1] if lines else ""

    def update_page_state(self, **changes: Any) -> None:
        """Change entries of the page's state; it is saved when it has not changed for a moment."""
        self.page_state = filter_page_state({**self.page_state, **changes})
        if self._save_timer:
            self._save_timer.cancel()
        self._save_timer = asyncio.get_running_loop().call_later(_SAVE_DELAY, self._save_page_state)

    def _save_page_state(self) -> None:
        self._save_timer = None
        try:
            write_page_state(self._page_state_path, self.page_state)
        except InputError as error:  # a viewpoint that is not saved must not stop the page
            if self.seeding:
                self.seeding.refuse(str(error))

    def close(self) -> None:
        """Save the page's state, stop all tasks, close the slide and unlock it."""
        if self._save_timer:
            self._save_timer.cancel()
            self._save_page_state()
        for task in self._tasks:
            task.cancel()
        if self.seeding:
            self.seeding.close()
        self.picture.close()
        self._release_lock()

    def _release_lock(self) -> None:
        if self._lock:
            self._lock.release()


def _lock_slide(folder: Path, name: str) -> Lock | None:
    """Lock a slide against other processes: two that write the same seeds would lose some."""
    try:
        return acquire_lock(folder / f".{name}.view.lock")
    except BlockingIOError:
        raise InputError(
            f"{folder}: {name} is open in another fseg view; use that one's page, or end it"
        ) from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); seeds are kept there") from None


def _is_nonempty_file(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _parse_record(record: Any) -> tuple[SlideFacts, str]:
    """Parse the slide and the encoder's name of a record.

    Raises:
        LookupError, TypeError, ValueError: The record is damaged.
    """
    encoder = record["encoder"]["name"]
    if not isinstance(encoder, str):
        raise TypeError("the encoder's name is no text")
    return SlideFacts.from_json(record["slide"]), encoder


def check_labels(labels: LabelPyramid, slide: SlideFacts) -> None:
    """Check that labels and the rest of a slide's outputs are of one image, and count from the same place.

    Raises:
        InputError: They do not: the labels would lie beside the slide.
    """
    made_of = labels.provenance.get("slide")
    made_of = made_of if isinstance(made_of, dict) else {}
    if (made_of.get("frame_y", 0), made_of.get("frame_x", 0)) != slide.origin:
        raise InputError(
            f"{labels.path}: its labels and the slide's embeddings count from different corners; make both "
            f"with --frame {slide.frame}"
        )
    if made_of.get("series") != slide.series:
        raise InputError(
            f"{labels.path}: its labels and the slide's embeddings are of different images of the file; make "
            "both with the same --series"
        )


def _read_record(path: Path) -> tuple[SlideFacts, str]:
    try:
        return _parse_record(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path}: is no record of fseg segment") from None
