"""The score of an encoder's tokens by their nearest neighbours: nothing is fitted."""

import numpy as np
from jaxtyping import Float, Int

from fseg_jax.errors import InputError
from fseg_jax.evaluation.data.encoded_dataset import EncodedDataset
from fseg_jax.numerics.axes import normalize
from fseg_jax.numerics.metrics import macro_f1

NEIGHBOURS = 20
PURE_SHARE = 0.75  # share of a token's pixels that must be of one category for the token to count
TOKENS_PER_SPLIT = 4000  # at most


def score_by_neighbours(encoded: EncodedDataset, categories: int, *, seed: int = 0) -> float:
    """Score the tokens of the test split, each called as most of its 20 nearest training tokens are.

    Nearest by cosine. Of each split at most 4,000 tokens are drawn, among those that are three quarters of
    one category. Returns the macro F1.

    Raises:
        InputError: A split has no such token.
    """
    X, y_train = _sample_tokens(encoded, True, categories, seed)
    Y, y_test = _sample_tokens(encoded, False, categories, seed)
    if not (len(X) and len(Y)):
        raise InputError("no token of the training or of the test split is of one category: nothing to score")
    neighbours = min(NEIGHBOURS, len(X))
    nearest = np.argpartition(-(Y @ X.T), neighbours - 1, axis=1)[:, :neighbours]
    votes = np.stack([(y_train[nearest] == c).sum(1) for c in range(categories)], axis=1)
    confusion = np.zeros((categories, categories), int)
    np.add.at(confusion, (y_test, votes.argmax(1)), 1)
    return float(macro_f1(confusion))


def _sample_tokens(
    encoded: EncodedDataset, train: bool, categories: int, seed: int
) -> tuple[Float[np.ndarray, "n c"], Int[np.ndarray, " n"]]:
    """Draw tokens of one split that are of one category: their features at unit length, and the category."""
    stride = encoded.card.stride
    tokens, labels = [np.empty((0, encoded.card.channels), np.float32)], [np.empty(0, int)]
    for index in np.flatnonzero(encoded.is_train == train).tolist():
        truth = encoded.categories(index)
        rows, columns = truth.shape[0] // stride, truth.shape[1] // stride
        blocks = truth.reshape(rows, stride, columns, stride)
        share = np.stack([(blocks == c).mean((1, 3)).ravel() for c in range(categories)], axis=1)
        pure = np.flatnonzero(share.max(1) >= PURE_SHARE)
        tokens.append(encoded.tokens(index).reshape(rows * columns, -1)[pure])
        labels.append(share[pure].argmax(1))
    X, y = np.concatenate(tokens), np.concatenate(labels)
    sample = np.sort(np.random.default_rng(seed).permutation(len(X))[:TOKENS_PER_SPLIT])
    return normalize(X[sample]), y[sample]
