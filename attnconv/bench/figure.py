"""A figure of a suite: how many times as long as ours each peer takes, on a log axis."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from attnconv.bench.measure import Row

# Okabe and Ito's palette; a marker for each, since colour alone does not reach everyone.
LOOKS = {
    "jax": ("#0072b2", "o", "stock JAX"),
    "flax": ("#56b4e9", "v", "Flax"),
    "equinox": ("#009e73", "s", "Equinox"),
    "torch": ("#d55e00", "D", "PyTorch"),
    "alone": ("#7a7a7a", "^", "ours, one by one"),
    "jax cudnn": ("#000000", "<", "JAX, cuDNN"),
    "flex": ("#e69f00", "X", "FlexAttention"),
}
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_LOOK: dict[str, Any] = {
    "svg.hashsalt": "attnconv",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def write(rows: Sequence[Row], title: str, path: Path) -> None:
    """Writes the SVG: a dot and the quartiles for each peer, a bar where its floor lies."""
    with style.context(["default", _LOOK]):
        figure = Figure(figsize=(8, 1.4 + 0.21 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(rows))
        for peer, (colour, marker, label) in LOOKS.items():
            found = [
                (place, row["peers"][peer]["ratio"], row["floors"].get(peer))
                for place, row in zip(places, rows, strict=True)
                if "ratio" in row["peers"].get(peer, {})
            ]
            if not found:
                continue
            x = [ratio["median"] for _, ratio, _ in found]
            below = [ratio["median"] - ratio["low"] for _, ratio, _ in found]
            above = [ratio["high"] - ratio["median"] for _, ratio, _ in found]
            y = [place for place, _, _ in found]
            axes.errorbar(
                x, y, xerr=(below, above), color=colour, ls="", marker=marker, ms=4.5, label=label
            )
            held = [(least, place) for place, _, least in found if least is not None]
            if held:
                axes.plot(*zip(*held, strict=True), color=colour, ls="", marker="|", ms=9)
        axes.plot([], [], color="#444444", ls="", marker="|", ms=9, label="floor")
        axes.axvline(1, color="#444444", linewidth=1, zorder=1)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.xaxis.set_minor_locator(NullLocator())
        ticks = [tick for tick in _TICKS if low <= tick <= high]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xlabel("Time of the peer / time of attnconv")
        axes.set_yticks(places, [row["case"] for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(color="#e6e6e6")
        axes.set_title(title, fontsize=9, loc="left")
        figure.legend(loc="outside lower center", ncols=6)
        figure.savefig(path, format="svg", metadata={"Date": None})
