"""How far clusters follow the site that a slide is from instead of the tissue in it.

Slides differ in their tissue, and so do any two groups of slides. So what clusters tell of the sites is
compared with what they tell of groups of whole slides drawn at random, as many and as large.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fseg_jax.numerics.metrics import mutual_information

GROUPINGS = 499  # that are drawn


class SiteIndex(NamedTuple):
    """How far clusters follow sites.

    Attributes:
        share: 0: no further than random groups of slides; 1: the cluster of a row tells its site.
        chance: the share of groupings that clusters follow as far, of those drawn and the true one.
    """

    share: float
    chance: float


def measure_site_index(
    counts: Int[np.ndarray, "slides k"], sites: Sequence[str], *, seed: int = 0
) -> SiteIndex | None:
    """Measure how far clusters follow sites; None where a site has one slide each, or there is one.

    With U the share of the uncertainty about a row's site that its cluster resolves (Theil's U), and E its
    mean over random groupings of whole slides, the share is (U − E) / (1 − E), and at least 0.

    Args:
        counts: rows of each slide in each cluster.
        sites: the site of each slide; an empty text: unknown, and left out.
        seed: seed of the groupings.

    >>> measure_site_index(np.array([[9, 0], [8, 0], [0, 7], [0, 9]]), ["a", "a", "b", "b"]).share
    1.0
    """
    known = np.array([bool(site) for site in sites], bool) & (counts.sum(1) > 0)
    names, codes = np.unique(np.array(sites, str)[known], return_inverse=True)
    if len(names) < 2 or len(codes) == len(names):
        return None
    table, is_of = counts[known].astype(float), np.eye(len(names))[codes]
    random = np.random.default_rng(seed)
    found = _resolve(table, is_of)
    drawn = np.array([_resolve(table, random.permutation(is_of)) for _ in range(GROUPINGS)])
    expected = drawn.mean()
    share = (found - expected) / (1 - expected) if expected < 1 else 0.0
    as_far = 1 + (drawn >= found - 1e-12).sum()
    return SiteIndex(max(0.0, float(share)), float(as_far / (1 + GROUPINGS)))


def _resolve(table: Float[np.ndarray, "slides k"], is_of: Float[np.ndarray, "slides groups"]) -> float:
    """Compute the share of the uncertainty about a row's group that its cluster resolves."""
    contingency = is_of.T @ table
    entropy = mutual_information(np.diag(contingency.sum(1)))  # of the groups with themselves
    return float(mutual_information(contingency) / entropy) if entropy > 0 else 0.0
