"""The part of the page about accelerators: a section for each file of measurements of one."""

from pathlib import Path

from attnconv import results
from attnconv.bench import figure, page, store, table
from attnconv.bench.store import Measured, rows_of

HEADING = "## On an accelerator"
HOW = """Each case says its dtype. The peers follow each other, each timed in all its rounds before
the next one. An operator is checked for some examples and heads, or channels, against a dense
formula in float64 on the CPU: the error is the norm of the difference, of the output or of a
gradient, over that of the formula's, at most 1e-2 in bfloat16 and 1e-5 in float32. The error of a
training step is that of its first losses from ours. A sample queues as many runs as take 20 ms or
more and waits once, after as many that are not timed; the runs take turns on 3 to 16 copies of the
inputs, so that none is read from a cache. Samples are taken 7 times; the spread is that of their
quartiles. Float32 products are those of float32: TF32 is off for every peer. PyTorch's steps and
FlexAttention are compiled by `torch.compile`, but no convolution alone, which takes longer then;
its steps have the parameters in float32 and the model in the case's dtype, as ours, channels last
and a fused AdamW. Memory is the peak of one run above its
inputs: for JAX as the compiler planned it, for PyTorch as its allocator saw it."""


def append(folder: Path) -> None:
    """Adds to the folder's page what was measured in its `results`, in place of what it had."""
    path = folder / "benchmarks.md"
    text = path.read_text() if path.exists() else "# Benchmarks\n"
    parts = [text.partition(HEADING)[0].rstrip()]
    files = sorted((folder / "results").glob("*.json"))
    if files:
        parts += [HEADING, page.filled(HOW)]
    for file in files:
        measured = store.load(file)
        assert measured is not None
        picture = folder / f"benchmarks-{file.stem}.svg"
        device, rows = measured["environment"]["device"], rows_of(measured)
        figure.write(rows, device, picture)
        parts += [f"### {device}", f"![Ratios of the times in the table]({picture.name})"]
        parts += [_introduction(measured), *page.errors(rows), _table(measured)]
    results.write_whole(path, "\n\n".join(parts) + "\n")


def _introduction(measured: Measured) -> str:
    environment, rates = measured["environment"], measured["rates"]
    versions = ", ".join(
        f"{k} {v}" for k, v in environment.items() if k not in ("device", "commit")
    )
    return page.filled(
        f"""Measured with {versions}; {store.commits(rows_of(measured))}. The bound is the time that
        this device would need at the rate of a large product,
        {rates["flops_bfloat16"] / 1e12:.0f} TFLOP/s in bfloat16 and
        {rates["flops"] / 1e12:.0f} TFLOP/s in float32, or of a large copy,
        {rates["bytes"] / 1e9:.0f} GB/s, whichever is longer, as a part of the time taken."""
    )


def _table(measured: Measured) -> str:
    """A line for each peer of a case."""
    header = ["case", "peer", "ms", "/ ours", "floor", "met", "bound", "error", "memory, MB"]
    body = []
    for row in rows_of(measured):
        floors = {floor.against: floor for floor in table.floors(row)}
        for peer, found in row["peers"].items():
            floor = floors.get(peer)
            held = ["", ""] if floor is None else [floor.wanted, page.met(floor)]
            error = f"{found['difference']:.1e}" if "difference" in found else "-"
            cells = [row["case"], page.NAMES[peer], table.milliseconds(found)]
            cells += [table.spread(found.get("ratio")), *held]
            cells += [table.share(row, measured["rates"], peer), error]
            body.append([*cells, table.megabytes(found.get("memory"))])
    return page.markdown(header, body)
