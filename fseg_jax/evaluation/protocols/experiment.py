"""The paper's experiment (F-SEG §3.5, §4): every encoder, k, mode and protocol on one dataset.

Codebooks are fitted on the training split only; matching and probe are learnt there too, and every score is
of the test split. Beside F-SEG's two modes stand what they are to be compared with:

- *nearest*: no factorization, each token to its centre of highest cosine similarity, resized alike;
- *centres of tokens*: k-means on sampled tokens instead of tile averages (§3.3);
- *colour only*: the encoder ``classical``, which is added where others are evaluated.

What depends on k-means is averaged over several starts; ``f1_spread`` is their standard deviation.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.encoder import Encoder
from fseg_jax.errors import InputError
from fseg_jax.evaluation.data.datasets import Dataset
from fseg_jax.evaluation.data.features import Encoded, encode
from fseg_jax.evaluation.protocols import counts, linear_probe
from fseg_jax.evaluation.protocols.linear_probe import THRESHOLDS
from fseg_jax.evaluation.protocols.matching import confuse, match
from fseg_jax.files.partial_folders import recover_outputs
from fseg_jax.methods import fseg
from fseg_jax.numerics import kmeans, metrics
from fseg_jax.numerics.arrays import Centers
from fseg_jax.numerics.metrics import Interval, Scores
from fseg_jax.pipeline.record import together
from fseg_jax.process import Progress

PROTOCOLS = ("matching", "balanced matching", "probing", "balanced probing")
STARTS = 3
COLOUR = "classical"  # the encoder that every other is held against
TOKENS = 50_000  # that centres of tokens are fitted on, at most


class Row(NamedTuple):
    """One line of the table: how something was segmented and judged, and its scores on the test split.

    ``mode``: fixed, assign, nearest, or concepts (of the probe). ``centres``: of tiles, of tokens, or none.
    ``learnt_on``: the split that matching or probe was learnt on. ``scores`` are of the pixels of all images
    and all starts pooled, but ``f1`` and ``iou`` are means over the starts, with intervals over cases.
    ``gain`` is the F1 above that of *nearest*, same centres, k and protocol; ``above_colour`` that above
    *colour only*, same everything else. ``matrices``: confusion of each start and test case.
    """

    encoder: str
    mode: str
    centres: str
    k: int
    protocol: str
    learnt_on: str
    threshold: float | None
    chosen: bool
    starts: int
    f1: float
    f1_interval: Interval | None
    f1_spread: float | None
    f1_train: float
    iou: float
    iou_interval: Interval | None
    image_f1: float
    ari: float
    ari_interval: Interval | None
    mutual_information: float
    gain: float | None
    gain_interval: Interval | None
    above_colour: float | None
    above_colour_interval: Interval | None
    unseen_clusters: float | None
    unseen_pixels: float | None
    pairs: tuple[int, ...] | None
    scores: Scores
    confusion: list[list[int]]
    matrices: Int[np.ndarray, "starts cases n n"]


class Setting(NamedTuple):
    """What is swept, as ``evaluate`` was given it."""

    k: tuple[int, ...]
    modes: tuple[str, ...]
    protocols: tuple[str, ...]
    thresholds: tuple[float, ...]
    starts: int
    concepts: int
    same_split: bool
    mpp: float | None
    mpp_override: float | None
    tile: int | None
    seed: int
    panels: int


def evaluate(
    dataset: Dataset,
    encoders: Sequence[Encoder],
    *,
    out: Path,
    k: Sequence[int] = (16, 32, 64, 128, 256),
    modes: Sequence[str] = fseg.MODES,
    protocols: Sequence[str] = PROTOCOLS,
    thresholds: Sequence[float] = THRESHOLDS,
    starts: int = STARTS,
    concepts: int = fseg.CONCEPTS,
    same_split: bool = False,
    mpp: float | None = None,
    mpp_override: float | None = None,
    tile: int | None = None,
    seed: int = 0,
    panels: int = 6,
    overwrite: bool = False,
    report: Progress | None = None,
) -> list[Row]:
    """Evaluate encoders on a dataset as the F-SEG paper does, and write its tables and figures to ``out``.

    ``k`` cluster counts, ``starts`` k-means starts of each, ``concepts`` of each tile's factorization,
    ``thresholds`` of the probe; with ``same_split`` matching is also learnt on the test split itself, the
    paper's variant. Images are resized to ``mpp`` µm per pixel (each encoder's own) where the dataset's
    resolution is known or given by ``mpp_override``; otherwise they are taken as they are. ``panels`` test
    images are drawn. Features lie in a hidden folder in ``out`` until the end. ``evaluation.json`` is written
    last. Raises InputError for settings that cannot be, before anything is encoded.
    """
    started = time.time()
    setting = Setting(
        tuple(sorted(set(k))),
        tuple(modes),
        tuple(protocols),
        tuple(thresholds),
        starts,
        concepts,
        same_split,
        mpp,
        mpp_override,
        tile,
        seed,
        panels,
    )
    _check(dataset, encoders, setting)
    out = Path(out)
    recover_outputs("evaluation", out)
    if (out / "evaluation.json").exists() and not overwrite:
        raise InputError(f"{out / 'evaluation.json'} exists: choose another folder, or --overwrite")
    if all(encoder.card.name != COLOUR for encoder in encoders):
        encoders = [*encoders, classical()]
    from fseg_jax.evaluation.report import panels as pictures
    from fseg_jax.evaluation.report import plots, tables

    rows: list[Row] = []
    with together("evaluation.json", out) as made:
        for number, encoder in enumerate(encoders):
            with tempfile.TemporaryDirectory(dir=made, prefix=".features-") as folder:
                scale = _scale(dataset, encoder, setting)
                encoded = encode(dataset, encoder, Path(folder), scale=scale, tile=tile, report=report)
                rows += _Sweep(dataset, encoded, setting, report).rows()
                if number == 0 and panels:
                    pictures.write_panels(made / "panels", dataset, encoded, setting)
        colour = {_segmentation(row): row.matrices for row in rows if row.encoder == COLOUR and row.chosen}
        rows = [
            _above_colour(row, colour[_segmentation(row)], seed)
            if row.encoder != COLOUR and row.chosen and _segmentation(row) in colour
            else row
            for row in rows
        ]
        tables.write(made, dataset, rows)
        plots.write_matching(made, dataset, rows)
        plots.write_probing(made, dataset, rows)
        cards = [encoder.card for encoder in encoders]
        tables.write_record(made, dataset, cards, setting, rows, seconds=time.time() - started)
    return rows


def _check(dataset: Dataset, encoders: Sequence[Encoder], setting: Setting) -> None:
    names = [encoder.card.name for encoder in encoders]
    if not names or len(set(names)) < len(names):
        raise InputError(f"encoders {', '.join(names) or '(none)'}: name each of those to evaluate, once")
    if not setting.k or min(setting.k) < 2:
        raise InputError(f"k = {', '.join(map(str, setting.k)) or '(none)'}: give cluster counts from 2 up")
    for what, given, known in (
        ("mode", setting.modes, fseg.MODES),
        ("protocol", setting.protocols, PROTOCOLS),
    ):
        if not given or set(given) - set(known):
            raise InputError(f"{what} {', '.join(given) or '(none)'}: choose of {', '.join(known)}")
    for threshold in setting.thresholds:
        linear_probe.check_threshold(threshold)
    if setting.starts < 1:
        raise InputError(f"{setting.starts} k-means starts: one at least is needed")
    for split, verb in (("train", "learnt"), ("test", "tested")):
        if not dataset.held(split).any():
            raise InputError(
                f"{dataset.name}: no annotated pixel in the {split} split, so nothing can be {verb}: "
                "change the split"
            )
    for encoder in encoders:
        _scale(dataset, encoder, setting)


def _scale(dataset: Dataset, encoder: Encoder, setting: Setting) -> float:
    """What images are resized by: their µm per pixel over those to work at."""
    source = setting.mpp_override or dataset.mpp
    if source is None:
        if setting.mpp is not None:
            raise InputError(
                f"{dataset.name} does not say its µm per pixel, so --mpp {setting.mpp:g} cannot be reached: "
                "give --mpp-override too"
            )
        return 1.0
    return source / (setting.mpp or encoder.card.mpp)


class _Trial(NamedTuple):
    """One start's segmentation as counts: of each image by cluster and category, (items, k, n)."""

    counts: Int[np.ndarray, "items k n"]
    categories: Int[np.ndarray, " k"] | None = None  # what the probe says; matching is yet to be learnt


class _Sweep:
    """Everything that one encoder's features are used for; counts are made as they are needed."""

    def __init__(self, dataset: Dataset, encoded: Encoded, setting: Setting, report: Progress | None) -> None:
        self.dataset, self.encoded, self.setting = dataset, encoded, setting
        self.items, self.n = len(dataset.items), len(dataset.categories)
        self.train = np.array([item.split == "train" for item in dataset.items])
        cases = [item.case for item, train in zip(dataset.items, self.train, strict=True) if not train]
        self.case = np.unique(cases, return_inverse=True)[1]
        self.key = jax.random.key(setting.seed)
        self.report = report
        tiles = int(encoded.train.sum())
        if setting.k[-1] > tiles:
            raise InputError(
                f"k = {setting.k[-1]}: {dataset.name} has {tiles} training tiles of the encoder "
                f"{encoded.card.name!r}, fewer than centres: choose a smaller k, or a smaller --tile"
            )

    def rows(self) -> list[Row]:
        setting, rows = self.setting, []
        probing = [p for p in setting.protocols if p.endswith("probing")]
        matching = [p for p in setting.protocols if p.endswith("matching")]
        if probing or "assign" in setting.modes:
            fewest = min(tile.rows * tile.columns for tile in self.encoded.tiles)
            if setting.concepts > fewest:
                raise InputError(
                    f"{setting.concepts} concepts for a tile of {fewest} tokens: choose fewer with --concepts"
                )
            self.concepts = counts.concepts(self.encoded, setting.concepts, self.n, self.key, self.report)
        for protocol in probing:
            rows += self._probed(balanced=protocol.startswith("balanced"), protocol=protocol)
        if matching:
            for j, k in enumerate(setting.k):
                for i, centres in enumerate(("tiles", "tokens")):
                    rows += self._matched(k, centres, matching)
                    if self.report:
                        done, total = 2 * j + i + 1, 2 * len(setting.k)
                        self.report(f"cluster and match {self.encoded.card.name}", done, total)
        return rows

    # ------------------------------------------------------------------------------------- matching, §3.5.2

    def _matched(self, k: int, centres: str, protocols: list[str]) -> list[Row]:
        trials: dict[str, list[_Trial]] = {mode: [] for mode in ("nearest", *self.setting.modes)}
        for start in range(self.setting.starts):
            mu = fit_centres(self.encoded, k, centres, self.setting.seed, start)
            for mode, made in trials.items():
                made.append(_Trial(self._clusters(mode, mu)))
        rows = []
        for protocol in protocols:
            for learnt_on in ("train", "test") if self.setting.same_split else ("train",):
                bar: np.ndarray | None = None
                for mode, made in trials.items():
                    row = self._row(made, mode, centres, k, protocol, learnt_on=learnt_on, bar=bar)
                    bar = row.matrices if bar is None else bar
                    rows.append(row)
        return rows

    def _clusters(self, mode: str, mu: Centers) -> Int[np.ndarray, "items k n"]:
        if mode == "assign":
            names = np.asarray(fseg.name_concepts(jnp.asarray(self.concepts.H), mu))
            return counts.named(self.encoded, self.concepts, names, self.items, mu.shape[0])
        score = counts.fixed if mode == "fixed" else counts.nearest
        return counts.clusters(self.encoded, score, mu, self.items, self.n)

    # -------------------------------------------------------------------------------------- probing, §3.5.1

    def _probed(self, *, balanced: bool, protocol: str) -> list[Row]:
        H, by_category, train = self.concepts.H, self.concepts.counts, self.encoded.train
        rows = []
        for threshold in self.setting.thresholds:
            pairs = linear_probe.pairs(H[train], by_category[train], threshold)
            if not len(pairs.y):
                continue  # the table says which thresholds were tried
            probe = linear_probe.fit(pairs.X, pairs.y, self.n, balanced=balanced)
            names = linear_probe.classify(probe, H)
            trial = _Trial(
                counts.named(self.encoded, self.concepts, names, self.items, self.n), np.arange(self.n)
            )
            row = self._row([trial], "concepts", "none", self.setting.concepts, protocol)
            rows.append(row._replace(threshold=threshold, pairs=tuple(pairs.per_category.tolist())))
        best = max(range(len(rows)), key=lambda i: rows[i].f1_train, default=None)
        return [row._replace(chosen=i == best) for i, row in enumerate(rows)]

    # ------------------------------------------------------------------------------------------- one row

    def _row(
        self,
        trials: list[_Trial],
        mode: str,
        centres: str,
        k: int,
        protocol: str,
        *,
        learnt_on: str = "train",
        bar: np.ndarray | None = None,
    ) -> Row:
        """Judge one segmentation on the test split, beside ``bar``, the matrices of *nearest*."""
        balanced, learn = protocol.startswith("balanced"), self.train == (learnt_on == "train")
        confusions, tables, images, trains, unseen = [], [], [], [], []
        for trial in trials:
            categories = trial.categories
            if categories is None:
                matching = match(trial.counts[learn].sum(0), balanced=balanced, learnt_on=learnt_on)
                categories = matching.categories
                tested = trial.counts[~self.train].sum((0, 2))
                unseen.append((matching.unseen.sum(), tested[matching.unseen].sum() / tested.sum()))
            of_image = confuse(categories, trial.counts)
            trains.append(float(metrics.macro_f1(of_image[self.train].sum(0))))
            images += [s.f1 for s in metrics.score_images(of_image[~self.train]) if s]
            confusions.append(self._by_case(of_image[~self.train]))
            tables.append(self._by_case(trial.counts[~self.train]))
        matrices, contingency = np.stack(confusions), np.stack(tables)
        pooled = matrices.sum(1)
        each = metrics.macro_f1(pooled)
        judged = metrics.score(pooled.sum(0))
        assert judged is not None  # the test split has annotated pixels
        seed = self.setting.seed
        gain, gain_interval = (None, None) if bar is None else difference(matrices, bar, seed=seed)
        return Row(
            encoder=self.encoded.card.name,
            mode=mode,
            centres=centres,
            k=k,
            protocol=protocol,
            learnt_on=learnt_on,
            threshold=None,
            chosen=True,
            starts=len(trials),
            f1=float(each.mean()),
            f1_interval=metrics.bootstrap(metrics.macro_f1, matrices, seed=seed),
            f1_spread=float(each.std(ddof=1)) if len(each) > 1 else None,
            f1_train=float(np.mean(trains)),
            iou=float(metrics.macro_iou(pooled).mean()),
            iou_interval=metrics.bootstrap(metrics.macro_iou, matrices, seed=seed),
            image_f1=float(np.mean(images)),
            ari=float(metrics.adjusted_rand(contingency.sum(1)).mean()),
            ari_interval=metrics.bootstrap(metrics.adjusted_rand, contingency, seed=seed),
            mutual_information=float(metrics.mutual_information(contingency.sum(1)).mean()),
            gain=gain,
            gain_interval=gain_interval,
            above_colour=None,
            above_colour_interval=None,
            unseen_clusters=float(np.mean([u for u, _ in unseen])) if unseen else None,
            unseen_pixels=float(np.mean([p for _, p in unseen])) if unseen else None,
            pairs=None,
            scores=judged,
            confusion=pooled.sum(0).tolist(),
            matrices=matrices,
        )

    def _by_case(self, of_image: np.ndarray) -> np.ndarray:
        summed = np.zeros((self.case.max() + 1, *of_image.shape[1:]), np.int64)
        np.add.at(summed, self.case, of_image)
        return summed


def difference(
    ours: Int[np.ndarray, "starts cases n n"], theirs: Int[np.ndarray, "starts cases n n"], *, seed: int
) -> tuple[float, Interval | None]:
    """How much higher the macro F1 of one segmentation is than another's, and its 95 % interval over the
    cases, which are the same for both.
    """

    def of_pairs(pairs: np.ndarray) -> np.ndarray:
        f1 = metrics.macro_f1(pairs)
        return f1[..., 0] - f1[..., 1]

    pairs = np.stack([ours, theirs], 2)
    return float(of_pairs(pairs.sum(1)).mean()), metrics.bootstrap(of_pairs, pairs, seed=seed)


def _segmentation(row: Row) -> tuple:
    return row.mode, row.centres, row.k, row.protocol, row.learnt_on


def _above_colour(row: Row, colour: np.ndarray, seed: int) -> Row:
    above, interval = difference(row.matrices, colour, seed=seed)
    return row._replace(above_colour=above, above_colour_interval=interval)


def fit_centres(encoded: Encoded, k: int, centres: str, seed: int, start: int) -> Centers:
    """Centers fitted on the training split: of tile averages (§3.3), or of tokens."""
    X = encoded.means[encoded.train] if centres == "tiles" else encoded.sample(TOKENS, seed)
    key = jax.random.fold_in(jax.random.key(seed), start)
    return jnp.maximum(kmeans.fit(X, k, key=key).centers, 0)
