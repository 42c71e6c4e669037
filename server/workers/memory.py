"""Memory of large bodies and images goes back to the system once it is free."""

from __future__ import annotations

import ctypes

from server.settings.values import MEBI

M_MMAP_THRESHOLD = -3  # of mallopt(3)


def return_large_blocks() -> bool:
    """Have each block of a mebibyte or more mapped by itself for the rest of this process; False where that cannot be.

    glibc would begin so, but after the first large block is freed it keeps those up to 32 MiB in its heap, where what
    lies behind them holds them: 700 MiB stayed after a minute of large bodies. Other C libraries need none of this.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MEBI))
    except (AttributeError, OSError, TypeError):
        return False
