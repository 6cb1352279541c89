"""Plain dense formulas of the operators, on the CPU in float64: what an accelerator must give."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from attnconv.bench import forms
from attnconv.bench.case import Case
from attnconv.bench.forms import Arrays


def attention(
    query: Float[Array, "B T N K"],
    key: Float[Array, "B S N K"],
    value: Float[Array, "B S N K"],
    bias: Float[Array, "#B #N T S"] | None = None,
    mask: Bool[Array, "#B #N #T S"] | None = None,
    *,
    is_causal: bool = False,
) -> Float[Array, "B T N K"]:
    scores = jnp.einsum("BTNK,BSNK->BNTS", query, key) / math.sqrt(query.shape[-1])
    scores = scores if bias is None else scores + bias
    scores = scores if mask is None else jnp.where(mask, scores, -jnp.inf)
    if is_causal:
        T, S = scores.shape[-2:]
        scores = jnp.where(jnp.tri(T, S, dtype=bool), scores, -jnp.inf)
    return jnp.einsum("BNTS,BSNK->BTNK", jax.nn.softmax(scores), value)


def neighborhood(
    query: Float[Array, "B H W N K"],
    key: Float[Array, "B H W N K"],
    value: Float[Array, "B H W N K"],
    *,
    window: int,
) -> Float[Array, "B H W N K"]:
    def seen(n: int) -> Bool[np.ndarray, "n n"]:
        first = np.clip(np.arange(n) - window // 2, 0, n - window)
        place = np.arange(n) - first[:, None]
        return (place >= 0) & (place < window)

    H, W = query.shape[1:3]
    mask = jnp.asarray(seen(H)[:, None, :, None] & seen(W)[None, :, None])
    q, k, v = (x.reshape(len(x), H * W, *x.shape[3:]) for x in (query, key, value))
    return attention(q, k, v, mask=mask.reshape(1, 1, H * W, H * W)).reshape(query.shape)


def conv(
    x: Float[Array, "B H W C"], kernel: Float[Array, "h w I O"], *, groups: int = 1
) -> Float[Array, "B H W O"]:
    """With zeros around, so that the image keeps its size; an odd window."""
    (B, H, W, _), (h, w, channels, features) = x.shape, kernel.shape
    x = jnp.pad(x, [(0, 0), (h // 2,) * 2, (w // 2,) * 2, (0, 0)])
    x = x.reshape(*x.shape[:3], groups, channels)
    kernel = kernel.reshape(h, w, channels, groups, features // groups)
    offsets = itertools.product(range(h), range(w))
    terms = (
        jnp.einsum("BHWgI,Igo->BHWgo", x[:, i : i + H, j : j + W], kernel[i, j]) for i, j in offsets
    )
    return functools.reduce(jnp.add, terms).reshape(B, H, W, features)


_FORMULAS: dict[str, Callable[..., Array]] = {
    "attention": attention,
    "neighborhood": neighborhood,
    "conv": conv,
}


def results(case: Case) -> Arrays:
    """What `Program.read` should give for a case, forward or gradient: the part that is checked."""
    checked = case.checked()
    function = functools.partial(_FORMULAS[case.operator], **checked.options)
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        inputs = {name: _wide(case.part(name, array)) for name, array in case.inputs().items()}
        trained = {name: inputs.pop(name) for name in case.trained}

        @jax.jit
        def gradient(trained: Any, dy: Any) -> Any:
            y, pull = jax.vjp(lambda trained: function(**trained, **inputs), trained)
            return y, pull(dy)[0]

        if case.mode == "forward":
            return {"y": np.asarray(jax.jit(function)(**trained, **inputs))}
        dy = forms.cotangent(case.shape("y"), case.dtype)
        y, gradients = gradient(trained, _wide(case.part("y", dy)))
        return {"y": np.asarray(y), **{name: np.asarray(x) for name, x in gradients.items()}}


def _wide(array: np.ndarray) -> Array:
    return jnp.asarray(array if array.dtype == bool else array.astype(np.float64))
