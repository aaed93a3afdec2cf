"""Live seeding of a slide: its seeds, saved at every change, and the segmentation that follows them.

A slide has one ``Seeding``, shared by all tabs that show it, so changes apply to every tab in order of
arrival. A change is on the disk before any tab hears of it. All methods run on the server's one thread and
need no locks; only loading, clustering and exporting run in a second thread. Clustering always takes the
newest seeds, and runs again if they change meanwhile.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from fseg_jax.errors import InputError, explain
from fseg_jax.outputs.embeddings import open_embeddings
from fseg_jax.pipeline.clicks import SeedSettings, seed_slide
from fseg_jax.pipeline.patch_records import read_provenance
from fseg_jax.pipeline.seed_file import CLASSES
from fseg_jax.viewer.annotation import (
    Annotation,
    History,
    Seed,
    check_classes,
    locate_annotation,
    read_annotation,
    write_annotation,
)
from fseg_jax.viewer.clustering import Clusterer, Result, rank_certain, rank_uncertain
from fseg_jax.viewer.patch_index import PatchIndex, interpolate_line

_log = logging.getLogger(__name__)

_SCORES_KEPT = 60


class Seeding:
    """The seeds of an embedded slide and its current segmentation. Points are (x, y) in level-0 pixels.

    Attributes:
        folder: The folder of outputs.
        name: The slide's name.
        path: The seeds file.
        patches: The patches, indexed by position.
        settings: Settings of SIC.
        result: The newest result, if enough classes have seeds.
        scores: Scores of the last results, the newest last.
        ready: Whether the embeddings are loaded.
        busy: Whether clustering runs.
        exporting: Whether an export runs.
    """

    def __init__(self, folder: Path, name: str, settings: SeedSettings, notify: Callable[[], None]) -> None:
        """Open the embeddings and the seeds file of a slide.

        Args:
            folder: The folder of outputs.
            name: The slide's name.
            settings: Settings of SIC.
            notify: Called after every change.

        Raises:
            InputError: The embeddings or the seeds file is damaged, or the seeds have other classes than the
                settings.
        """
        self.folder, self.name = folder, name
        self.path = locate_annotation(folder, name)
        self.patches = PatchIndex(open_embeddings(folder / f"{name}.embeddings.zarr"))
        self._slide = read_provenance(self.patches.embedded).slide
        self.settings = settings
        self.result: Result | None = None
        self.scores: list[float] = []
        self.ready = self.busy = self.exporting = False
        self._notify = notify
        self._refusal = ""  # why the last action was refused
        self._no_result = ""  # why there is no result
        self._clusterer = Clusterer(self.patches)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fseg-sic")
        self._stale = False
        self._task: asyncio.Task[None] | None = None
        self._history = History(self._read_saved(settings.classes))

    @property
    def annotation(self) -> Annotation:
        """The current classes and seeds."""
        return self._history.present

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to undo."""
        return bool(self._history.past)

    @property
    def can_redo(self) -> bool:
        """Whether there is a step to redo."""
        return bool(self._history.future)

    @property
    def problem(self) -> str:
        """Why the last action was refused, or why there is no result, in one line; "" if all is well."""
        return self._refusal or self._no_result

    # ------------------------------------------------------------------------------------ seeds and classes

    def place(self, points: Float[np.ndarray, "m 2"], j: int) -> int:
        """Place seeds of class j on the points that are on a patch, as one step; return their number."""
        covered = self.patches.find_covered(points)
        if not covered.any():
            self.refuse("no seed there: too little tissue for a patch")
            return 0
        seeds = tuple(Seed(round(float(x), 2), round(float(y), 2), j) for x, y in points[covered])
        return len(seeds) if self._change(lambda: self.annotation.add_seeds(seeds)) else 0

    def place_stroke(self, path: Float[np.ndarray, "m 2"], j: int) -> int:
        """Place a seed of class j on every patch that a line crosses, as one step; return their number."""
        return self.place(self.patches.sample_stroke(path), j)

    def erase(self, path: Float[np.ndarray, "m 2"], radius: float) -> int:
        """Remove the seeds within ``radius`` pixels of a line or point, as one step; return their number."""
        seeds = self.annotation.seeds
        if not seeds:
            return 0
        xy = np.array([(seed.x, seed.y) for seed in seeds])
        distances, _ = cKDTree(interpolate_line(path, max(radius / 4, 1))).query(xy)
        remaining = tuple(seed for seed, d in zip(seeds, distances, strict=True) if d > radius)
        changed = self._change(lambda: self.annotation._replace(seeds=remaining))
        return len(seeds) - len(remaining) if changed else 0

    def clear(self) -> None:
        """Remove all seeds."""
        self._change(lambda: self.annotation._replace(seeds=()))

    def add_class(self) -> int | None:
        """Add a class; return its index, or None if it is refused."""
        return len(self.annotation.classes) - 1 if self._change(self.annotation.add_class) else None

    def rename_class(self, j: int, name: str) -> None:
        """Rename class j."""
        self._change(lambda: self.annotation.rename_class(j, name))

    def remove_class(self, j: int) -> None:
        """Remove class j and its seeds."""
        self._change(lambda: self.annotation.remove_class(j))

    def load_file(self, path: Path, label: str = "") -> None:
        """Replace classes and seeds by those of a file, as one step.

        Args:
            path: The file.
            label: Its name in messages, if not its path.
        """

        def read() -> Annotation:
            try:
                return self._read_valid(path, self.annotation.classes)
            except InputError as error:
                raise InputError(str(error).replace(str(path), label or str(path))) from None

        self._change(read)

    def load_first_file(self, path: Path) -> None:
        """Take the classes and seeds of a file before any are placed.

        Raises:
            InputError: There are seeds already, the file is damaged, or its classes are not the settings'.
        """
        if self.annotation.seeds:
            raise InputError(
                f"{self.path}: has seeds already; load {path.name} on the page, or remove that file"
            )
        annotation = self._read_valid(path, self.annotation.classes)
        if self.settings.classes and annotation.classes != self.annotation.classes:
            raise InputError(f"{path}: has the classes {', '.join(annotation.classes)}: leave --classes out")
        write_annotation(self.path, annotation, self._slide)
        self._history = History(annotation)

    def undo(self) -> None:
        """Undo the last step."""
        self._commit(self._history.undo())

    def redo(self) -> None:
        """Redo the step that was undone last."""
        self._commit(self._history.redo())

    def set_options(self, *, hard: bool, smooth: bool) -> None:
        """Set whether seeds keep their class, and whether neighbouring patches agree."""
        self.settings = replace(self.settings, hard=hard, smooth=smooth)
        self._refusal = ""
        self._recluster()

    def refuse(self, problem: str) -> None:
        """Show why an action was refused, until the next one succeeds."""
        self._refusal = problem
        self._notify()

    def _change(self, make: Callable[[], Annotation]) -> bool:
        """Take the step to a new annotation; return whether it was taken. An error is shown as a refusal."""
        try:
            annotation = make()
        except Exception as error:
            self.refuse(self._explain(error))
            return False
        return annotation != self.annotation and self._commit(self._history.do(annotation))

    def _commit(self, history: History) -> bool:
        """Save a history's present, then make it current; if saving fails in any way, change nothing."""
        if self.exporting:
            self.refuse("wait: an export is being written")
            return False
        if history is self._history:
            return False
        try:
            write_annotation(self.path, history.present, self._slide)
        except Exception as error:
            self.refuse(f"not done, as it cannot be saved: {self._explain(error)}")
            return False
        self._history = history
        self._refusal = ""
        self._recluster()
        return True

    def _explain(self, error: Exception) -> str:
        """Explain an error in one line; log the traceback of an unexpected one."""
        if not isinstance(error, InputError):
            _log.info("%s: the traceback:", self.name, exc_info=error)
        return explain(error, ())

    def _read_saved(self, classes: tuple[str, ...] | None) -> Annotation:
        """Read the seeds file, or begin without seeds of these classes.

        Raises:
            InputError: The file is damaged, or has seeds of other classes.
        """
        if not self.path.exists():
            return Annotation(check_classes(classes)) if classes else Annotation()
        annotation = self._read_valid(self.path, CLASSES)
        if classes and check_classes(classes) != annotation.classes:
            if annotation.seeds:
                raise InputError(
                    f"{self.path}: has seeds of {', '.join(annotation.classes)}; rename those on the page"
                )
            annotation = Annotation(check_classes(classes))
        return annotation

    def _read_valid(self, path: Path, default: tuple[str, ...]) -> Annotation:
        """Read a seeds file and check that every seed is on a patch.

        Raises:
            InputError: The file is damaged, or a seed is on no patch.
        """
        annotation = read_annotation(path, default, slide=self._slide)
        self.patches.assign_classes(annotation, path)
        return annotation

    # ------------------------------------------------------------------------------------------- clustering

    async def load(self) -> None:
        """Load the embeddings, then cluster the saved seeds."""
        arguments = self.settings.distance, len(self.annotation.classes)
        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._clusterer.load, *arguments)
        except Exception as error:
            self._no_result = f"cannot be segmented: {self._explain(error)}"
            self._notify()
            return
        self.ready = True
        self._recluster()

    def _recluster(self) -> None:
        """Cluster the current seeds soon, and tell of the change."""
        self._stale = True
        if self.ready and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._cluster())
        self._notify()

    async def _cluster(self) -> None:
        """Cluster until the result is that of the current seeds."""
        loop = asyncio.get_running_loop()
        while self._stale:
            self._stale = False
            annotation, settings = self.annotation, self.settings
            self.busy = True
            try:
                self.result = await loop.run_in_executor(
                    self._pool, self._clusterer.fit, annotation, settings, self.path
                )
                if self.result:
                    self.scores = [*self.scores, self.result.score][-_SCORES_KEPT:]
                lacks_class = self.result is None and annotation.seeds
                self._no_result = "place seeds of another class too" if lacks_class else ""
            except Exception as error:
                self.result = None  # the last result belongs to other seeds
                self._no_result = f"cannot be segmented: {self._explain(error)}"
            finally:
                self.busy = False
            self._notify()

    def select_certain(self, j: int, count: int) -> list[int]:
        """Select the patches most certainly of class j, without overlaps."""
        if self.result is None or j >= self.result.soft.shape[1]:
            return []
        return self.patches.select_disjoint(rank_certain(self.result, j), count)

    def select_uncertain(self, count: int) -> list[int]:
        """Select the patches whose class is least certain, without overlaps."""
        if self.result is None:
            return []
        return self.patches.select_disjoint(rank_uncertain(self.result), count)

    # ----------------------------------------------------------------------------------------------- export

    async def export(self, anndata: bool) -> dict[str, Any] | None:
        """Write all that ``fseg seed`` writes, from the current seeds.

        Args:
            anndata: Whether to write the ``.h5ad`` file too.

        Returns:
            The record, or None if it is refused or fails; ``problem`` then says why.
        """
        if not self.annotation.seeds:
            self.refuse("nothing to export: place seeds first")
            return None
        if self.exporting:
            self.refuse("wait: an export is being written")
            return None
        settings = replace(self.settings, classes=self.annotation.classes)
        self.exporting = True
        self._refusal = ""
        self._notify()

        def write() -> dict[str, Any]:
            self.restore_file()
            return seed_slide(
                self.folder, self.path, settings, slide=self.name, anndata=anndata, overwrite=True
            )

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, write)
        except Exception as error:
            self._refusal = f"not written: {self._explain(error)}"
            return None
        finally:
            self.exporting = False
            self._notify()

    def restore_file(self) -> None:
        """Write the seeds file again if it was removed.

        Raises:
            OutputError: The file cannot be written.
        """
        if not self.path.exists():
            write_annotation(self.path, self.annotation, self._slide)

    def close(self) -> None:
        """Stop clustering."""
        if self._task:
            self._task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)
