"""A slide that is looked at: its picture, its label layers, its seeds, its map, and how it was left."""

import asyncio
import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fseg_jax.errors import InputError, explain
from fseg_jax.files.lock import Lock, acquire_lock
from fseg_jax.files.partial_folders import recover_folder
from fseg_jax.outputs.embeddings import RECORD, embedded_slides, open_embeddings
from fseg_jax.outputs.labels import open_labels
from fseg_jax.pipeline.clicks import SeedSettings
from fseg_jax.pipeline.record import SlideFacts
from fseg_jax.process import raise_if_stopped
from fseg_jax.viewer.annotation import write_whole
from fseg_jax.viewer.picture import LabelLayer, open_picture
from fseg_jax.viewer.projection import read_projection
from fseg_jax.viewer.seeding import Seeding

_SAVED_AFTER = 0.3  # seconds in which the view has not moved


def list_slides(folder: Path) -> list[str]:
    """The slides of a folder that can be looked at: those embedded, and those segmented."""
    try:
        names = _names_in(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be looked into ({error.strerror})") from None
    if not names:
        raise InputError(f"{folder}: holds no slide to look at; make one with fseg embed SLIDE -o {folder}")
    return names


def _names_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        if folder.exists():
            raise InputError(f"{folder}: is a file; give the folder of outputs, such as {folder.parent}")
        raise InputError(f"{folder}: no such folder; fseg embed or fseg segment make one")
    recover_folder(folder)
    labels = [path.name.removesuffix(".ome.zarr") for path in folder.glob("[!.]*.ome.zarr")]
    segmented = (name for name in labels if not name.endswith(".sic") and _holds(folder / f"{name}.json"))
    return sorted({*embedded_slides(folder), *segmented})


class SlideSession:
    """One slide of a folder, for any number of tabs. ``listeners`` are called after everything that changes.

    ``seeding`` is None where the slide has no embeddings, ``layer`` where it has not been segmented. Raises
    ``InputError`` where another program has it open, or its files are damaged.
    """

    def __init__(self, folder: Path, name: str, slides: Path | None, settings: SeedSettings) -> None:
        self.folder, self.name = folder, name
        self.listeners: set[Callable[[], None]] = set()
        self.seeding: Seeding | None = None
        self.layer: LabelLayer | None = None
        self.map: np.ndarray | None = None
        self.map_progress = ""
        self.version = secrets.token_hex(4)  # in the tiles' addresses: a browser keeps those of before
        self._lock = _lock(folder, name)
        try:
            thumbnail = None
            if _holds(folder / f"{name}{RECORD}"):
                embedded = open_embeddings(folder / f"{name}.embeddings.zarr")
                thumbnail = embedded.thumbnail
                slide, self.encoder = _parse_record(embedded.provenance)
            else:
                slide, self.encoder = _read_record(folder / f"{name}.json")
            raise_if_stopped()
            self.picture = open_picture(slide, folder, slides, thumbnail)
            raise_if_stopped()
            if thumbnail is not None:
                self.seeding = Seeding(folder, name, settings, self.tell)
                self.map = read_projection(folder, name, self.seeding.embedded)
            if (folder / f"{name}.ome.zarr").exists():
                self.layer = LabelLayer(open_labels(folder / f"{name}.ome.zarr"), self.picture.span)
        except BaseException:
            self._release_lock()
            raise
        self._view_path = folder / f"{name}.view.json"
        self.view: dict[str, Any] = _left(self._view_path)
        self._saving: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def tell(self) -> None:
        for listener in list(self.listeners):
            listener()

    def start(self) -> None:
        """Begin what takes time: reading the embeddings, and the map where there is none yet."""
        loop = asyncio.get_running_loop()
        if self.seeding:
            self._tasks.append(loop.create_task(self.seeding.load()))
            if self.map is None:
                self._tasks.append(loop.create_task(self._project()))

    def begin_with(self, seeds: Path) -> None:
        """Take the seeds of a file, where none have been placed yet. Raises ``InputError`` if some have."""
        if self.seeding is None:
            raise InputError(f"{self.folder}: {self.name} has no patches to seed; fseg embed makes them")
        self.seeding.begin_with(seeds)

    async def _project(self) -> None:
        """Have the map computed, and where it cannot be, say so."""
        assert self.seeding
        try:
            said = await self._run_umap()
        except Exception as error:
            said = explain(error, ())
        self.map = read_projection(self.folder, self.name, self.seeding.embedded)
        self.map_progress = "" if self.map is not None else f"no UMAP: {said or 'it ended early'}"
        self.tell()

    async def _run_umap(self) -> str:
        """Have the map computed by a program of its own; the last line that it says, of what is wrong."""
        self.map_progress = "starting UMAP"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "fseg_jax.viewer.projection", str(self.folder), self.name),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout and process.stderr
        try:
            async for line in process.stdout:
                phase, done = json.loads(line)
                self.map_progress = f"{phase} ({done:.0%})" if done else phase
                self.tell()
            said = (await process.stderr.read()).decode(errors="replace").strip().splitlines()
            await process.wait()
        except asyncio.CancelledError:
            if process.returncode is None:
                process.kill()
            await process.communicate()  # its pipes are the loop's, which ends
            raise
        return said[-1] if said else ""

    def keep_view(self, **changes: Any) -> None:
        """Remember how the page was left; written when it has not changed for a moment."""
        self.view = _valid({**self.view, **changes})
        if self._saving:
            self._saving.cancel()
        self._saving = asyncio.get_running_loop().call_later(_SAVED_AFTER, self._save_view)

    def _save_view(self) -> None:
        self._saving = None
        try:
            write_whole(self._view_path, json.dumps(self.view, indent=1, ensure_ascii=False) + "\n")
        except InputError as error:  # where somebody looked is not worth an interruption
            if self.seeding:
                self.seeding.refuse(str(error))

    def close(self) -> None:
        if self._saving:
            self._saving.cancel()
            self._save_view()
        for task in self._tasks:
            task.cancel()
        if self.seeding:
            self.seeding.close()
        self.picture.close()
        self._release_lock()

    def _release_lock(self) -> None:
        if self._lock:
            self._lock.release()


def _lock(folder: Path, name: str) -> Lock | None:
    """Lock a slide for this program alone: two that wrote the same seeds would lose some."""
    try:
        return acquire_lock(folder / f".{name}.view.lock")
    except BlockingIOError:
        raise InputError(
            f"{folder}: {name} is open in another fseg view; use that one's page, or end it"
        ) from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); seeds are kept there") from None


def _holds(path: Path) -> bool:
    """Whether there is a file, and something in it."""
    return path.is_file() and path.stat().st_size > 0


def _parse_record(record: Any) -> tuple[SlideFacts, str]:
    """Get the slide and the encoder's name from a record; LookupError, TypeError or ValueError without."""
    encoder = record["encoder"]["name"]
    if not isinstance(encoder, str):
        raise TypeError("the encoder's name is no text")
    return SlideFacts.from_json(record["slide"]), encoder


def _read_record(path: Path) -> tuple[SlideFacts, str]:
    try:
        return _parse_record(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path}: is no record of fseg segment") from None


def _left(path: Path) -> dict[str, Any]:
    """How the page was left; where the file is not ours, as if it had never been session."""
    try:
        return _valid(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}


def _valid(view: Any) -> dict[str, Any]:
    """What is as the page leaves it, and nothing else."""
    if not isinstance(view, dict):
        return {}
    return {name: view[name] for name, fits in _LEFT.items() if name in view and fits(view[name])}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _FARTHEST


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int for v in value)


def _place(value: Any) -> bool:
    """Whether it is the middle of a view and its scale, in µm; None is the whole slide."""
    if value is None:
        return True
    return (
        isinstance(value, dict)
        and value.keys() == {"x", "y", "scale"}
        and all(_number(v) for v in value.values())
        and value["scale"] > 0
    )


_FARTHEST = 1e9  # µm
_LEFT: dict[str, Callable[[Any], bool]] = {  # of .view.json: what is kept there, and what it may be
    "view": _place,
    **dict.fromkeys(("mode", "class", "coloured"), lambda value: type(value) is int),
    **dict.fromkeys(("unseen", "hidden"), _numbers),
    **dict.fromkeys(("result_on", "layer_on"), lambda value: isinstance(value, bool)),
    **dict.fromkeys(
        ("result_alpha", "layer_alpha", "map_alpha"), lambda value: _number(value) and 0 <= value <= 1
    ),
    "map_as": lambda value: isinstance(value, str),
}
