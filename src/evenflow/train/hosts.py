"""Joins the workers of a torchrun into one run: the leading one gathers the others through torchrun's store.

The leading worker listens on its own address and puts that address and a random secret into the store; the
others read both there and call. So whoever can read torchrun's store can take part in the run, and what is
said is not encrypted: the same as for torchrun itself and for torch.distributed, and meant for a network that
is your own.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

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
from evenflow.train.starts import Starts

_STORE_S = 120.0
_DIAL_S = 10.0  # a host that is gone does not answer at all, and another may lead by then


@contextmanager
def lead(torchrun: Torchrun, signals: StopSignals, say: Callable[[str], None]) -> Iterator[tuple[SeveralHosts, Starts]]:
    """Gather all workers of this torchrun; they leave when this is left, with the same exit code.

    Args:
        torchrun: what this worker was told.
        signals: what may stop the run meanwhile.
        say: is told what the network between hosts is worth.

    Raises:
        InputError: other hosts could not reach this one at its address.
        EvenflowError: an earlier start of these workers ended the run for good: with what.
        WorkerLostError: the others did not come in time.
    """
    own_address(torchrun.master, torchrun.port)  # an unknown name is refused here, not after the store's minutes
    starts = Starts(_store(torchrun), torchrun.run)
    before = starts.end()
    if before is not None:
        raise before.error()
    shared_server()  # imports torch on another core while the others come
    try:
        address = _own_address(torchrun)
    except InputError as error:
        starts.ended(error)  # or the others would wait in vain
        raise
    warning = exposure(torchrun, address)
    if warning is not None:
        say(warning)
    secret = secrets.token_hex(16)
    # Ranks of an earlier start have met in the same store.
    own = replace(torchrun, run=f"{torchrun.run}/{starts.begin()}")
    with listen(address) as listener:
        starts.announce({"address": address, "port": listener.getsockname()[1], "secret": secret})
        hosts = SeveralHosts(own, listener, secret, signals.heard_elsewhere, signals.check)
    with hosts:
        signals.hear = hosts.hear
        try:
            yield hosts, starts
        except BaseException as error:
            starts.ended(error, signals.received is not None)
            raise
        starts.ended(None)


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
        address = _own_address(torchrun)
        try:
            found = _find_leader(torchrun, address, signals)
        except (RuntimeError, OSError) as error:
            raise FaultError(
                f"rank {torchrun.rank} on {socket.gethostname()} ({address}) could not reach rank 0, which leads the "
                f"run: {first_line(error)}"
            ) from None
        if isinstance(found, int):
            return found

        def asked_to_stop() -> int | None:
            signals.check_again()
            return signals.received

        return found.serve(asked_to_stop)


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


def _find_leader(torchrun: Torchrun, address: str, signals: StopSignals) -> Agent | int:
    """This worker as the agent of its rank, welcome to the one that leads; or the exit code of a run that has ended.

    What is read first may be where the leading worker of an earlier start was.
    """
    starts = Starts(_store(torchrun), torchrun.run)
    deadline = time.monotonic() + _STORE_S
    why = f"it has not said within {_STORE_S:.0f} s where it is"
    while True:
        end = starts.end()
        if end is not None:
            return end.code
        server = shared_server()  # it imports meanwhile
        facts = starts.leader()
        if facts is not None:
            try:
                line = dial(facts["address"], facts["port"], address, _DIAL_S)
            except OSError as error:
                why = str(error)
            else:
                agent = Agent(torchrun, line, facts["secret"], server)
                if agent.is_welcome(signals.check):
                    return agent
                why = f"who answers at {facts['address']} does not know this worker"
        signals.check()
        if time.monotonic() > deadline:
            raise OSError(why)
        time.sleep(0.05)
