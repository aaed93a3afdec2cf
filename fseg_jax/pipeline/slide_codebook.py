"""A codebook fitted on one slide, for a slide that is segmented without one."""

import logging
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from fseg_jax.codebook import Codebook, Provenance
from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.errors import InputError
from fseg_jax.numerics import kmeans
from fseg_jax.numerics.axes import normalize
from fseg_jax.pipeline.plan import Plan, Settings
from fseg_jax.pipeline.tokens import FeatureSource, not_finite_error
from fseg_jax.process import Progress

_log = logging.getLogger(__name__)

_MOST_TILES, _MOST_TOKENS = 64, 16_384  # of a slide, that its codebook is fitted on
_LEAST_TOKENS = 1024
_DEPTH = 40.0  # µm from the tissue's border, from which on a token sees hardly any glass
_PURE_SHARE = 0.5  # of the deep tokens: those that differ least from their neighbours
_TOKENS_PER_CENTER = 16  # pure tokens a centre, or else all tokens of tissue are taken


class _Tokens(NamedTuple):
    """The tokens of tissue of some tiles.

    Attributes:
        features: Their features.
        depth: How far each is from the tissue's border, in µm.
        change: How much each differs from its neighbours.
    """

    features: Float[np.ndarray, "n c"]
    depth: Float[np.ndarray, " n"]
    change: Float[np.ndarray, " n"]


def fit_codebook(
    plan: Plan, source: FeatureSource, card: EncoderCard, settings: Settings, progress: Progress
) -> Codebook:
    """Fit k centres on a slide's own tissue tokens, and centres of mixtures besides.

    The paper fits on the averages of many tiles a slide over a cohort (§3.3). One slide has too few tiles for
    that, so this fits on tokens: at most 16,384, of at most 64 tiles, drawn by the seed.

    A token whose receptive field holds glass, or two tissues, is a mixture. Were centres fitted on all
    tokens, some would be mixtures' own: shells round every piece of tissue, bands between tissues. So the k
    centres are fitted on pure tokens, deep in tissue and like their neighbours; those near the border get
    ``settings.mixtures`` centres, which take part in the factorization and name no cluster.

    Raises:
        InputError: The slide has fewer tokens of tissue than k, or a feature is not finite.
    """
    rng = np.random.default_rng(settings.seed)
    tiles = plan.tiles()
    if len(tiles) > _MOST_TILES:
        tiles = [tiles[i] for i in sorted(rng.choice(len(tiles), _MOST_TILES, replace=False))]
    tokens = _collect_tokens(plan, source, card, tiles, progress)
    file = Path(plan.slide.path).name
    if settings.k > len(tokens.features):
        fewer = "" if plan.mpp > 4 * card.mpp else "fewer clusters or "  # so coarse, no k would help
        raise InputError(
            f"--k {settings.k}: {file} has {len(tokens.features)} tokens of tissue at {plan.mpp:g} µm per "
            f"pixel; choose {fewer}a finer --mpp"
        )
    pure = _find_pure(tokens, settings)
    X = tokens.features[pure]
    key = jax.random.key(settings.seed)
    result = kmeans.fit(_draw_tokens(X, settings.k, _MOST_TOKENS, rng), settings.k, key=key)
    if not result.converged:
        _log.warning("%s: k-means has not converged in %d iterations", plan.name, result.iterations)
    # Clusters are numbered from the largest down, which is how their legend reads.
    counts = np.bincount(np.asarray(result.labels), minlength=settings.k)
    centers = np.asarray(result.centers)[np.argsort(-counts, kind="stable")]
    others = tokens.features[tokens.depth < _DEPTH]
    mixtures = None
    if settings.mixtures and len(others) >= _TOKENS_PER_CENTER * settings.mixtures:
        fitted = kmeans.fit(
            _draw_tokens(others, settings.mixtures, _LEAST_TOKENS, rng), settings.mixtures, key=key
        )
        if not fitted.converged:
            _log.warning(
                "%s: k-means of the tokens at the border has not converged in %d iterations",
                plan.name,
                fitted.iterations,
            )
        mixtures = np.asarray(fitted.centers)
    return Codebook(
        centers,
        Provenance(
            encoder=card.name,
            weights_hash=card.weights_hash,
            layer=card.layer,
            mpp=plan.mpp,
            tiles=len(tiles),
            seed=settings.seed,
            source=f"{file} itself, {len(X)} tokens",
        ),
        mixtures,
    )


def _collect_tokens(
    plan: Plan, source: FeatureSource, card: EncoderCard, tiles: list[tuple[int, int]], progress: Progress
) -> _Tokens:
    """Encode tiles and collect their tokens of tissue."""
    mask, mpp = plan.tissue.mask, plan.tissue.mpp
    framed = np.pad(mask, 1, mode="edge")  # the slide's frame is no border of tissue
    depth = ndimage.distance_transform_edt(framed)[1:-1, 1:-1] * mpp if not mask.all() else None
    parts: list[_Tokens] = []
    done = 0
    for batch, features in source(tiles):
        for tile, A in zip(batch, np.asarray(features), strict=False):
            if not np.isfinite(A).all():
                raise not_finite_error(plan, card, tile)
            core = plan.core_mask(*tile)
            parts.append(_Tokens(A[core], _measure_depth(plan, tile, core, depth), _measure_change(A)[core]))
        done += len(batch)
        progress("codebook", done, len(tiles))
    return _Tokens(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _measure_depth(
    plan: Plan, tile: tuple[int, int], core: Bool[np.ndarray, "t t"], depth: Float[np.ndarray, "h w"] | None
) -> Float[np.ndarray, " n"]:
    """Measure how far the core's tokens are from the tissue's border, in µm."""
    rows, columns = core.nonzero()
    if depth is None:
        return np.full(len(rows), np.inf)
    grid = plan.grid
    y, x, *_ = grid.locate_core(*tile)
    scale = plan.mpp / plan.tissue.mpp
    at = [
        np.clip((start - grid.halo + (places + 0.5) * grid.stride) * scale, 0, size - 1).astype(int)
        for start, places, size in ((y, rows, depth.shape[0]), (x, columns, depth.shape[1]))
    ]
    return np.asarray(depth[at[0], at[1]], float)


def _measure_change(A: Float[np.ndarray, "t t c"]) -> Float[np.ndarray, "t t"]:
    """Measure how much each token differs from its four neighbours, as unit vectors."""
    unit = normalize(A.astype(np.float32))
    change = np.zeros(A.shape[:2], np.float32)
    count = np.zeros(A.shape[:2], np.float32)
    for before, after in (
        ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
    ):
        difference = np.linalg.norm(unit[after] - unit[before], axis=-1)
        for side in (before, after):
            change[side] += difference
            count[side] += 1
    return change / np.maximum(count, 1)


def _find_pure(tokens: _Tokens, settings: Settings) -> Bool[np.ndarray, " n"]:
    """Find the tokens of one tissue: deep in it, and like their neighbours."""
    everything = np.ones(len(tokens.features), bool)
    if not settings.mixtures:
        return everything
    deep = tokens.depth >= _DEPTH
    if not deep.any():
        return everything
    pure = deep & (tokens.change <= np.quantile(tokens.change[deep], _PURE_SHARE))
    return pure if pure.sum() >= _TOKENS_PER_CENTER * settings.k else everything


def _draw_tokens(
    X: Float[np.ndarray, "n c"], k: int, most: int, rng: np.random.Generator
) -> Float[np.ndarray, "m c"]:
    """Draw 1024 tokens, 2048 …, ``most`` at the most: k-means then compiles once for slides of many sizes.

    Where there are fewer than 1024, all are taken, about as often; where so many would be too few for k
    centres, all are taken once.
    """
    sample = max(_LEAST_TOKENS, min(most, 1 << (len(X).bit_length() - 1)))
    if sample < 4 * k and sample < len(X):
        sample = len(X)
    repeats, more = divmod(sample, len(X))
    chosen = np.concatenate([np.arange(len(X)).repeat(repeats), rng.choice(len(X), more, replace=False)])
    return np.asarray(X[np.sort(chosen)], np.float32)
