"""The GPUs of this machine, asked of NVIDIA's driver without torch and without starting CUDA.

A process that has started CUDA cannot fork ranks that use it, and planning must answer at once, so neither
`torch.cuda` nor the CUDA runtime is asked: NVML, the library beneath `nvidia-smi`, is.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_LIBRARY = "libnvidia-ml.so.1"
_TEXT = 96  # bytes of a name or UUID, with its zero
_SUCCESS = 0
_MIG_ENABLED = 1


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU that CUDA would see.

    Attributes:
        name: the driver's name of it.
        memory_bytes: all its memory.
    """

    name: str
    memory_bytes: int


def visible_gpus() -> tuple[Gpu, ...]:
    """The GPUs that ranks on this machine can use: none without a driver, or with a torch that was built without CUDA.

    Of GPUs cut into instances (MIG), CUDA shows a process a single instance.
    """
    return _visible(os.environ.get("CUDA_VISIBLE_DEVICES"))


@cache
def _visible(selection: str | None) -> tuple[Gpu, ...]:
    if selection is not None and not selection.strip():
        return ()
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return ()
    with _started(library) as works:
        if not works or not _torch_has_cuda():
            return ()
        found = _all_gpus(library)
    instance = next((gpu for _, gpu, is_instance in found if is_instance), None)
    if instance is not None:
        return (instance,)
    return tuple(found[index][1] for index in chosen(selection, [uuid for uuid, _, _ in found]))


def chosen(selection: str | None, uuids: list[str]) -> list[int]:
    """Which GPUs `CUDA_VISIBLE_DEVICES` lets through: numbers or beginnings of UUIDs, up to the first that is neither.

    Args:
        selection: its text; None where it is not set.
        uuids: of the machine's GPUs.
    """
    if selection is None:
        return list(range(len(uuids)))
    found: list[int] = []
    for word in (part.strip() for part in selection.split(",")):
        if word.isdecimal():
            matches = [int(word)] if int(word) < len(uuids) else []
        else:
            matches = [index for index, uuid in enumerate(uuids) if word and uuid.startswith(word)]
        if len(matches) != 1 or matches[0] in found:
            break
        found += matches
    return found


@contextlib.contextmanager
def _started(library: Any) -> Iterator[bool]:
    works = library.nvmlInit_v2() == _SUCCESS
    try:
        yield works
    finally:
        if works:
            library.nvmlShutdown()


class _Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


def _all_gpus(library: Any) -> list[tuple[str, Gpu, bool]]:
    """UUID, GPU and whether it is an instance (MIG) of each GPU that the driver knows."""
    count = ctypes.c_uint()
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != _SUCCESS:
        return []
    found = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != _SUCCESS:
            continue  # not for this process
        instance = _instance(library, handle)
        gpu = Gpu(_text(library.nvmlDeviceGetName, handle), _memory_bytes(library, instance or handle))
        found.append((_text(library.nvmlDeviceGetUUID, handle), gpu, instance is not None))
    return found


def _instance(library: Any, handle: ctypes.c_void_p) -> ctypes.c_void_p | None:
    """The first instance of a GPU that is cut into instances."""
    current, pending = ctypes.c_uint(), ctypes.c_uint()
    if library.nvmlDeviceGetMigMode(handle, ctypes.byref(current), ctypes.byref(pending)) != _SUCCESS:
        return None  # a GPU that cannot be cut
    own = ctypes.c_void_p()
    for index in range(7 if current.value == _MIG_ENABLED else 0):
        if library.nvmlDeviceGetMigDeviceHandleByIndex(handle, index, ctypes.byref(own)) == _SUCCESS:
            return own
    return None


def _memory_bytes(library: Any, handle: ctypes.c_void_p) -> int:
    memory = _Memory()
    return memory.total if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == _SUCCESS else 0


def _text(ask: Any, handle: ctypes.c_void_p) -> str:
    text = ctypes.create_string_buffer(_TEXT)
    return text.value.decode() if ask(handle, text, _TEXT) == _SUCCESS else "GPU"


def _torch_has_cuda() -> bool:
    """Whether the installed torch was built for CUDA, as its own version file says; torch is not imported."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    return runpy.run_path(str(Path(spec.origin).parent / "version.py")).get("cuda") is not None
