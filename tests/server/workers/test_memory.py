"""What is free is not kept: large blocks, and what lies between smaller ones."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
from psutil import Process
from server.workers.memory import return_large_blocks
assert return_large_blocks()
bytearray(20 * 2**20)  # glibc keeps blocks of this size in its heap from now on
before = Process().memory_info().rss
blocks, behind = [], []
for _ in range(40):
    blocks.append(bytearray(b"x" * 10 * 2**20))
    behind.append(bytearray(100_000))
del blocks
print((Process().memory_info().rss - before) // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_large_blocks_go_back_to_the_system() -> None:
    """Without it 400 MiB stay here."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    assert int(done.stdout) < 60


BETWEEN = """
from psutil import Process
from server.workers.memory import return_free_pages
blocks = [bytearray(b"x" * 100_000) for _ in range(2000)]
last = bytearray(b"x" * 1000)  # behind them
before = Process().memory_info().rss
del blocks[::2], blocks[:-1]
assert return_free_pages()
print((before - Process().memory_info().rss) // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_what_is_free_between_blocks_goes_back_when_that_is_asked_for() -> None:
    """200 MB of blocks are freed, before one that stays."""
    done = subprocess.run([sys.executable, "-c", BETWEEN], capture_output=True, check=True)
    assert int(done.stdout) > 150
