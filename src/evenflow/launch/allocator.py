"""The memory allocator's settings for ranks on CPUs: large tensors given back at once, on huge pages.

By default glibc keeps freed tensors in a fragmented heap (measured: twice the memory that the tensors need) or,
where they are mapped, faults every 4 KiB page of every large tensor in again (a fifth of the step). Mapping
what is over 1 MiB gives it back when it is freed, and huge pages make its faults rare: the memory is that of
the tensors and the step as quick as with the heap. Systems without glibc ignore the setting.
"""

from __future__ import annotations

from collections.abc import Mapping

_TUNABLES = {
    "glibc.malloc.hugetlb": 1,  # madvise(MADV_HUGEPAGE) on what malloc maps
    "glibc.malloc.mmap_threshold": 2**20,
    "glibc.malloc.trim_threshold": 2**28,
}


def allocator_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to a rank's environment; what the user has set there himself stays as it is."""
    own = environment.get("GLIBC_TUNABLES", "")
    added = [f"{name}={value}" for name, value in _TUNABLES.items() if name not in own]
    return {"GLIBC_TUNABLES": ":".join(filter(None, [own, *added]))}
