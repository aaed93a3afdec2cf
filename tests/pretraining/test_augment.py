"""What varies between views: stain and focus, each image by itself."""

import jax
import jax.numpy as jnp
import numpy as np

from fseg_jax.pretraining.augment import BASIS, Strength
from fseg_jax.pretraining.augment import augment as augment_planes

KEY, DEFAULT = jax.random.key(0), Strength()
NONE = Strength(0, 0, 0, 0, 0, 0)


def augment(images, key, strength=DEFAULT):
    planes = jnp.moveaxis(jnp.asarray(images, jnp.float32), -1, 1)
    return jnp.moveaxis(augment_planes(planes, key, strength), 1, -1)


def images(n: int = 3) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (n, 16, 20, 3), dtype=np.uint8))


def test_no_strength_changes_nothing():
    np.testing.assert_allclose(augment(images(), KEY, NONE), np.asarray(images()) / 255, atol=1 / 200)


def test_the_amounts_of_stain_are_scaled():
    # One image of pure haematoxylin of optical density 0.5: scaled, it stays on the stain's own line.
    colour = 256 * np.exp(-0.5 * BASIS[0]) - 1
    x = jnp.asarray(np.tile(colour, (1, 8, 8, 1)).astype(np.uint8))
    out = np.asarray(augment(x, KEY, NONE._replace(amount=0.3)))
    density = -np.log(out[0, 0, 0])
    cosine = density @ BASIS[0] / np.linalg.norm(density)
    assert cosine > 0.999 and abs(np.linalg.norm(density) - 0.5) > 0.02


def test_grey_has_no_colour_and_blur_no_texture():
    grey = np.asarray(augment(images(), KEY, NONE._replace(grey=1)))
    assert np.ptp(grey, axis=-1).max() < 1e-5
    soft = np.asarray(augment(images(), KEY, NONE._replace(blur=1)))
    assert (soft.std((1, 2, 3)) < np.asarray(images() / 255).std((1, 2, 3))).all()


def test_each_image_by_itself_and_by_the_key():
    same = jnp.broadcast_to(images(1), (3, 16, 20, 3))
    out = np.asarray(augment(same, KEY))
    assert np.abs(out[0] - out[1]).max() > 0.01 and out.min() >= 0 and out.max() <= 1
    np.testing.assert_array_equal(out, augment(same, KEY))
    assert np.abs(out - np.asarray(augment(same, jax.random.key(1)))).max() > 0.01
