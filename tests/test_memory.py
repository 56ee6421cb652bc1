"""Freed memory stays in the process: blocks that glibc would map anew fault in no page again."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from jqnt.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    worker.submit(lambda: len(bytearray(b'x') * 2**27)).result()  # more than glibc keeps
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
worker = ThreadPoolExecutor(1)
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_freed_blocks_are_used_again():
    def faults(way):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, way], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert faults("keep") < 100 < faults("leave")
