"""One image, whole or in tiles, in frames of a few sizes."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from given_features import STRIDE, FixedEncoder, draw_smooth_features, make_blank_image
from skimage import data as pictures

from fseg_jax.codebook import Codebook, Provenance
from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.encoder import EncoderCard, JaxEncoder, encode_framed
from fseg_jax.encoders.load import load_encoder
from fseg_jax.errors import InputError
from fseg_jax.methods import fseg
from fseg_jax.pipeline.image import frame_sides, segment


def test_a_sides_that_is_no_multiple_of_the_stride():
    image = np.random.default_rng(0).integers(0, 255, (70, 45, 3), dtype=np.uint8)
    codebook = Codebook(np.random.default_rng(1).random((4, 20)))
    labels = segment(image, classical(), codebook)
    assert labels.shape == (70, 45) and set(np.unique(labels)) <= {1, 2, 3, 4}


def test_seed_makes_assign_reproducible():
    A, centers = draw_smooth_features(8, 8, 24, 6)
    masks = [
        segment(make_blank_image(A), FixedEncoder(A), Codebook(centers), mode="assign", concepts=5, seed=s)
        for s in (0, 0)
    ]
    assert (masks[0] == masks[1]).all()


@pytest.mark.parametrize("mode", ["fixed", "assign"])
def test_a_codebooks_mixtures_name_nothing(mode):
    """Tokens that owe most to a mixture get the cluster that has the rest of them."""
    centers = np.eye(12, dtype=np.float32)[:3]
    A = centers[[0] * 8 + [1] * 8].reshape(4, 4, 12) * 1.0
    A[1:3, :, 5] = 4
    book = Codebook(centers, mixtures=np.eye(12)[5:6])
    labels = segment(make_blank_image(A), FixedEncoder(A), book, mode=mode, concepts=3, resize="nearest")
    half = 2 * STRIDE
    assert (labels[:half] == 1).all() and (labels[half:] == 2).all()


@pytest.mark.parametrize("resize", ["bilinear", "nearest"])
@pytest.mark.parametrize("mode", ["fixed", "assign"])
def test_features_of_zero_are_background_and_no_cluster(mode, resize):
    """A token without features owes nothing to any cluster; nor does a whole image of such."""
    centers = np.eye(12, dtype=np.float32)[:4]
    A = np.repeat(centers[[1, 2]], 18, 0).reshape(6, 6, 12)
    A[:, 3:] = 0
    more = {"mode": mode, "concepts": 4, "resize": resize}
    labels = segment(make_blank_image(A), FixedEncoder(A), Codebook(centers), **more)
    # Interpolated weights reach the first token's centre of those that have none.
    edge = 3 * STRIDE + (STRIDE // 2 if resize == "bilinear" else 0)
    assert (labels[:, edge:] == 0).all() and set(np.unique(labels[:, :edge])) == {2, 3}
    assert (segment(make_blank_image(A), FixedEncoder(0 * A), Codebook(centers), **more) == 0).all()


@pytest.mark.parametrize(
    ("of_features", "of_centres"), [(1e30, 1.0), (1e-30, 1.0), (1.0, 1e30), (1e-30, 1e30)]
)
@pytest.mark.parametrize("mode", ["fixed", "assign"])
def test_features_and_centres_of_any_size_give_the_same_labels(mode, of_features, of_centres):
    features, centers = draw_smooth_features(8, 8, 24, 6)
    more = {"mode": mode, "concepts": 5}
    plain = segment(make_blank_image(features), FixedEncoder(features), Codebook(centers), **more)
    features, centers = (
        np.float32(x.astype(np.float64) * s) for x, s in ((features, of_features), (centers, of_centres))
    )
    far = segment(make_blank_image(features), FixedEncoder(features), Codebook(centers), **more)
    assert len(np.unique(plain)) >= 4 and (far == plain).mean() >= 0.99


A, CENTERS = draw_smooth_features(8, 8, 24, 6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image": np.zeros((64, 64), np.uint8)}, "uint8 (height, width, 3) is needed"),
        ({"image": np.zeros((64, 64, 3))}, "float64"),
        ({"mode": "free"}, "choose 'fixed' or 'assign'"),
        ({"resize": "cubic"}, "choose 'bilinear' or 'nearest'"),
        ({"mode": "assign", "concepts": 65}, "65 concepts for a tile of 64 tokens"),
        ({"codebook": Codebook(np.ones((4, 23)))}, "23 wide, the features of the encoder 'given' 24"),
        (
            {"codebook": Codebook(CENTERS, Provenance(encoder="uni"))},
            "made with the encoder 'uni', not with 'given'",
        ),
        ({"encoder": FixedEncoder(np.where(A.mean() < A, np.nan, A))}, "NaN"),
    ],
)
def test_bad_input_is_named(change, says):
    arguments = {
        "image": make_blank_image(A),
        "encoder": FixedEncoder(A),
        "codebook": Codebook(CENTERS),
    } | change
    with pytest.raises(InputError) as caught:
        segment(**arguments)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def labels_alone(image, encoder, codebook, **options) -> np.ndarray:
    """The labels of an image in arrays of its own shape."""
    height, width = image.shape[:2]
    padded = np.pad(image, [(0, -height % STRIDE), (0, -width % STRIDE), (0, 0)], mode="edge")
    centers, key = jnp.asarray(codebook.centers), jax.random.key(0)
    W, *_ = fseg.solve_tiles(encoder(jnp.asarray(padded[None])), centers, key, **options)
    framed = jnp.pad(W, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    return np.asarray(fseg.label_pixels(framed, STRIDE))[0, :height, :width]


TISSUE = pictures.immunohistochemistry()
BOOK = Codebook(np.asarray(classical()(jnp.asarray(TISSUE[None, :64])))[0, ::3, 3::4].reshape(-1, 20)[:8])


@pytest.mark.parametrize("mode", ["fixed", "assign"])
@pytest.mark.parametrize("size", [(70, 45), (300, 210)])
def test_an_image_has_the_labels_it_has_in_arrays_of_its_own_shape(mode, size):
    image = TISSUE[: size[0], 100 : 100 + size[1]]
    ours = segment(image, classical(), BOOK, mode=mode, concepts=6)
    theirs = labels_alone(image, classical(), BOOK, mode=mode, concepts=6)
    assert len(np.unique(theirs)) > 1 and (ours == theirs).mean() >= 0.9999


def test_an_image_of_a_frames_size_has_the_same_features_to_the_bit():
    for side in frame_sides(classical().card):
        image = jnp.asarray(TISSUE[None, :side, :side])
        framed = encode_framed(classical(), image, np.array([[side, side]]))
        np.testing.assert_array_equal(framed, classical()(image))


def test_a_large_image_is_blended_from_tiles():
    image = np.pad(TISSUE, [(40, 48), (0, 200), (0, 0)], mode="reflect")
    ours = segment(image, classical(), BOOK)
    assert (
        ours.shape == image.shape[:2]
        and (ours == labels_alone(image, classical(), BOOK, mode="fixed")).mean() > 0.99
    )


def blocks_of_colour(weights, x):
    b, height, width, _ = x.shape
    return x.reshape(b, height // 32, 32, width // 32, 32, 3).mean((2, 4)) + 1


COLOURS = JaxEncoder(
    EncoderCard("colours", "x", 3, 32, 224, 1.0, (0.0,) * 3, (1.0,) * 3, "none", "none", ""),
    blocks_of_colour,
    None,
)


@contextmanager
def counted_programs() -> Iterator[list[str]]:
    """What is compiled within the block."""
    compiled: list[str] = []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def count_programs(count, encoder, codebook, **options) -> int:
    """How many programs ``count`` images of as many sizes take, some of them larger than any frame."""
    r = np.random.default_rng(0)
    drawn = np.concatenate([r.integers(32, 300, (count, 2)), r.integers(32, 600, (count // 9, 2))]).tolist()
    sizes = list(dict.fromkeys(map(tuple, drawn)))[-count:]
    assert len(sizes) == count and max(max(size) for size in sizes) > 512
    jax.random.key(0)  # a program of its own
    with counted_programs() as compiled:
        for height, width in sizes:
            image = np.pad(
                TISSUE[:height, :width], [(0, max(0, n - 512)) for n in (height, width)] + [(0, 0)]
            )
            labels = segment(image, encoder, codebook, concepts=1, **options)
            assert labels.shape == (height, width) and labels.min() >= 1
    return len(compiled)


@pytest.mark.parametrize("mode", ["fixed", "assign"])
def test_hundreds_of_sizes_take_six_programs(mode):
    fseg._solve_tiles.clear_cache()
    fseg.label_pixels.clear_cache()
    assert 3 <= count_programs(200, COLOURS, Codebook(np.eye(3)[:2]), mode=mode, resize="nearest") <= 6


@pytest.mark.long
def test_a_thousand_sizes_take_six_programs_of_he_small():
    assert count_programs(1000, load_encoder("he-small"), Codebook.load("he-small", k=16)) <= 6


def test_segmenting_compiles_once():
    image = np.zeros((64, 64, 3), np.uint8)
    encoder, book = classical(), Codebook(np.eye(20)[:3])
    segment(image, encoder, book)
    sizes = [f._cache_size() for f in (fseg._solve_tiles, fseg.label_pixels)]
    segment(image + 9, classical(), book, seed=5)
    assert [f._cache_size() for f in (fseg._solve_tiles, fseg.label_pixels)] == sizes
    assert jax.config.jax_numpy_rank_promotion == "raise"
