"""What is sampled of a tile: the rows that centres are fitted on, and tokens at the border of tissue.

Centres are of one tissue each: rows are of pure tokens (``pipeline/pure_tokens.py``), and tokens near the
border are kept apart, for centres of mixtures; neither are of the tile's frame. The paper's way takes every
token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from fseg_jax.outputs.codebook_card import RowFacts, join_facts
from fseg_jax.pipeline.pure_tokens import find_pure, measure_change
from fseg_jax.slides.tissue import Tissue

TOKENS_PER_TILE = 4  # at least, where rows are tokens, and likewise at the border
TOKENS_PER_SLIDE = 1024  # at least, where its tiles have so many


class Rows(NamedTuple):
    """Rows of features, and what is known of each.

    Attributes:
        features: The features.
        tiles: The index of each row's tile.
        tokens: The (y, x) of each row's token in its tile's grid; of averages, 0.
        facts: What the card tells of them.
    """

    features: Float[np.ndarray, "n c"]
    tiles: Int[np.ndarray, " n"]
    tokens: Int[np.ndarray, "n 2"]
    facts: RowFacts


class TileRows(NamedTuple):
    """What is sampled of a tile.

    Attributes:
        rows: Those that centres are fitted on; none where no token lies deep in tissue.
        thin: Rows of any tissue, which take their place on a slide so thin that none of its tiles has those.
        border: Tokens at the border of tissue.
    """

    rows: Rows
    thin: Rows
    border: Rows


class TileTokens(NamedTuple):
    """The tokens of a tile.

    Attributes:
        features: Their features.
        tissue: Whether each lies on tissue.
        deep: Whether each is deep in it.
        glass: Which share of each is glass.
        contrast: The standard deviation of the grey values in each, of 255.
        inner: Whether each lies inside the tile's frame, a sixteenth of its side, where an encoder sees too
            little round a token; a segmentation does not use those either.
    """

    features: Float[np.ndarray, "t t c"]
    tissue: Bool[np.ndarray, "t t"]
    deep: Bool[np.ndarray, "t t"]
    glass: Float[np.ndarray, "t t"]
    contrast: Float[np.ndarray, "t t"]
    inner: Bool[np.ndarray, "t t"]


def describe_tokens(
    features: Float[np.ndarray, "t t c"],
    image: UInt8[np.ndarray, "side side 3"],
    corner: tuple[int, int],
    mpp: float,
    tissue: Tissue,
    deep: Tissue,
) -> TileTokens:
    """Describe the tokens of a tile whose corner (y, x) is in pixels of ``mpp`` µm.

    ``deep`` is the part of the tissue that is deep in it.
    """
    t, side = len(features), len(image)
    stride = side // t
    y, x = (start // stride for start in corner)
    cells = (t, stride, t, stride)
    return TileTokens(
        features,
        tissue.crop(y, x, t, t, mpp * stride),
        deep.crop(y, x, t, t, mpp * stride),
        1 - tissue.crop(*corner, side, side, mpp).reshape(cells).mean((1, 3)),
        image.mean(-1).reshape(cells).std((1, 3)),
        _find_inner(t),
    )


def _find_inner(t: int) -> Bool[np.ndarray, "t t"]:
    frame = min(-(-t // 16), (t - 1) // 2)
    inner = np.zeros((t, t), bool)
    inner[frame : t - frame, frame : t - frame] = True
    return inner


def count_tokens(tiles: int) -> int:
    """Count the tokens to sample of each of a slide's tiles: four, or more where the slide has few tiles."""
    return max(TOKENS_PER_TILE, -(-TOKENS_PER_SLIDE // tiles))


def sample_tokens(
    tokens: TileTokens, tile: int, order: Int[np.ndarray, " n"], count: int, pure: bool
) -> TileRows:
    """Sample some tokens of a tile, the first in ``order`` that will do, and as many at its border.

    ``pure`` is False for the paper's way, which takes any.
    """
    none = _take(tokens, tile, order[:0])
    if not pure:
        rows = _take(tokens, tile, order[:count])
        return TileRows(rows, none, none)
    border = _take(tokens, tile, _choose(order, tokens.tissue & ~tokens.deep & tokens.inner, count))
    thin = _take(tokens, tile, _choose(order, tokens.tissue & ~tokens.deep, count))
    are_pure = find_pure(tokens.deep & tokens.inner, measure_change(tokens.features))
    return TileRows(_take(tokens, tile, _choose(order, are_pure, count)), thin, border)


def sample_average(
    tokens: TileTokens, tile: int, order: Int[np.ndarray, " n"], count: int, pure: bool
) -> TileRows:
    """Sample the average of a tile's tokens that are deep in tissue, and some tokens at its border.

    ``pure`` is False for the paper's way, which averages all.
    """
    none = _take(tokens, tile, order[:0])
    if not pure:
        rows = _average(tokens, tile, np.ones_like(tokens.deep))
        return TileRows(rows, none, none)
    border = _take(tokens, tile, _choose(order, tokens.tissue & ~tokens.deep & tokens.inner, count))
    return TileRows(_average(tokens, tile, tokens.deep), _average(tokens, tile, tokens.tissue), border)


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Join rows, one below the other."""
    return Rows(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.tiles for part in parts]),
        np.concatenate([part.tokens for part in parts]),
        join_facts([part.facts for part in parts]),
    )


def _choose(
    order: Int[np.ndarray, " n"], allowed: Bool[np.ndarray, "t t"], count: int
) -> Int[np.ndarray, " m"]:
    """Choose the first tokens in an order of those that are allowed."""
    return np.asarray(order[allowed.ravel()[order]][:count])


def _take(tokens: TileTokens, tile: int, chosen: Int[np.ndarray, " m"]) -> Rows:
    """Take tokens as rows."""
    y, x = np.divmod(chosen, len(tokens.features))
    facts = RowFacts(tokens.glass[y, x], 1.0 - tokens.deep[y, x], tokens.contrast[y, x])
    return Rows(tokens.features[y, x], np.full(len(chosen), tile), np.stack([y, x], -1), facts)


def _average(tokens: TileTokens, tile: int, chosen: Bool[np.ndarray, "t t"]) -> Rows:
    """Average tokens into a row; no row where there are none."""
    at = chosen.nonzero()
    n = int(len(at[0]) > 0)
    facts = RowFacts(
        *(
            np.full(n, values[at].mean() if n else 0.0)
            for values in (tokens.glass, ~tokens.deep, tokens.contrast)
        )
    )
    features = tokens.features[at].mean(0, keepdims=True)[:n] if n else tokens.features[0, :0]
    return Rows(features, np.full(n, tile), np.zeros((n, 2), int), facts)
