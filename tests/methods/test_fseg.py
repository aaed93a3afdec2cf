"""F-SEG against the authors' algorithm run with scikit-learn, SciPy's resampling, and hand-made cases."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from skimage import data as pictures
from sklearn.decomposition import NMF, non_negative_factorization
from sklearn.metrics.pairwise import cosine_distances

from fseg_jax.codebook import Codebook, Provenance
from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.encoder import EncoderCard, JaxEncoder, encode_framed
from fseg_jax.encoders.load import load_encoder
from fseg_jax.errors import InputError
from fseg_jax.methods import fseg
from fseg_jax.numerics import nmf

STRIDE = 16


def smooth_features(h: int, w: int, c: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features as an encoder gives them: regions that change smoothly, mixtures of k centres under noise."""
    r = np.random.default_rng(seed)
    centers = r.gamma(0.5, size=(k, c))
    fields = r.normal(size=(k, h // 4 + 2, w // 4 + 2))
    grid = np.mgrid[0 : h // 4 + 1 : h * 1j, 0 : w // 4 + 1 : w * 1j]
    W = np.exp(3 * np.stack([map_coordinates(f, grid, order=1) for f in fields], -1))
    A = (W / W.sum(-1, keepdims=True)) @ centers * r.gamma(8, 1 / 8, size=(h, w, c))
    return A.astype(np.float32), centers.astype(np.float32)


def resized_bilinearly(W: np.ndarray, stride: int) -> np.ndarray:
    """As torch's interpolate(mode="bilinear", align_corners=False), by SciPy."""
    h, w, _ = W.shape
    y, x = (np.clip((np.arange(n * stride) + 0.5) / stride - 0.5, 0, n - 1) for n in (h, w))
    grid = np.meshgrid(y, x, indexing="ij")
    return np.stack([map_coordinates(np.float64(f), grid, order=1) for f in np.moveaxis(W, -1, 0)], -1)


class Fixed:
    """An encoder whose features are given."""

    def __init__(self, features: np.ndarray):
        self.features = features
        self.card = EncoderCard(
            "given", "x", features.shape[-1], STRIDE, 512, 1.0, (0.0,) * 3, (1.0,) * 3, "none", "none", ""
        )

    def __call__(self, images):
        return jnp.asarray(self.features)[None]


def blank(A: np.ndarray) -> np.ndarray:
    return np.zeros((A.shape[0] * STRIDE, A.shape[1] * STRIDE, 3), np.uint8)


@pytest.mark.parametrize("k", [8, 32])
def test_fixed_mode_equals_the_authors(k):
    A, centers = smooth_features(24, 20, 96, k)
    W, _, _ = non_negative_factorization(
        A.reshape(-1, 96),
        W=None,
        H=centers.copy(),
        n_components=k,
        update_H=False,
        random_state=0,
        max_iter=10000,
    )
    theirs = resized_bilinearly(W.reshape(24, 20, k), STRIDE).argmax(-1) + 1
    ours = fseg.segment(blank(A), Fixed(A), Codebook(centers))
    assert ours.dtype == np.uint8 and (ours == theirs).mean() >= 0.995


def test_fixed_mode_equals_the_authors_on_their_centres(data):
    centers = Codebook.load(data / "codebooks" / "resnet.joblib", 64).centers
    r = np.random.default_rng(0)
    fields = r.gamma(0.3, size=(8, 8, 64)) ** 2
    W = np.stack([np.kron(f, np.ones((3, 3))) for f in np.moveaxis(fields, -1, 0)], -1)
    A = (W @ centers * r.gamma(0.5, 2, size=(24, 24, 1024))).astype(np.float32)
    # Their tolerance of 1e-4 leaves them short of the optimum on centres so alike: run to where they would
    # arrive.
    W, _, _ = non_negative_factorization(
        A.reshape(-1, 1024),
        W=None,
        H=centers.copy(),
        update_H=False,
        n_components=64,
        tol=1e-6,
        max_iter=10000,
    )
    theirs = resized_bilinearly(W.reshape(24, 24, 64), STRIDE).argmax(-1) + 1
    assert (fseg.segment(blank(A), Fixed(A), Codebook(centers)) == theirs).mean() >= 0.995


def test_assign_mode_equals_the_authors_from_the_same_start(monkeypatch):
    h, w, c, k, concepts = 24, 20, 96, 12, 8
    A, centers = smooth_features(h, w, c, k)
    r = np.random.default_rng(1)
    W0, H0 = r.random((h * w, concepts)).astype(np.float32), r.random((concepts, c)).astype(np.float32)
    model = NMF(concepts, init="custom", max_iter=200)
    H = model.fit_transform(
        A.reshape(-1, c).T, W=H0.T.copy(), H=W0.T.copy()
    ).T  # channels × pixels, as they do
    names = np.array([cosine_distances(row[None], centers).argmin() for row in H])
    resized = resized_bilinearly(model.components_.T.reshape(h, w, concepts), STRIDE)
    theirs = names[resized.argmax(-1)] + 1

    original = nmf.factorize

    def started(A, k, *, key, rows):
        W = jnp.pad(jnp.asarray(W0), ((0, A.shape[1] - h * w), (0, 0)))
        return original(A, k, key=key, start=(W, jnp.asarray(H0)), rows=rows)

    monkeypatch.setattr(nmf, "factorize", started)
    fseg._tile_weights.clear_cache()
    ours = fseg.segment(blank(A), Fixed(A), Codebook(centers), mode="assign", concepts=concepts)
    fseg._tile_weights.clear_cache()
    assert len(set(names)) >= 4
    assert (ours == theirs).mean() >= 0.995


@pytest.mark.parametrize("stride", [8, 14, 15, 16])
def test_block_labels_are_the_argmax_of_resized_weights(stride):
    W = np.random.default_rng(0).random((2, 5, 7, 6)).astype(np.float32)
    framed = np.pad(W, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    ours = np.asarray(fseg.block_labels(jnp.asarray(framed), stride))
    theirs = np.stack([resized_bilinearly(w, stride).argmax(-1) + 1 for w in W])
    assert ours.shape == (2, 5 * stride, 7 * stride) and (ours == theirs).mean() >= 0.9999


def test_nearest_resizes_the_mask():
    W = np.zeros((1, 4, 4, 3), np.float32)
    W[0, 1, 1, 2], W[0, 1, 2, 0], W[0, 2, 1, 1], W[0, 2, 2, 2] = 1, 1, 1, 1
    labels = np.asarray(fseg.block_labels(jnp.asarray(W), 2, "nearest"))[0]
    np.testing.assert_array_equal(labels, [[3, 3, 1, 1], [3, 3, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]])


def test_more_than_255_clusters_need_16_bits():
    labels = fseg.block_labels(jnp.zeros((1, 3, 3, 256)).at[..., 255].set(1.0), 4)
    assert labels.dtype == jnp.uint16 and int(labels.min()) == 256


def test_name_concepts_is_cosine_not_dot():
    centers = jnp.asarray([[10.0, 10.0], [0.1, 0.0]])
    assert fseg.name_concepts(jnp.asarray([[[5.0, 0.5]]]), centers).tolist() == [[1]]


def test_a_cluster_contributes_by_its_largest_concept():
    W = jnp.asarray([[[1.0, 5.0, 2.0], [3.0, 0.0, 1.0]]])
    named = fseg.name_weights(W, jnp.asarray([[2, 0, 2]]), 4)
    np.testing.assert_array_equal(named, [[[5, 0, 2, 0], [0, 0, 3, 0]]])


# --------------------------------------------------------------------------------------------- blending


def cut(field: np.ndarray, pitch: int, halo: int) -> dict[tuple[int, int], np.ndarray]:
    """Tiles of one global field, as if every tile saw the same thing."""
    padded = np.pad(field, ((halo, halo + pitch), (halo, halo + pitch), (0, 0)), mode="edge")
    rows, columns = (-(-n // pitch) for n in field.shape[:2])
    t = pitch + 2 * halo
    return {
        (r, c): padded[r * pitch : r * pitch + t, c * pitch : c * pitch + t]
        for r in range(rows)
        for c in range(columns)
    }


@pytest.mark.parametrize(("pitch", "halo"), [(6, 1), (4, 2), (8, 2)])
def test_blending_agreeing_tiles_changes_nothing(pitch, halo):
    field = np.random.default_rng(0).random((19, 14, 3)).astype(np.float32)
    tiles = cut(field, pitch, halo)
    framed = np.pad(field, ((1, 1 + pitch), (1, 1 + pitch), (0, 0)), mode="edge")
    for (r, c), _ in tiles.items():
        block = fseg.blend(tiles, r, c, halo, field.shape[:2])
        expected = framed[r * pitch : r * pitch + pitch + 2, c * pitch : c * pitch + pitch + 2]
        np.testing.assert_allclose(block, expected, rtol=1e-5)


def test_blending_is_bitwise_independent_of_order_and_continuous_across_the_seam():
    r = np.random.default_rng(0)
    tiles = {(y, x): r.random((8, 8, 2)).astype(np.float32) for y in range(3) for x in range(3)}
    shuffled = {key: tiles[key] for key in sorted(tiles, key=lambda key: (key[1] * 7 + key[0] * 5) % 9)}
    left, right = (fseg.blend(tiles, 1, x, 2, (12, 12)) for x in (1, 2))
    assert (left == fseg.blend(shuffled, 1, 1, 2, (12, 12))).all()
    # What one block calls its frame is what the other calls its own, so that labels meet without a seam.
    np.testing.assert_allclose(left[:, -2:], right[:, :2], rtol=1e-6)


def test_a_missing_neighbour_leaves_the_tile_as_it_is():
    tile = np.random.default_rng(0).random((8, 8, 2)).astype(np.float32)
    block = fseg.blend({(1, 1): tile}, 1, 1, 2, (12, 12))
    np.testing.assert_allclose(block, tile[1:7, 1:7], rtol=1e-6)


# ----------------------------------------------------------------------------------------------- segment


def test_a_sides_that_is_no_multiple_of_the_stride():
    image = np.random.default_rng(0).integers(0, 255, (70, 45, 3), dtype=np.uint8)
    codebook = Codebook(np.random.default_rng(1).random((4, 20)))
    labels = fseg.segment(image, classical(), codebook)
    assert labels.shape == (70, 45) and set(np.unique(labels)) <= {1, 2, 3, 4}


def test_seed_makes_assign_reproducible():
    A, centers = smooth_features(8, 8, 24, 6)
    masks = [
        fseg.segment(blank(A), Fixed(A), Codebook(centers), mode="assign", concepts=5, seed=s) for s in (0, 0)
    ]
    assert (masks[0] == masks[1]).all()


@pytest.mark.parametrize("resize", ["bilinear", "nearest"])
@pytest.mark.parametrize("mode", ["fixed", "assign"])
def test_features_of_zero_are_background_and_no_cluster(mode, resize):
    """A token without features owes nothing to any cluster; nor does a whole image of such."""
    centers = np.eye(12, dtype=np.float32)[:4]
    A = np.repeat(centers[[1, 2]], 18, 0).reshape(6, 6, 12)
    A[:, 3:] = 0
    more = {"mode": mode, "concepts": 4, "resize": resize}
    labels = fseg.segment(blank(A), Fixed(A), Codebook(centers), **more)
    # Interpolated weights reach the first token's centre of those that have none.
    edge = 3 * STRIDE + (STRIDE // 2 if resize == "bilinear" else 0)
    assert (labels[:, edge:] == 0).all() and set(np.unique(labels[:, :edge])) == {2, 3}
    assert (fseg.segment(blank(A), Fixed(0 * A), Codebook(centers), **more) == 0).all()


@pytest.mark.parametrize(
    ("of_features", "of_centres"), [(1e30, 1.0), (1e-30, 1.0), (1.0, 1e30), (1e-30, 1e30)]
)
@pytest.mark.parametrize("mode", ["fixed", "assign"])
def test_features_and_centres_of_any_size_give_the_same_labels(mode, of_features, of_centres):
    features, centers = smooth_features(8, 8, 24, 6)
    more = {"mode": mode, "concepts": 5}
    plain = fseg.segment(blank(features), Fixed(features), Codebook(centers), **more)
    features, centers = (
        np.float32(x.astype(np.float64) * s) for x, s in ((features, of_features), (centers, of_centres))
    )
    far = fseg.segment(blank(features), Fixed(features), Codebook(centers), **more)
    assert len(np.unique(plain)) >= 4 and (far == plain).mean() >= 0.99


A, CENTERS = smooth_features(8, 8, 24, 6)


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
        ({"encoder": Fixed(np.where(A.mean() < A, np.nan, A))}, "NaN"),
    ],
)
def test_bad_input_is_named(change, says):
    arguments = {"image": blank(A), "encoder": Fixed(A), "codebook": Codebook(CENTERS)} | change
    with pytest.raises(InputError) as caught:
        fseg.segment(**arguments)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def labels_alone(image, encoder, codebook, **options) -> np.ndarray:
    """The labels of an image in arrays of its own shape."""
    height, width = image.shape[:2]
    padded = np.pad(image, [(0, -height % STRIDE), (0, -width % STRIDE), (0, 0)], mode="edge")
    centers, key = jnp.asarray(codebook.centers), jax.random.key(0)
    W, *_ = fseg.tile_weights(encoder(jnp.asarray(padded[None])), centers, key, **options)
    framed = jnp.pad(W, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    return np.asarray(fseg.block_labels(framed, STRIDE))[0, :height, :width]


TISSUE = pictures.immunohistochemistry()
BOOK = Codebook(np.asarray(classical()(jnp.asarray(TISSUE[None, :64])))[0, ::3, 3::4].reshape(-1, 20)[:8])


@pytest.mark.parametrize("mode", ["fixed", "assign"])
@pytest.mark.parametrize("size", [(70, 45), (300, 210)])
def test_an_image_has_the_labels_it_has_in_arrays_of_its_own_shape(mode, size):
    image = TISSUE[: size[0], 100 : 100 + size[1]]
    ours = fseg.segment(image, classical(), BOOK, mode=mode, concepts=6)
    theirs = labels_alone(image, classical(), BOOK, mode=mode, concepts=6)
    assert len(np.unique(theirs)) > 1 and (ours == theirs).mean() >= 0.9999


def test_an_image_of_a_frames_size_has_the_same_features_to_the_bit():
    for side in fseg.frame_sides(classical().card):
        image = jnp.asarray(TISSUE[None, :side, :side])
        framed = encode_framed(classical(), image, np.array([[side, side]]))
        np.testing.assert_array_equal(framed, classical()(image))


def test_a_large_image_is_blended_from_tiles():
    image = np.pad(TISSUE, [(40, 48), (0, 200), (0, 0)], mode="reflect")
    ours = fseg.segment(image, classical(), BOOK)
    assert (
        ours.shape == image.shape[:2]
        and (ours == labels_alone(image, classical(), BOOK, mode="fixed")).mean() > 0.99
    )


@pytest.mark.parametrize(("n", "tile"), [(5, 32), (32, 32), (33, 32), (100, 32), (9, 4)])
def test_tiles_cover_an_axis_and_count_as_one_in_all(n, tile):
    total = np.zeros(n)
    for start, share in fseg._spans(n, tile):
        assert start + len(share) <= n and len(share) == min(n, tile) and (share > 0).all()
        total[start : start + len(share)] += share
    np.testing.assert_allclose(total, 1, rtol=1e-6)


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


def thousand_sizes(encoder, codebook, **options) -> int:
    """How many programs a thousand images of as many sizes take, some of them larger than any frame."""
    r = np.random.default_rng(0)
    drawn = np.concatenate([r.integers(32, 300, (990, 2)), r.integers(32, 600, (110, 2))]).tolist()
    sizes = list(dict.fromkeys(map(tuple, drawn)))[-1000:]
    assert len(sizes) == 1000 and max(max(size) for size in sizes) > 512
    jax.random.key(0)  # a program of its own
    with counted_programs() as compiled:
        for height, width in sizes:
            image = np.pad(
                TISSUE[:height, :width], [(0, max(0, n - 512)) for n in (height, width)] + [(0, 0)]
            )
            labels = fseg.segment(image, encoder, codebook, concepts=1, **options)
            assert labels.shape == (height, width) and labels.min() >= 1
    return len(compiled)


@pytest.mark.parametrize("mode", ["fixed", "assign"])
def test_a_thousand_sizes_take_six_programs(mode):
    fseg._tile_weights.clear_cache()
    fseg.block_labels.clear_cache()
    assert 3 <= thousand_sizes(COLOURS, Codebook(np.eye(3)[:2]), mode=mode, resize="nearest") <= 6


@pytest.mark.long
def test_a_thousand_sizes_take_six_programs_of_he_small():
    assert thousand_sizes(load_encoder("he-small"), Codebook.load("he-small", k=16)) <= 6


def test_segmenting_compiles_once():
    image = np.zeros((64, 64, 3), np.uint8)
    encoder, book = classical(), Codebook(np.eye(20)[:3])
    fseg.segment(image, encoder, book)
    sizes = [f._cache_size() for f in (fseg._tile_weights, fseg.block_labels)]
    fseg.segment(image + 9, classical(), book, seed=5)
    assert [f._cache_size() for f in (fseg._tile_weights, fseg.block_labels)] == sizes
    assert jax.config.jax_numpy_rank_promotion == "raise"


@pytest.mark.parametrize("k", [1, 4, 40, 300])
@pytest.mark.parametrize("kind", ["dense", "sparse", "zero", "ties"])
def test_labels_are_those_of_all_clusters_interpolated(k: int, kind: str) -> None:
    """Leaving out the clusters that cannot win changes no pixel, ties and tokens without weights included."""
    r = np.random.default_rng(k)
    W = r.random((2, 5, 6, k), np.float32)
    W *= r.random(W.shape) < {"sparse": 0.2}.get(kind, 1)
    W[:, : {"zero": 3}.get(kind, 0)] = 0
    W = np.round(2 * W) if kind == "ties" else W
    stride = 4  # a power of two: what ties does so in any arithmetic
    t = (np.arange(stride, dtype=np.float32) + 0.5) / stride

    def stretch(x: np.ndarray, axis: int) -> np.ndarray:
        x = np.moveaxis(x, axis, -1)[..., None]
        between = x[..., :-1, :] * (1 - t) + x[..., 1:, :] * t
        return np.moveaxis(between.reshape(*x.shape[:-2], -1), -1, axis)

    cut = stretch(stretch(W, 1), 2)[:, 2:-2, 2:-2]
    labels = np.asarray(fseg.block_labels(jnp.asarray(W), stride))
    np.testing.assert_array_equal(labels, np.where(cut.max(-1) > 0, cut.argmax(-1) + 1, 0))
