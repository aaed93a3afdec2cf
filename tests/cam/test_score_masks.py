"""The measures of masks against scikit-learn's, and the conventions where nothing is there."""

import numpy as np
import pytest
import tifffile
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score

from fseg_jax.cam import score_masks
from fseg_jax.cam.image_pairs import find_pairs
from fseg_jax.errors import InputError

pytestmark = pytest.mark.smoke


def test_measures_are_scikit_learns():
    rng = np.random.default_rng(0)
    counts, expected = [], []
    for _ in range(5):
        mask, truth = rng.random((9, 7)) < 0.4, rng.random((9, 7)) < 0.3
        counts.append(score_masks.count_pixels(mask, truth))
        t, m = truth.ravel(), mask.ravel()
        f1 = f1_score(t, m)
        expected.append(
            (accuracy_score(t, m), jaccard_score(t, m), f1, f1, recall_score(t, m), precision_score(t, m))
        )
    found = score_masks.score_counts(np.stack(counts))
    np.testing.assert_allclose(score_masks.measure(np.stack(counts)), expected)
    np.testing.assert_allclose(found.mean, np.mean(expected, 0))
    for value, interval in zip(found.mean, found.intervals, strict=True):
        assert interval.low <= value <= interval.high
    assert found.pooled[1] == pytest.approx(score_masks.measure(np.sum(counts, 0))[1])


def test_an_empty_mask_is_right_where_nothing_is():
    nothing, all_ = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    assert score_masks.measure(score_masks.count_pixels(nothing, nothing)).tolist() == [1] * 6
    assert score_masks.measure(score_masks.count_pixels(all_, nothing)).tolist() == [0] * 6
    assert score_masks.measure(score_masks.count_pixels(nothing, all_)).tolist() == [0] * 6
    assert score_masks.measure(score_masks.count_pixels(all_, all_)).tolist() == [1] * 6


def test_baselines():
    assert score_masks.mask_everything((3, 4)).all()
    disc = score_masks.mask_center_disc((200, 300))
    assert disc.sum() == pytest.approx(np.pi * 60**2, rel=0.01)
    assert (disc == disc[::-1]).all() and (disc == disc[:, ::-1]).all()


def write(folder, name, mask):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(folder / name)


def test_folders_of_masks(tmp_path):
    truth = np.zeros((20, 30), bool)
    truth[5:15, 5:15] = True
    write(tmp_path / "found", "a.png", truth)
    write(tmp_path / "true", "a.jpg", truth)  # Kvasir-SEG's masks are JPEG
    scores = score_masks.score_folder(tmp_path / "found", tmp_path / "true")
    assert scores["masks"].mean[1] == 1 and scores["everything"].mean[1] == pytest.approx(100 / 600)
    table = score_masks.format_scores(scores)
    assert "| masks | 1 | 1.0000 |" in table and "centre disc" in table
    write(tmp_path / "found", "b.png", truth)
    with pytest.raises(InputError, match="has no mask b"):
        score_masks.score_folder(tmp_path / "found", tmp_path / "true")
    write(tmp_path / "true", "b.png", truth[1:])
    with pytest.raises(InputError, match="30 × 20 pixels, and the truth has 30 × 19"):
        score_masks.score_folder(tmp_path / "found", tmp_path / "true")


def test_masks_that_are_min_is_white_are_read_by_their_values(tmp_path):
    truth = np.zeros((20, 30), bool)
    truth[5:15, 5:15] = True
    write(tmp_path / "found", "a.png", truth)
    (tmp_path / "true").mkdir()
    tifffile.imwrite(tmp_path / "true" / "a.tif", truth.astype(np.uint8) * 255, photometric="miniswhite")
    assert score_masks.score_folder(tmp_path / "found", tmp_path / "true")["masks"].mean[1] == 1


def test_a_dataset_without_its_folders_or_masks_is_an_error(tmp_path):
    with pytest.raises(InputError, match="Kvasir-SEG's layout"):
        find_pairs(tmp_path)
    write(tmp_path / "images", "a.png", np.ones((2, 2), bool))
    write(tmp_path / "images", "b.png", np.ones((2, 2), bool))
    write(tmp_path / "masks", "a.png", np.ones((2, 2), bool))
    with pytest.raises(InputError, match="the image b has no mask"):
        find_pairs(tmp_path)
    write(tmp_path / "masks", "b.jpg", np.ones((2, 2), bool))
    assert [p.name for p in find_pairs(tmp_path)] == ["a", "b"]
    write(tmp_path / "masks", "b.png", np.ones((2, 2), bool))
    with pytest.raises(InputError, match="two files are called b"):
        find_pairs(tmp_path)
