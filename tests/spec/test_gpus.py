"""The GPUs of a machine are read from a made-up driver; with none, nothing changes."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import pytest

from evenflow.errors import InputError
from evenflow.spec import cluster, gpus, parse_cluster, this_machine
from evenflow.spec.cluster import local_cluster
from evenflow.spec.gpus import Gpu, chosen, visible_gpus

GIB = 2**30
UUIDS = ["GPU-aaaa-1", "GPU-aabb-2", "GPU-bbbb-3"]


class Driver:
    """What NVML answers, through the same calls and pointers."""

    def __init__(self, names: list[str], instances: dict[int, int] | None = None, status: int = 0) -> None:
        self.names = names
        self.instances = instances or {}  # GPU -> GiB of its first instance
        self.status = status
        self.shut = 0

    def nvmlInit_v2(self) -> int:
        return self.status

    def nvmlShutdown(self) -> int:
        self.shut += 1
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.names)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetName(self, handle: ctypes.c_void_p, text: Any, size: int) -> int:
        text.value = self.names[handle.value - 1].encode()
        return 0

    def nvmlDeviceGetUUID(self, handle: ctypes.c_void_p, text: Any, size: int) -> int:
        text.value = UUIDS[handle.value - 1].encode()
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, memory: Any) -> int:
        memory._obj.total = self.instances[handle.value - 101] * GIB if handle.value > 100 else 80 * GIB
        return 0

    def nvmlDeviceGetMigMode(self, handle: ctypes.c_void_p, current: Any, pending: Any) -> int:
        current._obj.value = handle.value - 1 in self.instances
        return 0 if self.instances else 3  # not supported

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: ctypes.c_void_p, index: int, own: Any) -> int:
        own._obj.value = 100 + handle.value
        return 0 if index == 2 else 6  # not found


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a driver into this machine."""

    def put(driver: Driver, selection: str | None = None, has_cuda: bool = True) -> Driver:
        gpus._visible.cache_clear()
        monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: driver)
        monkeypatch.setattr(gpus, "_torch_has_cuda", lambda: has_cuda)
        if selection is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", selection)
        return driver

    yield put
    gpus._visible.cache_clear()


def test_names_and_memory_are_the_drivers(install: Any) -> None:
    driver = install(Driver(["NVIDIA H200", "NVIDIA H200"]))
    assert visible_gpus() == (Gpu("NVIDIA H200", 80 * GIB),) * 2
    assert driver.shut == 1
    assert this_machine().processor.startswith("NVIDIA H200, NVIDIA H200, ")


def test_a_driver_that_does_not_start_a_torch_without_cuda_and_hidden_gpus_are_no_gpus(install: Any) -> None:
    install(Driver(["A"], status=9))
    assert visible_gpus() == ()
    install(Driver(["A"]), has_cuda=False)
    assert visible_gpus() == ()
    install(Driver(["A"]), selection="")
    assert visible_gpus() == ()


def test_a_gpu_cut_into_instances_is_one_of_them(install: Any) -> None:
    install(Driver(["A100", "A100"], instances={1: 10}))
    assert visible_gpus() == (Gpu("A100", 10 * GIB),)


@pytest.mark.parametrize(
    ("selection", "indices"),
    [
        (None, [0, 1, 2]),
        ("1", [1]),
        ("2,0", [2, 0]),
        ("0, 7, 1", [0]),  # as CUDA: nothing after the first that is not there
        ("-1", []),
        ("GPU-b", [2]),
        ("GPU-aaaa,GPU-aabb", [0, 1]),
        ("GPU-aa", []),  # which of two?
        ("1,1", [1]),
    ],
)
def test_which_gpus_the_environment_lets_through(selection: str | None, indices: list[int]) -> None:
    assert chosen(selection, UUIDS) == indices


@pytest.mark.parametrize(
    ("processes", "devices", "at_once", "threads", "gib"),
    [(None, 2, 2, 8, 79), (1, 1, 1, 16, 79), (4, 4, 2, 4, 39), (3, 3, 2, 5, 39), (64, 64, 2, 1, 1.5)],
)
def test_local_is_this_machines_gpus(
    monkeypatch: pytest.MonkeyPatch, processes: int | None, devices: int, at_once: int, threads: int, gib: float
) -> None:
    """More processes than GPUs share them, and their memory; each process has a context of its own there."""
    monkeypatch.setattr(cluster, "this_machine", lambda: replace(this_machine(), cores=16))
    monkeypatch.setattr(cluster, "visible_gpus", lambda: (Gpu("NVIDIA H200", 80 * GIB),) * 2)
    local = parse_cluster("local", processes)
    assert (local.devices, local.at_once, local.threads, local.is_local) == (devices, at_once, threads, True)
    assert local.device.name == "NVIDIA H200"
    assert local.device.is_gpu
    assert local.device.memory_bytes == gib * GIB
    assert local_cluster(processes, threads=3).threads == 3


def test_gpus_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "visible_gpus", lambda: (Gpu("B", GIB), Gpu("A", GIB)))
    with pytest.raises(InputError, match=r"differ \(A, B\); CUDA_VISIBLE_DEVICES"):
        local_cluster()


def test_without_a_gpu_ranks_compute_on_processors() -> None:
    assert not local_cluster().device.is_gpu
    assert parse_cluster("8xH100-80GB").device.is_gpu


def test_torchs_version_file_is_read_without_torch() -> None:
    import torch  # to compare with

    assert gpus._torch_has_cuda() == (torch.version.cuda is not None)
