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
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
