"""What the numbers come from: versions and hardware."""

import platform
import sys
from pathlib import Path

import jax

import attnconv
from attnconv import devices


def describe() -> dict[str, str]:
    """The versions and the hardware that the numbers come from."""
    device = jax.local_devices()[0]
    return {
        "attnconv": attnconv.__version__,
        "python": sys.version.split()[0],
        "jax": jax.__version__,
        "device": f"cpu: {processor()}, {devices.cores()} cores"
        if device.platform == "cpu"
        else f"{jax.local_device_count()} x {device.device_kind}",
    }


def processor() -> str:
    """The processor's name, family and model, where the system tells them.

    The name of a virtual processor may be that of a whole line, whose generations are as much as
    twice as fast as one another.
    """
    info = Path("/proc/cpuinfo")
    first = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first)}
    name = told.get("model name") or platform.processor() or platform.machine()
    if "cpu family" not in told:
        return name
    return f"{name} (family {told['cpu family']}, model {told['model']})"
