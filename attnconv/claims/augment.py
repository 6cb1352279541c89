"""Random changes of training images that keep their label: other places, mirror images."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def random_shift(rng: Array, x: Float[Array, "B H W C"], *, most: int) -> Float[Array, "B H W C"]:
    """Each image moved by up to `most` pixels along each axis, its border repeated.

    `y[i, j] = x[clip(i + d), clip(j + e)]`, d and e uniform in `-most .. most` for each image.

    Source: Krizhevsky et al. 2012, ImageNet Classification with Deep Convolutional Neural Networks,
    section 4.1, crops at random places.

    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> random_shift(jax.random.key(0), x, most=1).shape
    (1, 4, 4, 1)
    """
    wide = jnp.pad(x, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    starts = jax.random.randint(rng, (len(x), 2), 0, 2 * most + 1)

    def crop(image: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice(image, (*start, 0), x.shape[1:])

    return jax.vmap(crop)(wide, starts)


def random_flip(rng: Array, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Each image, or with probability 1/2 its mirror image, left and right exchanged.

    Source: Krizhevsky et al. 2012, as `random_shift`.

    >>> x = jnp.arange(2.0).reshape(1, 1, 2, 1)
    >>> sorted({random_flip(jax.random.key(i), x)[0, 0, 0].item() for i in range(9)})
    [0.0, 1.0]
    """
    mirrored = jax.random.bernoulli(rng, 0.5, (len(x), 1, 1, 1))
    return jnp.where(mirrored, x[:, :, ::-1], x)
