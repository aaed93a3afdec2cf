"""F-SEG's experiment (§3.5, §4) with one encoder on one dataset: every k, mode and protocol.

Codebooks are fitted on the training split only; matching and probe are learnt there too, and every score is
of the test split. Beside F-SEG's two modes stand what they are to be compared with:

- *nearest*: no factorization, each token to its centre of highest cosine similarity, resized alike;
- *centres of tokens*: k-means on sampled tokens instead of tile averages (§3.3);
- *colour only*: the encoder ``classical``, which is added where others are evaluated.

What depends on k-means is averaged over several starts; ``f1_spread`` is their standard deviation.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from fseg_jax.encoders.encoder import Encoder
from fseg_jax.errors import InputError
from fseg_jax.evaluation.data.datasets import Dataset, Split
from fseg_jax.evaluation.data.encoded_dataset import EncodedDataset
from fseg_jax.evaluation.protocols import counts, linear_probe
from fseg_jax.evaluation.protocols.counts import Concepts
from fseg_jax.evaluation.protocols.judging import Judge, RowKey, Segmentation
from fseg_jax.evaluation.results import CenterSource, EvaluationRow
from fseg_jax.evaluation.settings import MODES, PROTOCOLS, EvaluationSettings, Mode, Protocol
from fseg_jax.methods import fseg
from fseg_jax.numerics import kmeans
from fseg_jax.numerics.arrays import Centers
from fseg_jax.process import Progress

SAMPLED_TOKENS = 50_000  # that centres of tokens are fitted on, at most
_SPLITS: tuple[tuple[Split, str], ...] = (("train", "learnt"), ("test", "tested"))
_SOURCES: tuple[CenterSource, ...] = ("tiles", "tokens")


def check_settings(dataset: Dataset, encoders: Sequence[Encoder], settings: EvaluationSettings) -> None:
    """Raise ``InputError`` for settings that cannot be, before anything is encoded."""
    check_encoders(encoders)
    if not settings.k or min(settings.k) < 2:
        raise InputError(f"k = {', '.join(map(str, settings.k)) or '(none)'}: give cluster counts from 2 up")
    _check_words("mode", settings.modes, MODES)
    _check_words("protocol", settings.protocols, PROTOCOLS)
    for threshold in settings.thresholds:
        linear_probe.check_threshold(threshold)
    if settings.starts < 1:
        raise InputError(f"{settings.starts} k-means starts: one at least is needed")
    for split, verb in _SPLITS:
        if not dataset.count_pixels(split).any():
            raise InputError(
                f"{dataset.name}: no annotated pixel in the {split} split, so nothing can be {verb}: "
                "change the split"
            )
    for encoder in encoders:
        choose_scale(dataset, encoder, settings)


def _check_words(kind: str, given: Sequence[str], known: Sequence[str]) -> None:
    if not given or set(given) - set(known):
        raise InputError(f"{kind} {', '.join(given) or '(none)'}: choose of {', '.join(known)}")


def check_encoders(encoders: Sequence[Encoder]) -> None:
    """Raise ``InputError`` unless there is an encoder, and none of them twice."""
    names = [encoder.card.name for encoder in encoders]
    if not names or len(set(names)) < len(names):
        raise InputError(f"encoders {', '.join(names) or '(none)'}: name each of those to evaluate, once")


def choose_scale(dataset: Dataset, encoder: Encoder, settings: EvaluationSettings) -> float:
    """Choose the factor that images are resized by: their µm per pixel over those to work at.

    Raises:
        InputError: A resolution is asked for, and that of the images is not known.
    """
    source = settings.mpp_override or dataset.mpp
    if source is None:
        if settings.mpp is not None:
            raise InputError(
                f"{dataset.name} does not say its µm per pixel, so --mpp {settings.mpp:g} cannot be reached: "
                "give --mpp-override too"
            )
        return 1.0
    return source / (settings.mpp or encoder.card.mpp)


def score_encoder(
    dataset: Dataset, encoded: EncodedDataset, settings: EvaluationSettings, progress: Progress | None = None
) -> list[EvaluationRow]:
    """Segment a dataset in every way that the settings name, and judge each.

    Raises:
        InputError: There are fewer training tiles than clusters, or fewer tokens in a tile than concepts.
    """
    tiles = int(encoded.is_train.sum())
    if settings.k[-1] > tiles:
        raise InputError(
            f"k = {settings.k[-1]}: {dataset.name} has {tiles} training tiles of the encoder "
            f"{encoded.card.name!r}, fewer than centres: choose a smaller k, or a smaller --tile"
        )
    return _Sweep(dataset, encoded, settings, progress).rows()


def fit_centers(encoded: EncodedDataset, k: int, source: CenterSource, seed: int, start: int) -> Centers:
    """Fit centres on the training split: of tile averages (§3.3), or of tokens."""
    X = encoded.means[encoded.is_train] if source == "tiles" else encoded.sample(SAMPLED_TOKENS, seed)
    key = jax.random.fold_in(jax.random.key(seed), start)
    return jnp.maximum(kmeans.fit(X, k, key=key).centers, 0)


class _Sweep:
    """The experiment with one encoder."""

    def __init__(
        self,
        dataset: Dataset,
        encoded: EncodedDataset,
        settings: EvaluationSettings,
        progress: Progress | None,
    ):
        self.encoded, self.settings, self.progress = encoded, settings, progress
        self.items, self.n = len(dataset.items), len(dataset.categories)
        self.judge = Judge(dataset, settings.seed)

    def rows(self) -> list[EvaluationRow]:
        """Run the whole experiment."""
        settings, rows = self.settings, []
        probing = [protocol for protocol in settings.protocols if protocol.endswith("probing")]
        matching = [protocol for protocol in settings.protocols if protocol.endswith("matching")]
        concepts = self._find_concepts() if probing or "assign" in settings.modes else None
        for protocol in probing:
            assert concepts is not None
            rows += self._probe(protocol, concepts)
        if matching:
            for j, k in enumerate(settings.k):
                for i, source in enumerate(_SOURCES):
                    rows += self._match(k, source, matching, concepts)
                    if self.progress:
                        done, total = 2 * j + i + 1, 2 * len(settings.k)
                        self.progress(f"cluster and match {self.encoded.card.name}", done, total)
        return rows

    def _find_concepts(self) -> Concepts:
        fewest = min(tile.rows * tile.columns for tile in self.encoded.tiles)
        m = self.settings.concepts
        if m > fewest:
            raise InputError(f"{m} concepts for a tile of {fewest} tokens: choose fewer with --concepts")
        key = jax.random.key(self.settings.seed)
        return counts.find_concepts(self.encoded, m, self.n, key, self.progress)

    # ------------------------------------------------------------------------------------- matching, §3.5.2

    def _match(
        self, k: int, source: CenterSource, protocols: list[Protocol], concepts: Concepts | None
    ) -> list[EvaluationRow]:
        """Segment by k clusters without factorization and in each mode, and judge by each matching."""
        nearest: list[Segmentation] = []
        segmentations: dict[Mode, list[Segmentation]] = {mode: [] for mode in self.settings.modes}
        for start in range(self.settings.starts):
            mu = fit_centers(self.encoded, k, source, self.settings.seed, start)
            nearest.append(self._segment(counts.score_nearest, mu))
            for mode, of_mode in segmentations.items():
                if mode == "assign":
                    assert concepts is not None
                    of_mode.append(self._assign(concepts, mu))
                else:
                    of_mode.append(self._segment(counts.score_fixed, mu))
        rows = []
        learnt_on: tuple[Split, ...] = ("train", "test") if self.settings.same_split else ("train",)
        for protocol in protocols:
            for split in learnt_on:
                key = RowKey(self.encoded.card.name, "nearest", source, k, protocol, split)
                baseline = self.judge.make_row(key, nearest)
                rows.append(baseline)
                for mode, of_mode in segmentations.items():
                    rows.append(self.judge.make_row(key._replace(mode=mode), of_mode, baseline.matrices))
        return rows

    def _segment(self, score: counts.Score, mu: Centers) -> Segmentation:
        return Segmentation(counts.count_clusters(self.encoded, score, mu, self.items, self.n))

    def _assign(self, concepts: Concepts, mu: Centers) -> Segmentation:
        names = np.asarray(fseg.name_concepts(jnp.asarray(concepts.H), mu))
        return Segmentation(counts.count_named(self.encoded, concepts, names, self.items, mu.shape[0]))

    # -------------------------------------------------------------------------------------- probing, §3.5.1

    def _probe(self, protocol: Protocol, concepts: Concepts) -> list[EvaluationRow]:
        """Train and judge a probe for each threshold, and mark the one that is best on the training split."""
        is_train = self.encoded.is_train
        rows = []
        for threshold in self.settings.thresholds:
            pairs = linear_probe.collect_pairs(concepts.H[is_train], concepts.counts[is_train], threshold)
            if not len(pairs.y):
                continue  # the table says which thresholds were tried
            probe = linear_probe.fit(pairs.X, pairs.y, self.n, balanced=protocol.startswith("balanced"))
            segmentation = self._classify(concepts, linear_probe.classify(probe, concepts.H))
            key = RowKey(self.encoded.card.name, "concepts", "none", self.settings.concepts, protocol)
            row = self.judge.make_row(key, [segmentation])
            rows.append(replace(row, threshold=threshold, pairs=tuple(pairs.per_category.tolist())))
        best = max(range(len(rows)), key=lambda i: rows[i].f1_train, default=None)
        return [replace(row, chosen=i == best) for i, row in enumerate(rows)]

    def _classify(self, concepts: Concepts, categories: Int[np.ndarray, "tiles m"]) -> Segmentation:
        by_category = counts.count_named(self.encoded, concepts, categories, self.items, self.n)
        return Segmentation(by_category, np.arange(self.n))
