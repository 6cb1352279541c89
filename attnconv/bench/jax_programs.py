"""Programs of the JAX peers: ours, stock JAX, Flax and Equinox."""

import dataclasses
import gc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnconv.bench import forms, jax_peers
from attnconv.bench.case import Case
from attnconv.bench.forms import Arrays, Form, Program

RATE = 1e-4  # of the steps of a scan, small enough that rounding does not grow


class _Jitted(NamedTuple):
    """A function to compile, its arguments, and its results in our layout."""

    function: Any
    arguments: tuple[Any, ...]
    read: Callable[[Any], Arrays]


def program(case: Case, peer: str) -> Program:
    """The peer's program; for an accelerator compiled, which workers do at the same time."""
    if case.mode == "step":
        from attnconv.bench import jax_steps

        return jax_steps.program(case, peer)
    function, arguments, read = _jitted(case, jax_peers.form(case, peer))

    def compiled() -> Callable[[], Any]:
        ready = function.lower(*arguments).compile()
        return lambda: jax.block_until_ready(ready(*arguments))

    call = function if case.platform == "cpu" else function.lower(*arguments).compile()

    found = Program(
        run=lambda: jax.block_until_ready(call(*arguments)),
        read=lambda: read(jax.block_until_ready(call(*arguments))),
        compiled=compiled,
        steps=case.steps,
    )
    if case.platform == "cpu":
        return found
    count = forms.copies(sum(x.nbytes for x in jax.tree.leaves(arguments)))
    sets = [arguments, *(jax.tree.map(jnp.copy, arguments) for _ in range(count - 1))]

    def queued(calls: int) -> None:
        result = None
        for i in range(calls):
            result = call(*sets[i % count])
        jax.block_until_ready(result)

    return dataclasses.replace(found, queued=queued, memory=lambda: jax_peers.memory(call))


def free() -> float:
    """Gives back what no program needs; the part of an accelerator's memory that may be kept."""
    gc.collect()
    stats = jax.local_devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / stats["bytes_limit"] if stats else 0.0


def _jitted(case: Case, form: Form) -> _Jitted:
    inputs = case.inputs()

    def found(name: str, array: Any) -> np.ndarray:
        """One of the results in our layout; for an accelerator the part that is checked."""
        result = form.back(name, np.asarray(array), inputs[name].shape if name != "y" else None)
        result = case.part(name, result) if case.platform == "gpu" else result
        return np.asarray(result, np.float32)

    arrays = {name: jnp.asarray(form.into(name, array)) for name, array in inputs.items()}
    if case.mode == "forward":
        forward = jax.jit(jax_peers.precise(case, lambda arrays: form.function(**arrays)))
        return _Jitted(forward, (arrays,), lambda y: {"y": found("y", y)})
    trained = {name: arrays.pop(name) for name in case.trained}
    y = jax.eval_shape(lambda: form.function(**trained, **arrays))
    dy = forms.cotangent(form.back("y", np.empty(y.shape)).shape, case.dtype)
    arguments = trained, arrays, jnp.asarray(form.into("y", dy))

    def by_name(arrays: dict[str, Any]) -> Arrays:
        return {name: found(name, array) for name, array in arrays.items()}

    if case.mode == "scan":
        looped = _scan(form, case.steps)
        return _Jitted(
            looped, arguments, lambda end: {"losses": np.asarray(end[1]), **by_name(end[0])}
        )

    def gradient(trained: Any, others: Any, dy: Any) -> Any:
        y, pull = jax.vjp(lambda trained: form.function(**trained, **others), trained)
        return y, pull(dy)[0]

    return _Jitted(
        jax.jit(jax_peers.precise(case, gradient)),
        arguments,
        lambda results: {"y": found("y", results[0]), **by_name(results[1])},
    )


def _scan(form: Form, steps: int) -> Callable[..., Any]:
    """Steps down the gradient of `<y, dy>`: both gradients and the value of each are needed."""

    @jax.jit
    def looped(trained: Any, others: Any, dy: Any) -> Any:
        def step(trained: Any, _: None) -> Any:
            loss, gradients = jax.value_and_grad(
                lambda trained: jnp.vdot(form.function(**trained, **others), dy)
            )(trained)
            return jax.tree.map(lambda x, dx: x - RATE * dx, trained, gradients), loss

        return jax.lax.scan(step, trained, length=steps)

    return looped
