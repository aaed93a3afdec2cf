"""A classifier and the state of its training come back from their files, or are refused in a line."""

from dataclasses import replace

import numpy as np
import pytest
from planted_squares import SETTINGS, configure_tiny, make_squares

from fseg_jax.cam import classifier, classifier_training
from fseg_jax.cam.classifier_file import (
    fingerprint_training,
    load_classifier,
    read_state,
    write_classifier,
    write_state,
)
from fseg_jax.errors import InputError


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(classifier_training, "configure_network", configure_tiny)


def test_a_state_of_another_training_is_an_error_and_a_damaged_one_is_none(tmp_path):
    data = make_squares(8)
    trainer = classifier_training.make_trainer(SETTINGS, 2)
    path = tmp_path / "state.safetensors"
    assert read_state(path, trainer, "a") is None
    write_state(path, trainer.begin, "a")
    with pytest.raises(InputError, match="other images or settings"):
        read_state(path, trainer, "b")
    path.write_bytes(path.read_bytes()[:500])
    assert read_state(path, trainer, "a") is None
    assert fingerprint_training(trainer, *data) != fingerprint_training(trainer, data.images, 1 - data.labels)
    longer = classifier_training.make_trainer(replace(SETTINGS, epochs=9), 2)
    assert fingerprint_training(trainer, *data) == fingerprint_training(longer, *data)


def test_a_file_gives_back_the_network_and_what_it_means(tmp_path):
    data, held_out = make_squares(20), make_squares(8, seed=1)
    trainer = classifier_training.make_trainer(replace(SETTINGS, epochs=1), 2)
    epochs = list(classifier_training.train_epochs(trainer, data, held_out))
    path = tmp_path / "classifier.safetensors"
    score = classifier.ClassifierScore(0.7, 0.5, np.eye(2, dtype=int))
    write_classifier(path, trainer, epochs[0].state, ("normal", "polyp"), score)
    for where in (path, tmp_path):
        loaded = load_classifier(where)
        assert loaded.classes == ("normal", "polyp") and loaded.size == 32
        assert loaded.card.epoch == 1 and loaded.card.held_out_accuracy == 0.5
    np.testing.assert_allclose(
        classifier.make_predictor(loaded.network)(held_out.images),
        classifier.make_predictor(trainer.build_network(epochs[0].state))(held_out.images),
        atol=1e-6,
    )
    assert loaded.logit("polyp") == (0, False) and loaded.logit("normal") == (0, True)
    with pytest.raises(InputError, match="normal, polyp"):
        loaded.logit("cat")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="damaged"):
        load_classifier(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_classifier(tmp_path / "none.safetensors")
