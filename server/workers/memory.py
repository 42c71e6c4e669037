"""Memory of this process: what it has, and that large blocks go back to the system once they are free."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

from server.settings.units import MEBI

M_MMAP_THRESHOLD = -3  # of mallopt(3)
_STATISTICS = Path("/proc/self/statm")


def return_large_blocks() -> bool:
    """Have each block of a mebibyte or more mapped by itself for the rest of this process; False where that cannot be.

    glibc would begin so, but after the first large block is freed it keeps those up to 32 MiB in its heap, where what
    lies behind them holds them: 700 MiB stayed after a minute of large bodies. Other C libraries need none of this.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MEBI))
    except (AttributeError, OSError, TypeError):
        return False


def return_free_pages() -> bool:
    """Give back what is free between blocks in use; False where that cannot be. Blocks, without the interpreter's lock.

    glibc by itself gives back only what is free at the end of its heap.
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):
        return False


def own_memory() -> int:
    """Bytes of memory that this process has, without what is of files."""
    if _STATISTICS.exists():
        return _pages(1) - _pages(2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: the most that it had


def address_space() -> int | None:
    """Bytes of addresses that this process has, which the system limits; None where it does not tell (macOS)."""
    return _pages(0) if _STATISTICS.exists() else None


def _pages(column: int) -> int:
    """Bytes by a column of the process's statistics: 0 address space, 1 resident, 2 resident and of files."""
    return int(_STATISTICS.read_text().split()[column]) * resource.getpagesize()
