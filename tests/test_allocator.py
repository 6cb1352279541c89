"""Memory that is freed stays with the process: the next step meets no new pages."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from attnconv import allocator

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(1 << 24, np.float32)  # 64 MB: 16384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
allocator.keep_freed()
faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept():
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    without, kept = map(int, ran.stdout.split())
    assert kept < without / 10
