"""The mask that patches vote for."""

import numpy as np
import pytest
from embedded import make_facts
from hypothesis import given, settings
from hypothesis import strategies as st

from fseg_jax.outputs.embeddings import Embeddings
from fseg_jax.pipeline import voting
from fseg_jax.pipeline.voting import PatchVoter, vote

pytestmark = pytest.mark.smoke


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(4, 12), st.integers(2, 3))
def test_each_pixel_goes_to_the_class_of_most_patches(seed, step, side, k):
    rng = np.random.default_rng(seed)
    step = min(step, side)
    height, width = rng.integers(side, 5 * side, 2)
    rows, columns = (1 + -(-(size - side) // step) for size in (height, width))
    grid = np.argwhere(rng.random((rows, columns)) < 0.8).astype(np.int32)
    labels = rng.integers(0, k, len(grid))
    soft = rng.dirichlet(np.ones(k), len(grid))
    facts = make_facts(int(height), int(width), side, step)
    tissue = np.ones((height, width), bool)
    tissue[height // 2 :, : width // 3] = False
    embedded = Embeddings(None, grid * 1.0, grid, tissue, np.zeros((1, 1, 3), np.uint8), {})
    votes, support = np.zeros((2, height, width, k))
    for (row, column), label, share in zip(grid, labels, soft, strict=True):
        box = (slice(row * step, row * step + side), slice(column * step, column * step + side))
        votes[(*box, label)] += 1
        support[box] += share
    best = votes.max(-1, keepdims=True)
    expected = np.where(votes == best, support, -1).argmax(-1) + 1
    expected[(best[..., 0] == 0) | ~tissue] = 0
    assert (np.concatenate(list(vote(embedded, facts, labels, soft))) == expected).all()


def test_a_tie_goes_to_the_larger_sum_and_then_to_the_lower_class():
    """Nine patches lie over the pixel in the middle: sums of ninths are never exact in floating point."""
    grid = np.argwhere(np.ones((3, 3))).astype(np.int32)
    labels = np.array([2, 1, 2, 1, 2, 1, 2, 1, 0])
    soft = np.full((9, 3), 1 / 3, np.float32)

    def middle(soft: np.ndarray) -> int:
        (block,) = PatchVoter(grid, 4, 12).count(labels, soft)
        return int(block.labels[3, 3])

    assert middle(soft) == 2
    soft[8] = (0.3, 0.3, 0.4)
    assert middle(soft) == 3


def test_blocks_of_rows_are_those_of_the_whole(monkeypatch):
    rng = np.random.default_rng(0)
    grid = np.argwhere(rng.random((9, 7)) < 0.7).astype(np.int32)
    labels, soft = rng.integers(0, 3, len(grid)), rng.dirichlet(np.ones(3), len(grid))
    (whole,) = PatchVoter(grid, 7, 10).count(labels, soft)
    monkeypatch.setattr(voting, "_BLOCK_CELLS", 3 * whole.labels.shape[1])
    parts = list(PatchVoter(grid, 7, 10).count(labels, soft))
    assert [part.first for part in parts] == list(range(0, len(whole.labels), 3))
    assert (np.concatenate([part.labels for part in parts]) == whole.labels).all()
