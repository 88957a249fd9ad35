"""Two hosts on one machine: network namespaces with their own addresses, names and loopback, joined by a cable."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, NetNS, netns

_NEW_MOUNTS, _NEW_NAMES = 0x00020000, 0x04000000  # CLONE_NEWNS, CLONE_NEWUTS of unshare(2)
_PRIVATE, _BIND = 0x4000 | 0x40000, 0x1000  # MS_REC | MS_PRIVATE, MS_BIND of mount(2): nobody else sees those mounts
# No DNS answers in there, and nobody needs a tokenizer's threads or anything from the hub.
_QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True)
class Host:
    """One of the two hosts."""

    name: str
    namespace: str
    interface: str
    address: str

    def start(self, command: Sequence[str], hidden: Path | None = None, **env: str) -> subprocess.Popen[str]:
        """Start a command as if on this host; `hidden` is a folder that is empty and its own here."""
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **_QUIET, **env},
            preexec_fn=lambda: self._enter(hidden),
        )

    def torchrun(self, meeting: Sequence[str], program: Sequence[object], **popen: Any) -> subprocess.Popen[str]:
        """Start `torchrun --nnodes=2 MEETING PROGRAM`."""
        return self.start([*_TORCHRUN, "--nnodes=2", *meeting, *map(str, program)], **popen)

    def cut(self) -> None:
        """Take this host's end of the cable down; packets are lost and nobody is told."""
        with NetNS(self.namespace) as inside:
            inside.link("set", index=inside.link_lookup(ifname=self.interface)[0], state="down")

    def _enter(self, hidden: Path | None) -> None:
        netns.setns(self.namespace)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(_NEW_NAMES | _NEW_MOUNTS) == 0, os.strerror(ctypes.get_errno())
        socket.sethostname(self.name)
        _mount("none", Path("/"), "", _PRIVATE)
        with tempfile.NamedTemporaryFile("w", prefix="hosts-") as names:  # torchrun looks its own host up
            names.write("127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in HOSTS))
            names.flush()
            _mount(names.name, Path("/etc/hosts"), "", _BIND)
        if hidden is not None:
            _mount("tmpfs", hidden, "tmpfs", 0)


def _mount(source: str, target: Path, kind: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    mounted = libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, None)
    assert mounted == 0, f"{target}: {os.strerror(ctypes.get_errno())}"


_TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
# The process id keeps two test sessions on one machine apart.
HOSTS = tuple(
    Host(f"host-{letter}", f"evenflow-{os.getpid()}-{letter}", f"ef{os.getpid() % 10**7}{letter}", f"10.77.0.{number}")
    for number, letter in enumerate("ab", start=1)
)


def connect_hosts() -> None:
    """Make both hosts and the cable.

    Raises:
        OSError: this process may not, or the kernel cannot.
    """
    for host in HOSTS:
        netns.create(host.namespace)
    with IPRoute() as here:
        here.link("add", ifname=HOSTS[0].interface, kind="veth", peer={"ifname": HOSTS[1].interface})
        for host in HOSTS:
            here.link("set", index=here.link_lookup(ifname=host.interface)[0], net_ns_fd=host.namespace)
    for host in HOSTS:
        with NetNS(host.namespace) as inside:
            own = inside.link_lookup(ifname=host.interface)[0]
            inside.addr("add", index=own, address=host.address, prefixlen=24)
            inside.link("set", index=own, state="up")
            inside.link("set", index=inside.link_lookup(ifname="lo")[0], state="up")


def remove_hosts() -> None:
    """Remove both hosts; the cable goes with them."""
    for host in HOSTS:
        if host.namespace in netns.listnetns():
            netns.remove(host.namespace)
