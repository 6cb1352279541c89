"""GPU cases so small that a CPU computes them while one waits."""

import dataclasses

from attnconv.bench import gpu_cases

MOST = {"B": 2, "T": 40, "S": 40, "N": 2, "G": 2, "K": 16, "H": 15, "W": 14}
MODELS = {
    "cnn": {},
    "vit": {"image": 16, "channels": 3, "patch": 8, "features": 8, "hidden": 16}
    | {"heads": 2, "depth": 2, "classes": 10},
    "convnext": {"depths": (1, 2), "widths": (8, 16), "classes": 10},
}


def tiny(case):
    """The case with few examples, positions, heads, channels, layers and seeds."""
    if case.mode == "step":
        sizes = {**case.sizes, "B": 4} | ({} if case.operator == "cnn" else {"H": 16, "W": 16})
        return dataclasses.replace(
            case, sizes=sizes, options=MODELS[case.operator], seeds=min(case.seeds, 3)
        )
    sizes, options = {axis: min(n, MOST.get(axis, n)) for axis, n in case.sizes.items()}, {}
    if case.operator == "conv":
        inner = min(case.sizes["I"], 4)
        sizes |= {"H": 9, "W": 8, "I": inner, "C": 4 * inner, "O": 4 * inner}
        options = {"groups": 4}
    return dataclasses.replace(case, sizes=sizes, options={**case.options, **options})


CASES = {case.name: tiny(case) for case in gpu_cases.CASES}
