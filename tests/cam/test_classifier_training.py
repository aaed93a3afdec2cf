"""The classifier learns what is planted, gives the same again, and goes on where it was stopped."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted_squares import SETTINGS, configure_tiny, make_squares

from fseg_jax.cam import classifier, classifier_training
from fseg_jax.cam.classifier import LabelledImages
from fseg_jax.cam.classifier_file import fingerprint_training, read_state, write_state
from fseg_jax.errors import InputError


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(classifier_training, "configure_network", configure_tiny)


def run(settings, data, held_out, state=None, classes=2):
    trainer = classifier_training.make_trainer(settings, classes)
    return trainer, list(classifier_training.train_epochs(trainer, data, held_out, state))


def test_learns_and_is_kept_where_the_accuracy_rises():
    _, epochs = run(SETTINGS, make_squares(), make_squares(16, seed=1))
    best = -1.0
    for number, epoch in enumerate(epochs, 1):
        assert epoch.number == number
        assert epoch.keep == (epoch.held_out.balanced > best)
        best = max(best, epoch.held_out.balanced)
    assert best == 1.0
    assert epochs[-1].loss < 0.7 * epochs[0].loss


def test_more_classes_have_a_logit_each():
    trainer, epochs = run(
        replace(SETTINGS, epochs=8), make_squares(60, 3), make_squares(24, 3, seed=1), classes=3
    )
    score = max((epoch.held_out for epoch in epochs), key=lambda s: s.accuracy)
    assert score.accuracy > 0.9 and score.confusion.shape == (3, 3)
    assert trainer.config.num_classes == 3


def test_the_same_again_and_interrupted_or_not(tmp_path):
    data, held_out = make_squares(20), make_squares(8, seed=1)
    settings = replace(SETTINGS, epochs=4)
    trainer, whole = run(settings, data, held_out)
    _, again = run(settings, data, held_out)
    path, mark = tmp_path / "state.safetensors", fingerprint_training(trainer, *data, *held_out)
    write_state(path, whole[1].state, mark)
    resumed = read_state(path, trainer, mark)
    assert resumed.epoch == 2 and resumed.best == whole[1].state.best
    _, rest = run(settings, data, held_out, resumed)
    assert [epoch.number for epoch in rest] == [3, 4]
    for other in (again[-1].state, rest[-1].state):
        for a, b in zip(jax.tree.leaves(whole[-1].state), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)
    assert [epoch.keep for epoch in whole[2:]] == [epoch.keep for epoch in rest]


@pytest.mark.parametrize("held", [2**30, 2 * 10 * 32 * 32 * 3])
def test_a_loop_on_the_device_trains_the_same(monkeypatch, held):
    """All images at once, and two steps' at once: five steps on ten images each."""
    monkeypatch.setattr(classifier_training, "HELD_BYTES", held)
    data = make_squares(48)
    settings = replace(SETTINGS, epochs=2)
    trained = []
    for loop_on_device in (False, True):
        trainer = classifier_training.make_trainer(settings, 2, loop_on_device=loop_on_device)
        trained.append(list(classifier_training.train_epochs(trainer, data, None)))
    for one, other in zip(*trained, strict=True):
        np.testing.assert_allclose((one.loss, one.accuracy), (other.loss, other.accuracy), rtol=1e-4)
        leaves = (jax.tree.leaves(epoch.state) for epoch in (one, other))
        for a, b in zip(*leaves, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_nothing_compiles_twice():
    before = classifier_training._step._cache_size(), classifier._predict._cache_size()
    run(
        replace(SETTINGS, epochs=2, size=40, batch=6),
        _larger(make_squares(17), 40),
        _larger(make_squares(5), 40),
    )
    after = classifier_training._step._cache_size(), classifier._predict._cache_size()
    assert after == (before[0] + 1, before[1] + 1)


def _larger(data, side):
    return data._replace(images=np.resize(data.images, (len(data.images), side, side, 3)))


def test_statistics_are_those_of_the_batches_not_of_a_lagging_average():
    data = make_squares(20)
    trainer = classifier_training.make_trainer(replace(SETTINGS, epochs=1), 2)
    begin = trainer.begin._replace(statistics=jax.tree.map(lambda s: s + 50.0, trainer.begin.statistics))
    state, *_ = trainer.run_epoch(begin, data)
    stem = trainer.build_network(state).stem
    order = np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.key(0), 0), 20))
    means, variances = [], []
    for part in order.reshape(2, 10):
        y = np.asarray(stem.conv(classifier.normalise(data.images[part])))
        means.append(y.mean((0, 1, 2)))
        variances.append(y.var((0, 1, 2)))
    np.testing.assert_allclose(stem.norm.mean[...], np.mean(means, 0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stem.norm.var[...], np.mean(variances, 0), rtol=1e-3)


def test_what_is_kept_is_not_a_network_that_says_the_commoner_class():
    """32 images learnt by heart are right when the network evaluates, and the commoner class alone is not
    kept."""
    data, held_out = make_squares(32), make_squares(32, seed=1)
    commoner = np.r_[np.flatnonzero(held_out.labels == 1), np.flatnonzero(held_out.labels == 0)[:4]]
    held_out = LabelledImages(held_out.images[commoner], held_out.labels[commoner])
    says_it = classifier.score_classifier(lambda images: np.ones((len(images), 1), np.float32), held_out)
    assert says_it.accuracy == 0.8 and says_it.balanced == 0.5
    _, epochs = run(replace(SETTINGS, epochs=8), data, held_out)
    kept = [epoch for epoch in epochs if epoch.keep]
    assert [e.held_out.balanced for e in kept] == sorted({e.held_out.balanced for e in kept})
    _, epochs = run(replace(SETTINGS, epochs=8), data, data)
    assert epochs[-1].held_out.accuracy == 1.0


def test_turned_images_are_the_eight_symmetries():
    image = np.random.default_rng(0).integers(0, 255, (1, 6, 6, 3)).astype(np.uint8)
    turns = [np.rot90(f, k) for f in (image[0], image[0][:, ::-1]) for k in range(4)]
    found = np.asarray(
        classifier_training._turn_images(jnp.asarray(np.repeat(image, 200, 0)), jax.random.key(0))
    )
    which = [next(i for i, t in enumerate(turns) if np.array_equal(t, f)) for f in found]
    assert set(which) == set(range(8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "b9"}, "--network b9"),
        ({"size": 16}, "--size 16"),
        ({"epochs": 0}, "one epoch"),
        ({"start": "moon"}, "--start moon"),
        ({"start": "imagenet", "network": "b4"}, "b0, b1, lite0, lite1, lite2, not for b4"),
        ({"learning_rate": 0.0}, "--learning-rate 0"),
    ],
)
def test_settings_that_cannot_be_are_an_error(change, message):
    with pytest.raises(InputError, match=message):
        classifier_training.make_trainer(replace(SETTINGS, **change), 2)


def test_one_class_or_a_loss_that_is_no_number_is_an_error():
    with pytest.raises(InputError, match="of one class"):
        classifier_training.make_trainer(SETTINGS, 1)
    trainer = classifier_training.make_trainer(SETTINGS, 2)
    broken = trainer.begin._replace(parameters=jax.tree.map(lambda p: p * jnp.nan, trainer.begin.parameters))
    with pytest.raises(InputError, match="learning-rate"):
        next(classifier_training.train_epochs(trainer, make_squares(8), None, broken))
