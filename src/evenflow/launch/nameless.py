"""Memory that processes share by a descriptor: a file that has no name, so that none is ever left behind."""

from __future__ import annotations

import os


def nameless_file(label: str) -> int:
    """The descriptor of a new, empty file that is nowhere but in memory (on Linux; elsewhere, where files are)."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(label)
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
