"""A run that survives a kill: its state on disk, and one line of measurements for each part."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from attnconv import compiled, results, runs, train


def train_saved(
    programs: compiled.Programs,
    data: train.Data,
    run: runs.Run,
    *,
    out: Path,
    every: int,
    validation: train.Data,
    on_steps: Callable[[int], None] = lambda n: None,
) -> runs.Trained:
    """`runs.train_one`, saved every so many steps; a later call goes on from the newest state.

    A run that was interrupted ends with the same bits as one that was not.

    Args:
      programs: of the model and the recipe.
      data: what `run.order` refers to.
      run: which run.
      out: the folder for `checkpoints/` and `metrics.jsonl`.
      every: steps between two states on disk.
      validation: what it is scored on along the way.
      on_steps: is told how many steps were done.
    """
    folder, metrics = (out / "checkpoints").resolve(), out / "metrics.jsonl"
    keep_newest = ocp.CheckpointManagerOptions(max_to_keep=1)
    with ocp.CheckpointManager(folder, options=keep_newest) as manager:
        step, state = manager.latest_step() or 0, None
        if step:
            like = jax.eval_shape(programs.init, run.learning_rate, len(run.order), run.seed)
            restored = manager.restore(step, args=ocp.args.StandardRestore(like))
            # Not bound to a device, as a new state: else all would be compiled a second time.
            state = jax.tree.map(jnp.asarray, jax.device_get(restored))
            on_steps(step)
        lines = [line for line in read_metrics(metrics) if line["step"] <= step]
        before = lines[-1]["seconds"] if lines else 0.0

        def save(state: train.TrainState, loss: float, seconds: float) -> None:
            step = int(state.step)
            score = compiled.evaluate(programs, state.params, validation).accuracy
            line = {"step": step, "loss": loss, "validation": score, "seconds": before + seconds}
            lines.append(line)
            # The line first: one without its state is dropped on resuming, the reverse is not.
            results.write_whole(metrics, "".join(json.dumps(line) + "\n" for line in lines))
            manager.save(step, args=ocp.args.StandardSave(state))
            # The state's buffers are given to the next step, so it must have been copied by then.
            manager.wait_until_finished()

        data = runs.place(data)
        if step < len(run.order):
            runs.warm(programs, data, run, validation=validation, every=every)
        trained = runs.train_one(
            programs,
            data,
            run,
            validation=validation,
            on_steps=on_steps,
            save=save,
            save_every=every,
            state=state,
        )
    return trained._replace(seconds=before + trained.seconds)


def read_metrics(path: Path) -> list[dict[str, int | float]]:
    """The lines of a metrics file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
