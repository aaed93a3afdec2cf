"""Label propagation against clusters planted in the features, thresholds and pieces against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.measure import label as pieces_of

from fseg_jax.encoders.architectures import build_network
from fseg_jax.encoders.efficientnet.network import EfficientNetConfig
from fseg_jax.errors import InputError
from fseg_jax.methods import cam, grad_cam
from fseg_jax.numerics import nmf

SMALL = EfficientNetConfig(stem=8, stages=((1, 3, 1, 1, 8), (2, 3, 2, 2, 8)), features=16, num_classes=1)


def blobs(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Well separated clusters of the given sizes, and which each point is of."""
    rng = np.random.default_rng(seed)
    which = np.repeat(np.arange(len(sizes)), sizes)
    centres = 100 * np.eye(len(sizes))
    return (centres[which] + rng.normal(0, 0.1, (len(which), len(sizes)))).astype(np.float32), which


def labelled(n: int, given: dict[int, int]) -> np.ndarray:
    labels = np.full(n, -1)
    for where, label in given.items():
        labels[where] = label
    return labels


def test_each_cluster_takes_its_label_the_most_labelled_first():
    X, which = blobs([5, 6, 7])
    labels = labelled(18, {0: 1, 5: 0, 6: 0, 7: 0, 11: 1, 12: 1})
    found = cam.propagate(X, labels, 3)
    np.testing.assert_array_equal(found.labels, np.array([1, 0, 1])[which])
    assert [(r.label, r.labelled, r.joined, r.total) for r in found.rounds] == [
        (0, 3, 3, 9),
        (1, 2, 5, 14),
        (1, 1, 4, 18),
    ]
    np.testing.assert_array_equal(found.rounds_joined, np.where(labels >= 0, 0, np.array([3, 1, 2])[which]))
    assert all(r.purity == 1 for r in found.rounds) and found.ended == "nothing moves any more"


def test_images_that_would_get_two_labels_stay_unlabelled():
    X, _ = blobs([6, 6])
    labels = labelled(12, {0: 0, 1: 1, 2: 1, 6: 0})
    found = cam.propagate(X, labels, 2)
    assert (found.labels[3:6] == -1).all() and (found.labels[6:] == 0).all()
    majority = cam.propagate(X, labels, 2, purity=0.6)
    assert (majority.labels[3:6] == 1).all()
    assert sorted(r.purity for r in majority.rounds) == pytest.approx([2 / 3, 1])
    tie = cam.propagate(X, labelled(12, {0: 0, 1: 1}), 2, purity=0.1)
    assert not tie.rounds and (tie.labels >= 0).sum() == 2


def test_a_cluster_without_labels_spreads_nothing_and_ties_go_to_the_first():
    X, _ = blobs([4, 4, 4])
    found = cam.propagate(X, labelled(12, {0: 0, 4: 1}), 3)
    assert (found.labels[8:] == -1).all()
    first, second = found.rounds
    assert first.labelled == second.labelled == 1 and first.cluster < second.cluster


def test_stops_at_the_number_wanted_with_the_nearest_to_the_centre():
    X, _ = blobs([10])
    X[:, 0] = 100 + np.array([0, 9, 1, 8, 2, 7, 3, 6, 4, 5])
    found = cam.propagate(X, labelled(10, {8: 0}), 1, wanted=4)  # the centre is at 104.5
    assert found.ended == "enough images are labelled"
    assert set(np.flatnonzero(found.labels == 0).tolist()) == {8, 9, 6, 7}


def test_a_second_call_gives_the_same_and_the_order_of_classes_does_not_matter():
    X = np.random.default_rng(1).normal(size=(60, 5)).astype(np.float32)
    labels = labelled(60, {i: i % 2 for i in range(12)})
    one, two = cam.propagate(X, labels, 12), cam.propagate(X, labels, 12)
    np.testing.assert_array_equal(one.labels, two.labels)
    other = cam.propagate(X, np.where(labels < 0, -1, 1 - labels), 12)
    np.testing.assert_array_equal(one.labels, np.where(other.labels < 0, -1, 1 - other.labels))


def test_what_is_given_is_never_changed_and_one_class_may_be_all():
    X = np.random.default_rng(2).normal(size=(40, 3)).astype(np.float32)
    labels = labelled(40, {0: 0, 3: 0, 9: 0})
    found = cam.propagate(X, labels, 4)
    assert set(found.labels.tolist()) <= {-1, 0} and (found.labels[[0, 3, 9]] == 0).all()


def test_all_or_enough_labelled_clusters_nothing():
    X, _ = blobs([5])
    found = cam.propagate(X, np.zeros(5, int), 2)
    assert found.rounds == () and found.ended == "all images are labelled"
    found = cam.propagate(X, labelled(5, {0: 0, 1: 0}), 2, wanted=2)
    assert found.rounds == () and (found.labels == labelled(5, {0: 0, 1: 0})).all()


@pytest.mark.parametrize(
    ("labels", "k", "more", "message"),
    [
        ({}, 2, {}, "no image is labelled"),
        ({0: 0}, 6, {}, "5 images"),
        ({0: 0}, 0, {}, "--k 0"),
        ({0: 0}, 2, {"purity": 0.0}, "--purity 0"),
    ],
)
def test_what_cannot_be_spread_is_an_error(labels, k, more, message):
    with pytest.raises(InputError, match=message):
        cam.propagate(blobs([5])[0], labelled(5, labels), k, **more)


# ----------------------------------------------------------------------------------------------- maps


def normalise(images):
    return jnp.asarray(images).astype(jnp.float32) / 255 - 0.5


@pytest.fixture(scope="module")
def net():
    return build_network(SMALL, seed=3)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)


def test_heat_maps_are_grad_cams_of_the_split_network(net, images):
    made = cam.compile_heat_maps(net, "blocks.1", normalise)(images)
    A = net.features_to(normalise(images), "blocks.1")
    maps = grad_cam.grad_cam(lambda a: net.from_layer(a, "blocks.1"), A)
    np.testing.assert_allclose(made.maps, grad_cam.resize_and_scale(maps, 32, 32), atol=1e-4)
    np.testing.assert_allclose(made.logits, net(normalise(images)), atol=1e-4)
    assert made.maps.shape == (3, 32, 32) and made.maps.min() >= 0 and made.maps.max() <= 1


def test_the_first_of_two_classes_is_seen_where_the_logit_falls(net, images):
    made = cam.compile_heat_maps(net, "blocks.1", normalise, negative=True)(images)
    A = net.features_to(normalise(images), "blocks.1")
    maps = grad_cam.grad_cam(lambda a: -net.from_layer(a, "blocks.1"), A)
    np.testing.assert_allclose(made.maps, grad_cam.resize_and_scale(maps, 32, 32), atol=1e-4)
    np.testing.assert_allclose(made.logits, net(normalise(images)), atol=1e-4)


def test_maps_of_a_batch_are_those_of_its_images(net, images):
    whole = cam.compile_heat_maps(net, "blocks.1", normalise)
    alone = np.concatenate([np.asarray(whole(images[i : i + 1]).maps) for i in range(3)])
    np.testing.assert_allclose(whole(images).maps, alone, atol=1e-4)


def test_a_layer_or_a_method_that_is_not_there_is_an_error(net):
    with pytest.raises(InputError, match=r"--layer blocks\.9: choose stem, blocks\.0 to blocks\.2, or top"):
        cam.compile_heat_maps(net, "blocks.9", normalise)
    with pytest.raises(InputError, match="--method lime"):
        cam.compile_heat_maps(net, "top", normalise, method="lime")


def test_concepts_that_speak_for_the_class_are_the_map():
    # Two concepts in two halves; the logit is for the first and against the second.
    features = np.zeros((1, 4, 4, 3), np.float32)
    features[:, :, :2, 0], features[:, :, 2:, 1] = 2.0, 3.0
    weights = jnp.asarray([1.0, -1.0, 0.0])
    maps = cam.concept_cam(
        lambda A: jnp.matmul(A.mean((1, 2)), weights[:, None]),
        jnp.asarray(features),
        key=jax.random.key(0),
        concepts=2,
    )
    scaled = np.asarray(maps[0] / maps.max())
    np.testing.assert_allclose(scaled[:, :2], 1, atol=1e-3)
    np.testing.assert_allclose(scaled[:, 2:], 0, atol=1e-3)


def test_what_lies_below_zero_is_a_concept_too():
    features = np.zeros((1, 4, 4, 2), np.float32)
    features[:, :2, :, 0] = -2.0
    maps = cam.concept_cam(
        lambda A: -A.mean((1, 2))[:, :1], jnp.asarray(features), key=jax.random.key(0), concepts=1
    )
    scaled = np.asarray(maps[0] / maps.max())
    np.testing.assert_allclose(scaled[:2], 1, atol=1e-3)
    np.testing.assert_allclose(scaled[2:], 0, atol=1e-3)


def test_concepts_without_relu_would_be_grad_cam_of_the_factorized_features():
    features = jax.random.normal(jax.random.key(1), (2, 4, 4, 6))
    head = lambda A: jnp.sin(A).mean((1, 2))[:, :1]  # noqa: E731
    A = jnp.concatenate([jax.nn.relu(features), jax.nn.relu(-features)], -1).reshape(2, 16, 12)
    found = nmf.factorize(A, 16, key=jax.random.key(0))
    maps = cam.concept_cam(head, features, key=jax.random.key(0), concepts=99)  # no more than places
    gradient = grad_cam.differentiate_class(head, features).gradient.mean((1, 2))
    alpha = jnp.einsum("bc,bmc->bm", jnp.concatenate([gradient, -gradient], -1), found.H)
    parts = found.W * alpha[:, None]
    expected = jnp.maximum(parts, 0).sum(-1).reshape(2, 4, 4)
    np.testing.assert_allclose(maps, expected, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------------------------------------- masks


def test_thresholds_are_strict_on_both_sides():
    maps = np.array([[0.0, 0.4, 0.41, 0.69, 0.7, 1.0]])
    assert cam.threshold_maps(maps, cam.Band()).tolist() == [[False, False, True, True, False, False]]
    assert cam.threshold_maps(maps, cam.Band(0.28, None)).tolist() == [[False, True, True, True, True, True]]


@pytest.mark.parametrize("thresholds", [cam.Band(0.7, 0.4), cam.Band(1.0, None), cam.Band(-0.1, 0.5)])
def test_thresholds_that_leave_nothing_are_an_error(thresholds):
    with pytest.raises(InputError, match="thresholds"):
        thresholds.check()


def test_the_chosen_band_is_the_best_of_all():
    rng = np.random.default_rng(0)
    maps = [rng.random((12, 9)).astype(np.float32), (rng.integers(0, 21, (7, 7)) / 20).astype(np.float32)]
    truths = [(m > 0.3) & (m < 0.8) & (rng.random(m.shape) < 0.8) for m in maps]

    def dice(thresholds):
        values = []
        for m, t in zip(maps, truths, strict=True):
            mask = cam.threshold_maps(m, thresholds)
            values.append(2 * (mask & t).sum() / (mask.sum() + t.sum()))
        return np.mean(values)

    found, best = cam.choose_band(maps, truths)
    steps = np.arange(20) / 20
    every = [cam.Band(a, b) for a in steps for b in (*steps[steps > a], None)]
    assert best == pytest.approx(max(map(dice, every)))
    assert dice(found) == pytest.approx(best)


def test_of_equal_bands_the_widest_is_chosen():
    found, best = cam.choose_band([np.array([[0.0, 1.0]])], [np.array([[False, True]])])
    assert found == cam.Band(0.0, None) and best == 1
    with pytest.raises(InputError, match="no image with a mask"):
        cam.choose_band([], [])


@pytest.mark.smoke
def test_pieces_and_holes():
    mask = np.zeros((9, 9), bool)
    mask[0:4, 0:4] = True
    mask[1, 1] = False
    mask[5:7, 5:7] = True
    mask[8, 0] = True
    filled = cam.tidy(mask, fill_holes=True)
    assert filled[1, 1] and filled.sum() == mask.sum() + 1
    for n in (1, 2, 3, 9):
        kept = cam.tidy(mask, largest=n)
        assert pieces_of(kept, connectivity=2).max() == min(n, 3)
        assert kept.sum() == sum(sorted([15, 4, 1])[::-1][:n])
    assert not cam.tidy(np.zeros((4, 4), bool), largest=1, fill_holes=True).any()
