"""The memory that the process keeps between steps."""

import ctypes
import sys

# The names of mallopt's parameters, in glibc's malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
MOST = 2**31 - 1


def keep_freed() -> None:
    """Memory that a step frees stays with the process, for the next step; Linux with glibc only.

    As it comes, glibc gives large blocks back to the system, which hands out each of their pages
    again, zeroed, at the next step. 2 cores, ms for a training step without and with: ViT 67 57,
    the CNN of Flax's example 18 16; with PyTorch 75 73 and 33 18. Elsewhere nothing changes.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, MOST)
        mallopt(TRIM_THRESHOLD, MOST)
