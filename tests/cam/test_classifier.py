"""The classifier learns what is planted, gives the same again, and goes on where it was stopped."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, log_loss

from fseg_jax.cam import classifier
from fseg_jax.cam.classifier import LabelledImages, Settings
from fseg_jax.cam.classifier_file import (
    fingerprint,
    load_classifier,
    read_state,
    write_classifier,
    write_state,
)
from fseg_jax.encoders.efficientnet.network import EfficientNetConfig, configure_efficientnet
from fseg_jax.errors import InputError

TINY = EfficientNetConfig(
    stem=8, stages=((1, 3, 1, 1, 8), (1, 3, 2, 2, 8)), features=16, num_classes=1, bn_momentum=0.5
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """No test compiles 23 blocks."""
    monkeypatch.setattr(
        classifier,
        "configuration",
        lambda name, classes: replace(TINY, num_classes=1 if classes == 2 else classes),
    )


def squares(n: int = 48, classes: int = 2, seed: int = 0) -> LabelledImages:
    """Noise, with a bright square in images of class 1 and a dark one in those of class 2."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    images = rng.integers(60, 190, (n, 32, 32, 3)).astype(np.uint8)
    images[labels == 1, 8:24, 8:24] = 255
    images[labels == 2, 8:24, 8:24] = 0
    return LabelledImages(images, labels)


def run(settings, data, held, state=None, classes=2):
    trainer = classifier.trainer(settings, classes)
    return trainer, list(classifier.train(trainer, data, held, state))


SETTINGS = Settings(size=32, epochs=6, batch=10, learning_rate=1e-2)


def test_learns_and_is_kept_where_the_accuracy_rises():
    _, epochs = run(SETTINGS, squares(), squares(16, seed=1))
    best = -1.0
    for number, (_, epoch, keep) in enumerate(epochs, 1):
        assert epoch.number == number
        assert keep == (epoch.held_out.balanced > best)
        best = max(best, epoch.held_out.balanced)
    assert best == 1.0
    assert epochs[-1][1].loss < 0.7 * epochs[0][1].loss


def test_more_classes_have_a_logit_each():
    trainer, epochs = run(replace(SETTINGS, epochs=8), squares(60, 3), squares(24, 3, seed=1), classes=3)
    score = max((e.held_out for _, e, _ in epochs), key=lambda s: s.accuracy)
    assert score.accuracy > 0.9 and score.confusion.shape == (3, 3)
    assert trainer.config.num_classes == 3


def test_the_same_again_and_interrupted_or_not(tmp_path):
    data, held = squares(20), squares(8, seed=1)
    settings = replace(SETTINGS, epochs=4)
    trainer, whole = run(settings, data, held)
    _, again = run(settings, data, held)
    path, mark = tmp_path / "state.safetensors", fingerprint(trainer, *data, *held)
    write_state(path, whole[1][0], mark)
    resumed = read_state(path, trainer, mark)
    assert resumed.epoch == 2 and resumed.best == whole[1][0].best
    _, rest = run(settings, data, held, resumed)
    assert [e.number for _, e, _ in rest] == [3, 4]
    for other in (again[-1][0], rest[-1][0]):
        for a, b in zip(jax.tree.leaves(whole[-1][0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)
    assert [k for _, _, k in whole[2:]] == [k for _, _, k in rest]


def test_a_state_of_another_training_is_an_error_and_a_damaged_one_is_none(tmp_path):
    data = squares(8)
    trainer = classifier.trainer(SETTINGS, 2)
    path = tmp_path / "state.safetensors"
    assert read_state(path, trainer, "a") is None
    write_state(path, trainer.begin, "a")
    with pytest.raises(InputError, match="other images or settings"):
        read_state(path, trainer, "b")
    path.write_bytes(path.read_bytes()[:500])
    assert read_state(path, trainer, "a") is None
    assert fingerprint(trainer, *data) != fingerprint(trainer, data.images, 1 - data.labels)
    longer = classifier.trainer(replace(SETTINGS, epochs=9), 2)
    assert fingerprint(trainer, *data) == fingerprint(longer, *data)


def test_nothing_compiles_twice():
    before = classifier._step._cache_size(), classifier._logits._cache_size()
    run(replace(SETTINGS, epochs=2, size=40, batch=6), _larger(squares(17), 40), _larger(squares(5), 40))
    after = classifier._step._cache_size(), classifier._logits._cache_size()
    assert after == (before[0] + 1, before[1] + 1)


def _larger(data, side):
    return data._replace(images=np.resize(data.images, (len(data.images), side, side, 3)))


def test_a_file_gives_back_the_network_and_what_it_means(tmp_path):
    data, held = squares(20), squares(8, seed=1)
    trainer, epochs = run(replace(SETTINGS, epochs=1), data, held)
    path = tmp_path / "classifier.safetensors"
    write_classifier(path, trainer, epochs[0][0], ("normal", "polyp"), held_out_accuracy=0.5)
    for where in (path, tmp_path):
        loaded = load_classifier(where)
        assert loaded.classes == ("normal", "polyp") and loaded.size == 32
        assert loaded.card["epoch"] == 1 and loaded.card["held_out_accuracy"] == 0.5
    np.testing.assert_allclose(
        classifier.predictor(loaded.network)(held.images),
        classifier.predictor(trainer.network(epochs[0][0]))(held.images),
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


def test_the_score_is_scikit_learns():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(30, 1)).astype(np.float32)
    labels = rng.integers(0, 2, 30)
    score = classifier.evaluate(lambda _: logits, LabelledImages(np.zeros((30, 1)), labels))
    chance = 1 / (1 + np.exp(-logits[:, 0].astype(float)))
    assert score.loss == pytest.approx(log_loss(labels, chance), rel=1e-5)
    np.testing.assert_array_equal(score.confusion, confusion_matrix(labels, logits[:, 0] > 0))
    assert score.accuracy == pytest.approx((labels == (logits[:, 0] > 0)).mean())
    assert score.balanced == pytest.approx(balanced_accuracy_score(labels, logits[:, 0] > 0))


def test_statistics_are_those_of_the_batches_not_of_a_lagging_average():
    data = squares(20)
    trainer = classifier.trainer(replace(SETTINGS, epochs=1), 2)
    begin = trainer.begin._replace(statistics=jax.tree.map(lambda s: s + 50.0, trainer.begin.statistics))
    state, *_ = trainer.epoch(begin, data)
    stem = trainer.network(state).stem
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
    data, held = squares(32), squares(32, seed=1)
    commoner = np.r_[np.flatnonzero(held.labels == 1), np.flatnonzero(held.labels == 0)[:4]]
    held = LabelledImages(held.images[commoner], held.labels[commoner])
    says_it = classifier.evaluate(lambda images: np.ones((len(images), 1), np.float32), held)
    assert says_it.accuracy == 0.8 and says_it.balanced == 0.5
    _, epochs = run(replace(SETTINGS, epochs=8), data, held)
    kept = [epoch for _, epoch, keep in epochs if keep]
    assert [e.held_out.balanced for e in kept] == sorted({e.held_out.balanced for e in kept})
    _, epochs = run(replace(SETTINGS, epochs=8), data, data)
    assert epochs[-1][1].held_out.accuracy == 1.0


def test_turned_images_are_the_eight_symmetries():
    image = np.random.default_rng(0).integers(0, 255, (1, 6, 6, 3)).astype(np.uint8)
    turns = [np.rot90(f, k) for f in (image[0], image[0][:, ::-1]) for k in range(4)]
    found = np.asarray(classifier._turned(jnp.asarray(np.repeat(image, 200, 0)), jax.random.key(0)))
    which = [next(i for i, t in enumerate(turns) if np.array_equal(t, f)) for f in found]
    assert set(which) == set(range(8))


def test_a_layer_of_b1_has_its_place_in_other_networks():
    b1, small = configure_efficientnet("b1"), EfficientNetConfig(width=0.5, depth=0.25)
    for number in range(23):
        assert classifier.same_place(f"blocks.{number}", b1) == f"blocks.{number}"
    places = [classifier.same_place(f"blocks.{n}", small) for n in (0, 13, 14, 20, 22)]
    assert places == ["blocks.0", "blocks.4", "blocks.4", "blocks.5", "blocks.6"]
    b7 = configure_efficientnet("b7")
    assert classifier.same_place("blocks.22", b7) == f"blocks.{len(b7.blocks()) - 1}"
    assert classifier.same_place("top", small) == "top"
    with pytest.raises(InputError, match=r"blocks\.23"):
        classifier.same_place("blocks.23", b1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "b9"}, "--network b9"),
        ({"size": 16}, "--size 16"),
        ({"epochs": 0}, "one epoch"),
        ({"start": "moon"}, "--start moon"),
        ({"start": "imagenet", "network": "b4"}, "b0 and b1"),
        ({"learning_rate": 0.0}, "--learning-rate 0"),
    ],
)
def test_settings_that_cannot_be_are_an_error(change, message):
    with pytest.raises(InputError, match=message):
        classifier.trainer(replace(SETTINGS, **change), 2)


def test_one_class_or_a_loss_that_is_no_number_is_an_error():
    with pytest.raises(InputError, match="of one class"):
        classifier.trainer(SETTINGS, 1)
    trainer = classifier.trainer(SETTINGS, 2)
    broken = trainer.begin._replace(parameters=jax.tree.map(lambda p: p * jnp.nan, trainer.begin.parameters))
    with pytest.raises(InputError, match="learning-rate"):
        next(classifier.train(trainer, squares(8), None, broken))
