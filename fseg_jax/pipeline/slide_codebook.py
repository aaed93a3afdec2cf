"""A codebook fitted on one slide, for a slide that is segmented without one."""

import logging
from pathlib import Path

import jax
import numpy as np

from fseg_jax.codebook import Codebook, Provenance
from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.errors import InputError
from fseg_jax.numerics import kmeans
from fseg_jax.pipeline.plan import Plan, Settings
from fseg_jax.pipeline.tokens import FeatureSource, not_finite_error
from fseg_jax.process import Progress

_log = logging.getLogger(__name__)

_MOST_TILES, _MOST_TOKENS = 64, 16_384  # of a slide, that its codebook is fitted on


def fit_codebook(
    plan: Plan, source: FeatureSource, card: EncoderCard, settings: Settings, progress: Progress
) -> Codebook:
    """Fit k centres on a slide's own tissue tokens.

    The paper fits on the averages of many tiles a slide over a cohort (§3.3). One slide has too few tiles for
    that, so this fits on tokens: at most 16,384, of at most 64 tiles, drawn by the seed.

    Raises:
        InputError: The slide has fewer tokens of tissue than k, or a feature is not finite.
    """
    rng = np.random.default_rng(settings.seed)
    tiles = plan.tiles()
    if len(tiles) > _MOST_TILES:
        tiles = [tiles[i] for i in sorted(rng.choice(len(tiles), _MOST_TILES, replace=False))]
    tokens: list[np.ndarray] = []
    done = 0
    for batch, features in source(tiles):
        for tile, A in zip(batch, np.asarray(features), strict=False):
            tokens.append(A[plan.core_mask(*tile)])
            if not np.isfinite(A).all():
                raise not_finite_error(plan, card, tile)
        done += len(batch)
        progress("codebook", done, len(tiles))
    X = np.concatenate(tokens)
    file = Path(plan.slide.path).name
    if settings.k > len(X):
        fewer = "" if plan.mpp > 4 * card.mpp else "fewer clusters or "  # so coarse, no k would help
        raise InputError(
            f"--k {settings.k}: {file} has {len(X)} tokens of tissue at {plan.mpp:g} µm per pixel; "
            f"choose {fewer}a finer --mpp"
        )
    # As many as a power of two, where there are plenty: k-means then compiles once for slides of many sizes.
    sample = min(_MOST_TOKENS, 1 << (len(X).bit_length() - 1))
    if sample >= max(1024, 4 * settings.k) and sample < len(X):
        X = X[np.sort(rng.choice(len(X), sample, replace=False))]
    result = kmeans.fit(X.astype(np.float32), settings.k, key=jax.random.key(settings.seed))
    if not result.converged:
        _log.warning("%s: k-means has not converged in %d iterations", plan.name, result.iterations)
    # Clusters are numbered from the largest down, which is how their legend reads.
    counts = np.bincount(np.asarray(result.labels), minlength=settings.k)
    centers = np.asarray(result.centers)[np.argsort(-counts, kind="stable")]
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
    )
