"""Live seeding: what has been placed on a slide, and how Algorithm 1 labels the slide from it.

One for a slide, shared by every tab that shows it: a change in one is a change in all, in the order in which
they arrive, so that tabs cannot contradict each other. A change is on the disk before anybody is told of it.
Everything but :meth:`Seeding.load` and the clustering runs on the server's one thread and needs no locks;
the clustering runs beside it, always on the newest seeds, and what changes meanwhile is clustered next.

Embeddings stay on JAX's device between clicks, in one shape; a click compiles nothing, a class added or
removed compiles once.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from fseg_jax.errors import InputError, explain
from fseg_jax.methods import sic
from fseg_jax.numerics.pca import reduce_channels
from fseg_jax.outputs.embeddings import open_embeddings
from fseg_jax.pipeline.clicks import SeedSettings, assign_seeds, seed_slide
from fseg_jax.viewer.annotation import (
    Annotation,
    History,
    Seed,
    annotation_path,
    checked,
    load,
    save,
)
from fseg_jax.viewer.mask import MaskPainter

_log = logging.getLogger(__name__)

_CANDIDATES = 2000  # patches of which the most or least certain are chosen


class Result(NamedTuple):
    """The slide as labelled from ``annotation``: ``labels (n,)`` and ``soft (n, k)`` of the patches.

    ``mask`` is theirs, (h, w), class j as j + 1; ``shares (k,)`` how much of it each class has; ``score`` the
    F1 of the seeds; ``seconds`` what it took.
    """

    annotation: Annotation
    labels: Int[np.ndarray, " n"]
    soft: Float[np.ndarray, "n k"]
    score: float
    mask: np.ndarray
    shares: Float[np.ndarray, " k"]
    seconds: float


class Seeding:
    """An embedded slide under somebody's hands; ``tell`` is called after everything that changes.

    Raises ``InputError`` where the embeddings or the seeds of before are damaged, or the latter are of other
    classes than ``settings`` name.
    """

    def __init__(self, folder: Path, name: str, settings: SeedSettings, tell: Callable[[], None]) -> None:
        self.folder, self.name = folder, name
        self.embedded = open_embeddings(folder / f"{name}.embeddings.zarr")
        made = self.embedded.provenance
        self.size = (made["slide"]["height"], made["slide"]["width"])
        self.mpp = made["slide"]["mpp"]
        self.side = made["parameters"]["side_level0"]
        self.step = made["parameters"]["step"] * self.side / made["parameters"]["patch"]
        self._tell = tell
        self.result: Result | None = None
        self.scores: list[float] = []  # of the results so far
        self._refused, self._unlabelled = "", ""  # why the last step was not taken, why there is no result
        self.ready = self.busy = self.exporting = False
        self.settings = settings
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fseg-sic")
        self._tree = cKDTree(self.embedded.centers)
        self._stale = False
        self._compiled: set[int] = set()
        self._task: asyncio.Task[None] | None = None
        self._history = History(self._saved(settings.classes))

    # ------------------------------------------------------------------------------------ what is placed

    @property
    def now(self) -> Annotation:
        return self._history.now

    @property
    def can_undo(self) -> bool:
        return bool(self._history.past)

    @property
    def can_redo(self) -> bool:
        return bool(self._history.undone)

    @property
    def problem(self) -> str:
        """Why the last action was refused, or why there is no result, in a line; "" where all is well."""
        return self._refused or self._unlabelled

    def place(self, points: Float[np.ndarray, "m 2"], of: int) -> int:
        """Place seeds of a class at points (x, y), level-0 pixels, as one step; how many there were.

        Points on no patch are left out; where all are, that is the problem.
        """
        covered = self._covered(points)
        if not covered.any():
            self.refuse("no seed there: too little tissue for a patch")
            return 0
        seeds = tuple(Seed(round(float(x), 2), round(float(y), 2), of) for x, y in points[covered])
        return len(seeds) if self._attempt(lambda: self.now.with_seeds(seeds)) else 0

    def stroke(self, path: Float[np.ndarray, "m 2"], of: int) -> int:
        """Place a seed of a class in every patch that a line (x, y) leads through; how many."""
        points = _along(path, self.step / 4)
        points = points[self._covered(points)]
        if len(points):
            _, nearest = self._tree.query(points[:, ::-1])
            points = points[np.sort(np.unique(nearest, return_index=True)[1])]
        return self.place(points, of)

    def erase(self, path: Float[np.ndarray, "m 2"], radius: float) -> int:
        """Take away the seeds within ``radius`` of a line or point; how many."""
        seeds = self.now.seeds
        if not seeds:
            return 0
        xy = np.array([(s.x, s.y) for s in seeds])
        away, _ = cKDTree(_along(path, max(radius / 4, 1))).query(xy)
        kept = tuple(s for s, d in zip(seeds, away, strict=True) if d > radius)
        return len(seeds) - len(kept) if self._attempt(lambda: self.now._replace(seeds=kept)) else 0

    def rename(self, j: int, name: str) -> None:
        self._attempt(lambda: self.now.renamed(j, name))

    def add_class(self) -> int | None:
        """Add a class; its number, or None where it cannot be added."""
        return len(self.now.classes) - 1 if self._attempt(self.now.with_class) else None

    def remove_class(self, j: int) -> None:
        self._attempt(lambda: self.now.without_class(j))

    def load_file(self, path: Path, called: str = "") -> None:
        """Take classes and seeds from a file instead, as one step; ``called`` is what to call it in words."""

        def read() -> Annotation:
            try:
                return self._checked(load(path, self.now.classes), path)
            except InputError as error:
                raise InputError(str(error).replace(str(path), called or str(path))) from None

        self._attempt(read)

    def begin_with(self, path: Path) -> None:
        """Take classes and seeds from a file, where there are none yet; ``InputError`` if there are some."""
        kept = annotation_path(self.folder, self.name)
        if self.now.seeds:
            raise InputError(f"{kept}: has seeds already; load {path.name} on the page, or remove that file")
        new = self._checked(load(path, self.now.classes), path)
        if self.settings.classes and new.classes != self.now.classes:
            raise InputError(f"{path}: has the classes {', '.join(new.classes)}: leave --classes out")
        save(kept, new)
        self._history = History(new)

    def clear(self) -> None:
        self._attempt(lambda: self.now._replace(seeds=()))

    def undo(self) -> None:
        self._step(self._history.undo())

    def redo(self) -> None:
        self._step(self._history.redo())

    def choose(self, *, hard: bool, smooth: bool) -> None:
        """Set whether seeds keep their class, and whether neighbouring patches agree."""
        self.settings = SeedSettings(**{**vars(self.settings), "hard": hard, "smooth": smooth})
        self._refused = ""
        self._recluster()

    def _attempt(self, make: Callable[[], Annotation]) -> bool:
        """Take the step to what is made; whether it was taken. What it makes to be refused is the problem."""
        try:
            new = make()
        except Exception as error:
            self.refuse(self._said(error))
            return False
        return new != self.now and self._step(self._history.do(new))

    def _step(self, history: History) -> bool:
        """Make this the history once its present is on the disk. If it cannot be, nothing has changed but the
        problem, whatever was the reason.
        """
        if self.exporting:
            self.refuse("wait: an export is being written")
            return False
        if history is self._history:
            return False
        try:
            save(annotation_path(self.folder, self.name), history.now)
        except Exception as error:
            self.refuse(f"not done, as it cannot be saved: {self._said(error)}")
            return False
        self._history = history
        self._refused = ""
        self._recluster()
        return True

    def _said(self, error: Exception) -> str:
        """What went wrong, in a line; of what nobody foresaw the traceback is logged."""
        if not isinstance(error, InputError):
            _log.info("%s: the traceback:", self.name, exc_info=error)
        return explain(error, ())

    def refuse(self, problem: str) -> None:
        """Say why something was not done, until something is."""
        self._refused = problem
        self._tell()

    def _covered(self, points: Float[np.ndarray, "m 2"]) -> np.ndarray:
        """Which points (x, y) lie on the slide and on a patch."""
        xy = np.asarray(points, np.float64).reshape(-1, 2)
        height, width = self.size
        inside = (xy >= 0).all(1) & (xy[:, 0] < width) & (xy[:, 1] < height)
        away, _ = self._tree.query(np.where(inside[:, None], xy[:, ::-1], 0), p=np.inf)
        return inside & (away <= self.side / 2)

    def _saved(self, classes: tuple[str, ...] | None) -> Annotation:
        """What was placed before; ``InputError`` where the file is damaged, or names other classes."""
        path = annotation_path(self.folder, self.name)
        if not path.exists():
            return Annotation(checked(classes)) if classes else Annotation()
        saved = self._checked(load(path), path)
        if classes and checked(classes) != saved.classes:
            if saved.seeds:
                raise InputError(f"{path}: has seeds of {', '.join(saved.classes)}; rename those on the page")
            saved = Annotation(checked(classes))
        return saved

    def _checked(self, annotation: Annotation, path: Path) -> Annotation:
        self._on_patches(annotation, path)
        return annotation

    def _on_patches(self, annotation: Annotation, path: Path) -> Int[np.ndarray, " n"]:
        """The class of each patch, −1 for none: ``assign_seeds``, given only the patches near seeds."""
        y = np.full(len(self.embedded.centers), -1, np.int32)
        if annotation.seeds:
            xy = np.array([(s.x, s.y) for s in annotation.seeds])
            given = np.array([s.of for s in annotation.seeds])
            near = self._tree.query_ball_point(xy[:, ::-1], self.side / 2 * 1.001, p=np.inf)
            rows = np.unique([i for some in near for i in some] or [0]).astype(int)
            part = self.embedded._replace(centers=self.embedded.centers[rows])
            y[rows], _ = assign_seeds(xy, given, part, self.size, path)
        return y

    # ---------------------------------------------------------------------------------------- clustering

    async def load(self) -> None:
        """Read the embeddings, and label the slide from what was placed before."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._load)
        except Exception as error:
            self._unlabelled = f"cannot be segmented: {self._said(error)}"
            self._tell()
            return
        self.ready = True
        self._recluster()

    def _load(self) -> None:
        self._X = reduce_channels(self.embedded.read(), distance=self.settings.distance).X
        self._neighbours = jax.numpy.asarray(sic.find_neighbours(self.embedded.grid))
        self._painter = MaskPainter(self.embedded)
        self.mask_mpp = self._painter.mpp
        self._compile(len(self.now.classes))

    def _compile(self, classes: int) -> None:
        """Compile, once for so many classes, what clicks will run: by seeds that nobody placed."""
        if classes in self._compiled:
            return
        self._compiled.add(classes)
        n = len(self._X)
        for seeds in ((0, 1), (1,)) if classes == 2 else ((0, 1),):
            y = np.full(n, -1, np.int32)
            y[np.linspace(0, n - 1, len(seeds)).astype(int)] = seeds
            sic.fit(self._X, y, classes=classes, soft=True)

    def _recluster(self) -> None:
        self._stale = True
        if self.ready and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._cluster())
        self._tell()

    async def _cluster(self) -> None:
        loop = asyncio.get_running_loop()
        while self._stale:
            self._stale = False
            annotation, settings = self.now, self.settings
            self.busy = True
            try:
                self.result = await loop.run_in_executor(self._pool, self._fit, annotation, settings)
                if self.result:
                    self.scores = [*self.scores, self.result.score][-60:]
                seeded = self.result is None and annotation.seeds
                self._unlabelled = "place seeds of another class too" if seeded else ""
            except Exception as error:
                self.result = None  # what is shown would be of other seeds
                self._unlabelled = f"cannot be segmented: {self._said(error)}"
            finally:
                self.busy = False
            self._tell()

    def _fit(self, annotation: Annotation, settings: SeedSettings) -> Result | None:
        k = len(annotation.classes)
        self._compile(k)
        start = time.perf_counter()
        y = self._on_patches(annotation, annotation_path(self.folder, self.name))
        if len(np.unique(y[y >= 0])) < (1 if k == 2 else 2):
            return None
        fitted = sic.fit(
            self._X,
            y,
            classes=k,
            key=jax.random.key(settings.seed),
            metric=sic.METRICS[settings.metric],
            hard=settings.hard,
            soft=True,
            neighbours=self._neighbours if settings.smooth else None,
        )
        labels, soft = np.asarray(fitted.labels), np.asarray(fitted.soft)
        mask = self._painter.paint(labels, soft)
        pixels = np.bincount(mask.ravel(), minlength=k + 1)[1:]
        seconds = time.perf_counter() - start
        shares = pixels / max(1, pixels.sum())
        return Result(annotation, labels, soft, fitted.score, mask, shares, seconds)

    def certain(self, j: int, count: int) -> list[int]:
        """The patches that are most certainly of class j, none on another, by the margin of ``soft``."""
        if self.result is None or j >= self.result.soft.shape[1]:
            return []
        order = np.argsort(-np.where(self.result.labels == j, self._margin(), -1), kind="stable")
        return self._apart(order[: int((self.result.labels == j).sum())], count)

    def uncertain(self, count: int) -> list[int]:
        """The patches whose class is least certain, none on another."""
        if self.result is None:
            return []
        return self._apart(np.argsort(self._margin(), kind="stable"), count)

    def _margin(self) -> Float[np.ndarray, " n"]:
        assert self.result is not None
        two = np.sort(self.result.soft, axis=1)[:, -2:]
        return two[:, 1] - two[:, 0]

    def _apart(self, order: Int[np.ndarray, " m"], count: int) -> list[int]:
        chosen: list[int] = []
        centers = self.embedded.centers
        for i in order[:_CANDIDATES]:
            if all(np.abs(centers[i] - centers[c]).max() >= self.side for c in chosen):
                chosen.append(int(i))
                if len(chosen) == count:
                    break
        return chosen

    # -------------------------------------------------------------------------------------------- export

    async def export(self, anndata: bool) -> dict[str, Any] | None:
        """Write all that ``fseg seed`` writes, from the seeds as they are; None, and a problem, if it
        cannot.
        """
        if not self.now.seeds:
            self.refuse("nothing to export: place seeds first")
            return None
        if self.exporting:
            self.refuse("wait: an export is being written")
            return None
        settings = SeedSettings(**{**vars(self.settings), "classes": self.now.classes})
        self.exporting = True
        self._refused = ""
        self._tell()

        def write() -> dict[str, Any]:
            path = self.kept()
            return seed_slide(self.folder, path, settings, slide=self.name, anndata=anndata, overwrite=True)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, write)
        except Exception as error:
            self._refused = f"not written: {self._said(error)}"
            return None
        finally:
            self.exporting = False
            self._tell()

    def kept(self) -> Path:
        """The file of the seeds, written again where somebody removed it. Raises ``OutputError``."""
        path = annotation_path(self.folder, self.name)
        if not path.exists():
            save(path, self.now)
        return path

    def close(self) -> None:
        if self._task:
            self._task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _along(path: Float[np.ndarray, "m 2"], step: float) -> Float[np.ndarray, "p 2"]:
    """Points on a line of corners, no farther from each other than ``step``."""
    path = np.asarray(path, np.float64).reshape(-1, 2)

    def parts() -> Iterator[np.ndarray]:
        yield path[:1]
        for a, b in pairwise(path):
            n = max(1, int(np.ceil(np.hypot(*(b - a)) / step)))
            yield a + (b - a) * (np.arange(1, n + 1) / n)[:, None]

    return np.concatenate(list(parts())) if len(path) else path
