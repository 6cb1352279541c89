"""Neighborhood attention: which form it takes, by the platform and the arrays."""

import dataclasses

from jaxtyping import Array, Float

from attnconv.lowering import attention_loops, neighborhood_kernel
from attnconv.lowering.choice import note
from attnconv.lowering.neighborhood_kernel import Kernel
from attnconv.lowering.neighborhood_tiles import Tiles
from attnconv.lowering.rules import Form, Moving, Ways, attend
from attnconv.lowering.tiles import Tiling


def attention(
    moving: Moving, tiling: tuple[Tiling, ...], *, scale: float | None, implementation: str
) -> Float[Array, "B *grid N K"]:
    """`y`, in the form that is asked for or fast where it runs.

    The bias has an entry for each place in the window or for each offset, by its shape. `scale` is
    that of `moving` where it is known when the call is traced.
    """
    kind = Tiles(tiling)
    tiles = "{} tiles, each {} queries, {} keys".format(
        *("x".join(str(getattr(t, name)) for t in tiling) for name in ("tiles", "rows", "columns"))
    )
    boxes = neighborhood_kernel.tiles(moving.query, len(tiling))
    dtype = moving.query.dtype
    # As one batch under `vmap`, a bias for all examples would be one for each.
    kernel = Kernel(tiling, folds=scale is not None and moving.bias is None)
    if implementation == "pallas":
        moving = attention_loops.promoted(moving)
        reason = f"implementation is 'pallas'; {boxes}"
        note("neighborhood_attention", "cuda", "kernel", reason)
        note("neighborhood_attention", "cpu", "interpreted kernel", reason)
        note("neighborhood_attention", "other", "all tiles", "kernels are for CUDA")
        own: Ways = (("cuda", kernel), ("cpu", dataclasses.replace(kernel, interpret=True)))
        return attend(Form(kind, own), moving, ())[0].astype(dtype)
    refusal = attention_loops.refusal(moving)
    own = (("cuda", kernel), ("cpu", kind))
    on_cuda = ("kernel", boxes)
    if refusal is not None:
        own, on_cuda = own[1:], ("all tiles", f"there is no kernel for {refusal}; {tiles}")
    note("neighborhood_attention", "cpu", "tiles", tiles)
    note("neighborhood_attention", "cuda", *on_cuda)
    note("neighborhood_attention", "other", "all tiles", tiles)
    return attend(Form(kind, own), moving, ())[0]
