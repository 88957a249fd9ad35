"""Where a rank computes: which device is its own, how it is prepared, and which transport its neighbours can share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from evenflow.errors import FaultError, InputError, first_line
from evenflow.runtime.edge_groups import Edge, EdgeGroupTransport
from evenflow.runtime.staged import StagedTransport
from evenflow.runtime.transport import AloneTransport, Transport

Kind = Literal["gloo", "nccl", "staged"]


def rank_device(rank: int, gpus: int) -> torch.device:
    """The device of a rank: this machine's GPUs in turn, or its processor where there are none.

    Args:
        rank: the rank's number among those of this machine (`LOCAL_RANK` under torchrun).
        gpus: how many GPUs the ranks of this machine use; 0 for none.
    """
    return torch.device("cuda", rank % gpus) if gpus else torch.device("cpu")


def rank_devices(places: Sequence[tuple[str, int]], gpus: int) -> list[str]:
    """The device of every rank, as `choose_transport` takes them.

    Args:
        places: each rank's host and its number among the ranks of that host.
        gpus: how many GPUs the ranks of each host use; 0 for none.
    """
    return [f"{host}/{rank_device(local_rank, gpus)}" for host, local_rank in places]


def use_device(device: torch.device, deterministic: bool = False) -> None:
    """Make `device` this process's own; before anything else touches CUDA.

    Products of fp32 are made in fp32, never in TF32, whose 10 bits of mantissa no plan asked for.

    Args:
        device: where this rank computes.
        deterministic: choose kernels that give the same bits in every run, at the price of some speed.

    Raises:
        FaultError: the device is not there.
    """
    torch.set_float32_matmul_precision("highest")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True)
    if device.type != "cuda":
        return
    torch.backends.cudnn.allow_tf32 = False
    try:
        torch.cuda.init()
        torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise FaultError(f"cannot compute on {device}: {first_line(error)}") from error


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of host memory on `device`; the host does not wait for the device's earlier work."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def synchronize(device: torch.device) -> None:
    """Return once all work that `device` was given is done; on a processor it is when the call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def choose_transport(devices: Sequence[str]) -> Kind:
    """What carries tensors between ranks on these devices.

    Args:
        devices: each rank's, such as `cpu` or `cuda:1`; on several machines led by the machine's name, `b/cuda:1`.

    Returns:
        `gloo` between processors; `nccl` where every rank has a GPU of its own; `staged` where ranks share one,
        since NCCL refuses two ranks on one GPU.

    Raises:
        InputError: some ranks have a GPU and others none.
    """
    on_gpus = [device for device in devices if "cuda" in device.rpartition("/")[2]]
    if not on_gpus:
        return "gloo"
    if len(on_gpus) < len(devices):
        raise InputError(
            f"{len(on_gpus)} of {len(devices)} ranks have a GPU; all or none would do "
            "(an empty CUDA_VISIBLE_DEVICES hides them)"
        )
    return "nccl" if len(set(devices)) == len(devices) else "staged"


def carry(
    host: Transport, kind: Kind, rank: int, edges: Sequence[Edge], device: torch.device, timeout_s: float
) -> Transport:
    """The transport of a rank for tensors on `device`, made of one that carries tensors of host memory.

    Args:
        host: how the ranks have met.
        kind: what `choose_transport` says.
        rank: this rank.
        edges: all that tensors travel on, from rank and to rank.
        device: where this rank's tensors are.
        timeout_s: how long a rank may wait for another.

    Raises:
        PeerLostError: another rank did not come.
    """
    if isinstance(host, AloneTransport):
        return host
    match kind:
        case "gloo":
            return host
        case "staged":
            return StagedTransport(host, device)
        case "nccl":
            return EdgeGroupTransport(host, rank, edges, "nccl", device, timeout_s)
