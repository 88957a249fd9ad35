"""What the forked ranks of the launch tests run."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import torch

from evenflow.errors import ImpossibleError, InputError, PeerLostError
from evenflow.launch import Channel


def echo(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Say who and where this is."""
    channel.send(
        {
            "kind": "result",
            "rank": rank,
            "payload": payload,
            "pid": os.getpid(),
            "cores": sorted(os.sched_getaffinity(0)),
            "threads": sorted(thread.name for thread in threading.enumerate()),
            "tunables": os.environ.get("GLIBC_TUNABLES", ""),
            "cuda_check": os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK"),
            "cuda_is_spoilt": torch.cuda.is_initialized() or torch.cuda._is_in_bad_fork(),
        }
    )


def much(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Send far more than a socket holds."""
    for number in range(payload["messages"]):
        channel.send({"kind": "part", "number": number, "text": "x" * payload["size"]})


def fail(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Fail as the payload says for this rank; the others wait, then lose their peer."""
    how = payload["how"][rank]
    channel.doing(f"testing {how}")
    match how:
        case "input":
            raise InputError("the text is wrong")
        case "impossible":
            raise ImpossibleError("it does not fit")
        case "bug":
            raise ZeroDivisionError("a mistake")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(7)
        case "lost":
            raise PeerLostError("lost the connection to another rank")
        case "lost later":
            time.sleep(0.3)
            raise PeerLostError("lost the connection to another rank")
        case "silent":
            time.sleep(60)


def wait_for_stop(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Go on until told to stop."""
    while not any(message["kind"] == "stop" for message in channel.waiting()):
        time.sleep(0.01)
    channel.send({"kind": "stopped"})
