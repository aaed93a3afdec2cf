"""How well an encoder's tokens know their tissue, by their nearest neighbours: nothing is fitted."""

import numpy as np
from jaxtyping import Float, Int

from fseg_jax.errors import InputError
from fseg_jax.evaluation.data.features import Encoded
from fseg_jax.numerics.axes import normalize
from fseg_jax.numerics.metrics import macro_f1

NEIGHBOURS = 20
PURE = 0.75  # of a token's pixels must be of one category for it to count
MOST = 4000  # tokens of each split


def knn_f1(encoded: Encoded, categories: int, *, seed: int = 0) -> float:
    """The macro F1 of the test split's tokens, each called as most of its 20 nearest training tokens are.

    Nearest by cosine; at most 4,000 tokens a split, drawn by the seed, of those that are three quarters of
    one category. Raises ``InputError`` where a split has none.
    """
    X, of_train = _tokens(encoded, True, categories, seed)
    Y, of_test = _tokens(encoded, False, categories, seed)
    if not (len(X) and len(Y)):
        raise InputError("no token of the training or of the test split is of one category: nothing to score")
    neighbours = min(NEIGHBOURS, len(X))
    nearest = np.argpartition(-(Y @ X.T), neighbours - 1, axis=1)[:, :neighbours]
    votes = np.stack([(of_train[nearest] == c).sum(1) for c in range(categories)], axis=1)
    confusion = np.zeros((categories, categories), int)
    np.add.at(confusion, (of_test, votes.argmax(1)), 1)
    return float(macro_f1(confusion))


def _tokens(
    encoded: Encoded, train: bool, categories: int, seed: int
) -> tuple[Float[np.ndarray, "n c"], Int[np.ndarray, " n"]]:
    """Tokens of unit length of one split, and what each is."""
    stride = encoded.card.stride
    tokens, labels = [np.empty((0, encoded.card.channels), np.float32)], [np.empty(0, int)]
    for t in np.flatnonzero(encoded.train == train):
        truth = encoded.categories(int(t))
        rows, columns = truth.shape[0] // stride, truth.shape[1] // stride
        blocks = truth.reshape(rows, stride, columns, stride)
        share = np.stack([(blocks == c).mean((1, 3)).ravel() for c in range(categories)], axis=1)
        pure = np.flatnonzero(share.max(1) >= PURE)
        tokens.append(encoded.tokens(int(t)).reshape(rows * columns, -1)[pure])
        labels.append(share[pure].argmax(1))
    X, y = np.concatenate(tokens), np.concatenate(labels)
    kept = np.sort(np.random.default_rng(seed).permutation(len(X))[:MOST])
    return normalize(X[kept]), y[kept]
