"""Keep freed memory: a setting of the C library's allocator that a training loop on a CPU needs."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks instead of returning them to the kernel; elsewhere do nothing.

    A step frees and allocates the same megabytes again and again; given back, every page comes in by a fault and
    zeroed, which took a quarter of the step's time for packs of 8.
    """
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
