"""The classifier's scores, its layers and its settings."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, log_loss

from fseg_jax.cam import classifier
from fseg_jax.cam.classifier import LabelledImages
from fseg_jax.encoders.efficientnet.network import EfficientNetConfig, configure_efficientnet
from fseg_jax.errors import InputError


def test_the_score_is_scikit_learns():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(30, 1)).astype(np.float32)
    labels = rng.integers(0, 2, 30)
    score = classifier.score_classifier(lambda _: logits, LabelledImages(np.zeros((30, 1)), labels))
    chance = 1 / (1 + np.exp(-logits[:, 0].astype(float)))
    assert score.loss == pytest.approx(log_loss(labels, chance), rel=1e-5)
    np.testing.assert_array_equal(score.confusion, confusion_matrix(labels, logits[:, 0] > 0))
    assert score.accuracy == pytest.approx((labels == (logits[:, 0] > 0)).mean())
    assert score.balanced == pytest.approx(balanced_accuracy_score(labels, logits[:, 0] > 0))


def test_a_layer_of_b1_has_its_place_in_other_networks():
    b1, small = configure_efficientnet("b1"), EfficientNetConfig(width=0.5, depth=0.25)
    for number in range(23):
        assert classifier.find_equivalent_layer(f"blocks.{number}", b1) == f"blocks.{number}"
    places = [classifier.find_equivalent_layer(f"blocks.{n}", small) for n in (0, 13, 14, 20, 22)]
    assert places == ["blocks.0", "blocks.4", "blocks.4", "blocks.5", "blocks.6"]
    b7 = configure_efficientnet("b7")
    assert classifier.find_equivalent_layer("blocks.22", b7) == f"blocks.{len(b7.blocks()) - 1}"
    assert classifier.find_equivalent_layer("top", small) == "top"
    with pytest.raises(InputError, match=r"blocks\.23"):
        classifier.find_equivalent_layer("blocks.23", b1)
