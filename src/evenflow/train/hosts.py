"""Joins the workers of a torchrun into one run: the leading one gathers the others through torchrun's store.

The leading worker listens on its own address and puts that address and a random secret into the store; the
others read both there and call. So whoever can read torchrun's store can take part in the run, and what is
said is not encrypted: the same as for torchrun itself and for torch.distributed, and meant for a network that
is your own.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed import Store  # type: ignore[attr-defined]  # public, but not in torch's stubs

from evenflow.errors import FaultError, InputError, first_line
from evenflow.launch import (
    Agent,
    SeveralHosts,
    Torchrun,
    address_of,
    dial,
    interface_of,
    is_loopback,
    listen,
    notice_torchrun,
    own_address,
    shared_server,
)
from evenflow.runtime import open_store
from evenflow.train.job import Job
from evenflow.train.signals import StopSignals

_STORE_S = 120.0


@contextmanager
def lead(torchrun: Torchrun, signals: StopSignals, say: Callable[[str], None]) -> Iterator[SeveralHosts]:
    """Gather all workers of this torchrun; they leave when this is left, with the same exit code.

    Args:
        torchrun: what this worker was told.
        signals: what may stop the run meanwhile.
        say: is told what the network between hosts is worth.

    Raises:
        InputError: other hosts could not reach this one at its address.
        FaultError: the others did not come in time.
    """
    shared_server()  # imports torch on another core while the others come
    own_address(torchrun.master, torchrun.port)  # an unknown name is refused here, not after the store's minutes
    store = _store(torchrun)
    try:
        address = _own_address(torchrun)
    except InputError as error:
        store.set(_key(torchrun), json.dumps({"left": error.exit_code}))  # or the others would wait in vain
        raise
    warning = exposure(torchrun, address)
    if warning is not None:
        say(warning)
    secret = secrets.token_hex(16)
    with listen(address) as listener:
        facts = {"address": address, "port": listener.getsockname()[1], "secret": secret}
        store.set(_key(torchrun), json.dumps(facts))
        hosts = SeveralHosts(torchrun, listener, secret, signals.heard_elsewhere, signals.check)
    with hosts:
        signals.hear = hosts.hear
        yield hosts


def serve() -> int | None:
    """In a torchrun worker that does not lead: serve one rank until the run is over.

    Returns:
        The exit code to leave with, the leading worker's own; None, at once, in the leading worker and without
        torchrun, where `train` is to be called.

    Raises:
        InputError: torchrun's variables are half set, or other hosts could not reach this one at its address.
        FaultError: the leading worker could not be found, or is gone.
        StoppedError: a second signal came.
    """
    torchrun = notice_torchrun(os.environ)
    if torchrun is None or torchrun.leads:
        return None
    with StopSignals() as signals:
        server = shared_server()
        address = _own_address(torchrun)
        try:
            facts = _leader(torchrun, signals)
            if "left" in facts:
                return int(facts["left"])
            line = dial(facts["address"], facts["port"], address, _STORE_S)
        except (RuntimeError, OSError) as error:
            raise FaultError(
                f"rank {torchrun.rank} on {socket.gethostname()} ({address}) could not reach rank 0, which leads the "
                f"run: {first_line(error)}"
            ) from None

        def asked_to_stop() -> int | None:
            signals.check_again()
            return signals.received

        return Agent(torchrun, line, facts["secret"], server).serve(asked_to_stop)


def exposure(torchrun: Torchrun, address: str) -> str | None:
    """What users of several hosts have to know of the network between them; None on one host."""
    if torchrun.local_ranks >= torchrun.ranks or is_loopback(address):
        return None
    return (
        f"warning: the ranks talk over {interface_of(address)} ({address}): PyTorch's traffic between hosts is neither "
        "encrypted nor authenticated, so that network has to be one that only you reach (GLOO_SOCKET_IFNAME chooses it)"
    )


def check_ranks(started: int | None, job: Job, planned: int | None = None) -> None:
    """Refuse a number of ranks that torchrun did not start.

    Args:
        started: how many it started; None without torchrun.
        job: the run.
        planned: the ranks of the plan to follow, if there is one.

    Raises:
        InputError: both numbers.
    """
    for what, number in (
        (f"--processes is {job.processes}", job.processes),
        (f"{job.plan} is for {planned} processes", planned),
    ):
        if started is not None and number is not None and number != started:
            raise InputError(
                f"{what}, but torchrun started {started} (WORLD_SIZE); --nnodes times --nproc-per-node should make "
                f"{number}, since each worker is one rank"
            )


def _own_address(torchrun: Torchrun) -> str:
    """This host's address on the network that the workers share."""
    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    address = address_of(interface) if interface else own_address(torchrun.master, torchrun.port)
    if is_loopback(address) and torchrun.local_ranks < torchrun.ranks:
        cause = f"GLOO_SOCKET_IFNAME is {interface}" if interface else f"MASTER_ADDR {torchrun.master} is {address}"
        raise InputError(
            f"{cause} on {socket.gethostname()}, the loopback interface, which no other host can reach; torchrun's "
            "--master-addr (or --local-addr) with an address on the network between the hosts would do"
        )
    return address


def _store(torchrun: Torchrun) -> Store:
    try:
        return open_store(torchrun.master, torchrun.port, torchrun.serves_store, _STORE_S)
    except RuntimeError as error:
        raise FaultError(
            f"no store answers at MASTER_ADDR {torchrun.master}, MASTER_PORT {torchrun.port}: {first_line(error)}"
        ) from None


def _leader(torchrun: Torchrun, signals: StopSignals) -> dict[str, Any]:
    """What the leading worker has put into the store."""
    store, key = _store(torchrun), _key(torchrun)
    deadline = time.monotonic() + _STORE_S
    while not store.check([key]):
        signals.check()
        if time.monotonic() > deadline:
            raise OSError(f"it has not said within {_STORE_S:.0f} s where it is")
        time.sleep(0.05)
    facts: dict[str, Any] = json.loads(store.get(key))
    return facts


def _key(torchrun: Torchrun) -> str:
    return f"evenflow/{torchrun.run}/lead"
