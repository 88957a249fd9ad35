"""What the tests of several hosts share: the hosts, and runs on them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., list["subprocess.Popen[str]"]]


@pytest.fixture
def hosts() -> Iterator[tuple[Any, ...]]:
    """Two hosts, each with an address of its own, joined by a cable."""
    if os.geteuid() != 0:
        pytest.skip("two hosts are made of network namespaces, which takes root")
    pytest.importorskip("pyroute2", reason="two hosts are made by pyroute2, of the dev extra")
    from tests.hosts import network

    try:
        network.connect_hosts()
    except OSError as error:
        network.remove_hosts()
        pytest.skip(f"two hosts are made of network namespaces, which this system refuses: {error}")
    yield network.HOSTS
    network.remove_hosts()


@pytest.fixture
def torchrun(hosts: tuple[Any, ...]) -> Iterator[Start]:
    """Start `evenflow ARGUMENTS` under torchrun on both hosts; nothing of it is left at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(arguments: Sequence[object], hidden: Path | None = None, **env: str) -> list[Any]:
        for node, host in enumerate(hosts):
            meeting = [f"--node-rank={node}", f"--master-addr={hosts[0].address}", "--master-port=29511"]
            own = {"hidden": hidden} if node == 1 else {}
            started.append(host.torchrun(meeting, ["-m", "evenflow", *arguments], **own, **env))
        return started

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
