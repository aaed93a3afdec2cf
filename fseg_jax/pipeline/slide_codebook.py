"""A codebook fitted on one slide, for a slide that is segmented without one."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from fseg_jax.codebook import Codebook, Provenance
from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.errors import InputError
from fseg_jax.numerics import kmeans
from fseg_jax.pipeline.plan import Plan, Settings
from fseg_jax.pipeline.pure_tokens import TOKENS_PER_CENTER, find_deep, find_pure, measure_change
from fseg_jax.pipeline.tokens import FeatureSource, not_finite_error
from fseg_jax.process import Progress

_log = logging.getLogger(__name__)

_MOST_TILES, _MOST_TOKENS = 64, 16_384  # of a slide, that its codebook is fitted on
_LEAST_TOKENS = 1024


class _Tokens(NamedTuple):
    """The tokens of tissue of some tiles.

    Attributes:
        features: Their features.
        deep: Whether each is at least 40 µm from the tissue's border.
        change: How much each differs from its neighbours.
    """

    features: Float[np.ndarray, "n c"]
    deep: Bool[np.ndarray, " n"]
    change: Float[np.ndarray, " n"]


def fit_codebook(
    plan: Plan, source: FeatureSource, card: EncoderCard, settings: Settings, progress: Progress
) -> Codebook:
    """Fit k centres on a slide's own tissue tokens, and centres of mixtures besides.

    The paper fits on the averages of many tiles a slide over a cohort (§3.3). One slide has too few tiles for
    that, so this fits on tokens: at most 16,384, of at most 64 tiles, drawn by the seed.

    The k centres are fitted on pure tokens, deep in tissue and like their neighbours (``pure_tokens``). Those
    near the border get ``settings.mixtures`` centres, which take part in the factorization and name no
    cluster.

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
        what_to_do = f"choose {fewer}a finer --mpp"
        if not plan.tissue.drop_artefacts().mask.any():
            what_to_do = "all of its tissue is ink, folded or out of focus, and only --codebook labels that"
        raise InputError(
            f"--k {settings.k}: {file} has {len(tokens.features)} tokens of tissue without "
            f"artefacts at {plan.mpp:g} µm per pixel; {what_to_do}"
        )
    X = _choose_pure(tokens, settings)
    key = jax.random.key(settings.seed)
    result = kmeans.fit(_draw_tokens(X, settings.k, _MOST_TOKENS, rng), settings.k, key=key)
    if not result.converged:
        _log.warning("%s: k-means has not converged in %d iterations", plan.name, result.iterations)
    # Clusters are numbered by their pure tokens, from the most down: nearly the order of their areas.
    counts = np.bincount(np.asarray(result.labels), minlength=settings.k)
    centers = np.asarray(result.centers)[np.argsort(-counts, kind="stable")]
    others = tokens.features[~tokens.deep]
    mixtures = None
    if settings.mixtures and len(others) >= TOKENS_PER_CENTER * settings.mixtures:
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
            stain_normalization=plan.gains is not None,
        ),
        mixtures,
    )


def _collect_tokens(
    plan: Plan, source: FeatureSource, card: EncoderCard, tiles: list[tuple[int, int]], progress: Progress
) -> _Tokens:
    """Encode tiles and collect their tokens of tissue that is no artefact."""
    clean = replace(plan, tissue=plan.tissue.drop_artefacts())
    deep = replace(plan, tissue=find_deep(clean.tissue))
    parts: list[_Tokens] = []
    done = 0
    for batch, features in source(tiles):
        for tile, A in zip(batch, np.asarray(features), strict=False):
            if not np.isfinite(A).all():
                raise not_finite_error(plan, card, tile)
            core = clean.core_mask(*tile)
            parts.append(_Tokens(A[core], deep.core_mask(*tile)[core], measure_change(A)[core]))
        done += len(batch)
        progress("codebook", done, len(tiles))
    progress("clustering", 0, 0)
    return _Tokens(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _choose_pure(tokens: _Tokens, settings: Settings) -> Float[np.ndarray, "m c"]:
    """Choose the tokens of one tissue; all, where there are few or the settings want no mixtures."""
    if not settings.mixtures:
        return tokens.features
    pure = find_pure(tokens.deep, tokens.change)
    enough = pure.sum() >= TOKENS_PER_CENTER * settings.k
    return tokens.features[pure] if enough else tokens.features


def _draw_tokens(
    X: Float[np.ndarray, "n c"], k: int, most: int, rng: np.random.Generator
) -> Float[np.ndarray, "m c"]:
    """Draw 1024 tokens, 2048 …, ``most`` at the most: k-means then compiles once for slides of many sizes.

    Where there are fewer than 1024, they are repeated, each about as often; where so many would be too few
    for k centres, all are taken once.
    """
    sample = max(_LEAST_TOKENS, min(most, 1 << (len(X).bit_length() - 1)))
    if sample < 4 * k and sample < len(X):
        sample = len(X)
    repeats, more = divmod(sample, len(X))
    chosen = np.concatenate([np.arange(len(X)).repeat(repeats), rng.choice(len(X), more, replace=False)])
    return np.asarray(X[np.sort(chosen)], np.float32)
