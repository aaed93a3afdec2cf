"""How clusters lie to each other, on slides and on all of them together."""

import numpy as np
import pytest

from fseg_jax.outputs.colours import make_palette
from fseg_jax.outputs.labels import LabelWriter, open_labels
from fseg_jax.outputs.neighbours import (
    decode_neighbours,
    encode_neighbours,
    measure_neighbours,
    pool_neighbours,
)


def measure(path, labels, k=5):
    writer = LabelWriter(path, labels.shape, 16.0, k, names=None, colours=make_palette(k), provenance={})
    writer.append(labels)
    writer.close()
    return measure_neighbours(open_labels(path))


def test_bands_border_on_the_next_and_slides_are_pooled(tmp_path):
    labels = np.repeat([2, 2, 5, 5, 5, 3, 3, 0], 4)[None].repeat(20, 0).astype(np.uint8)
    one = measure(tmp_path / "a.zarr", labels)
    assert one.clusters.tolist() == [1, 2, 4] and one.points.tolist() == [160, 160, 240]
    assert one.counts[0].tolist() == [2 * (20 * 7 + 19 * 8), 0, 20]  # of cluster 2: itself, 3 and 5
    assert one.borders[0, 1] == 0 < one.borders[0, 2] == one.borders[1, 2]
    # From band 2 to band 5: 1 to 8 points, whose mean is 4.5; to band 3, beyond 12 more.
    assert one.distances[0, 2] == pytest.approx(16 * 4.5) and one.distances[0, 1] == pytest.approx(16 * 16.5)
    other = measure(tmp_path / "b.zarr", np.where(labels == 3, 0, labels)[:10].astype(np.uint8))
    pooled = pool_neighbours([one, other], [2, 4, 1])
    assert pooled.points.tolist() == [160, 360, 240]
    assert pooled.counts[2].tolist() == [0, 30, one.counts[0, 0] + other.counts[0, 0]]
    assert pooled.distances[2, 0] == one.distances[0, 1]  # where both are
    assert np.isnan(pool_neighbours([other], [2, 4]).distances[0, 1])


def test_tissue_everywhere_and_nowhere(tmp_path):
    full = measure(tmp_path / "a.zarr", np.full((4, 4), 5, np.uint8))
    assert full.clusters.tolist() == [4] and full.counts.tolist() == [[48]]
    none = measure(tmp_path / "b.zarr", np.zeros((4, 4), np.uint8))
    assert none.clusters.size == 0 and pool_neighbours([none, full], [4]).points.tolist() == [16]


def test_files_come_back_and_damaged_ones_are_none(tmp_path):
    one = measure(tmp_path / "a.zarr", (np.indices((6, 9)).sum(0) // 3 % 3 + 1).astype(np.uint8))
    data = encode_neighbours(one)
    assert data == encode_neighbours(one)
    for a, b in zip(decode_neighbours(data), one, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    for damaged in (None, b"", data[:-30], data[:60] + b"x" * 40 + data[100:]):
        assert decode_neighbours(damaged) is None
