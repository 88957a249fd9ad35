"""What is refused before the workers of a torchrun become one run, and what becomes of those that already wait."""

from __future__ import annotations

import importlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from evenflow.errors import FaultError, InputError
from evenflow.launch import Agent, SeveralHosts, Torchrun, listen
from evenflow.runtime import open_store
from evenflow.train import Job, serve, train
from evenflow.train.hosts import check_ranks, lead
from evenflow.train.signals import StopSignals
from evenflow.train.starts import Starts

JOB = Job(model="m", data=Path("t"), out=Path("o"))


@pytest.fixture
def torchrun() -> Iterator[Torchrun]:
    """The leading one of two workers, each on a host of its own, and torchrun's store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = open_store("127.0.0.1", port, True, 10)
    yield Torchrun(0, 2, 0, 1, "127.0.0.1", port, serves_store=False, run="test")
    del store


def environment_of(torchrun: Torchrun, patch: pytest.MonkeyPatch) -> None:
    """Set what torchrun sets."""
    for name, value in (
        ("RANK", torchrun.rank),
        ("WORLD_SIZE", torchrun.ranks),
        ("LOCAL_RANK", torchrun.local_rank),
        ("LOCAL_WORLD_SIZE", torchrun.local_ranks),
        ("MASTER_ADDR", torchrun.master),
        ("MASTER_PORT", torchrun.port),
        ("TORCHELASTIC_RUN_ID", "test"),
        ("TORCHELASTIC_USE_AGENT_STORE", True),
    ):
        patch.setenv(name, str(value))


def test_a_loopback_address_is_refused_while_there_are_other_hosts(
    torchrun: Torchrun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    with pytest.raises(InputError, match=r"MASTER_ADDR 127\.0\.0\.1 is 127\.0\.0\.1 on .*, the loopback interface"):
        lead(torchrun, StopSignals(), print).__enter__()
    starts = Starts(open_store("127.0.0.1", torchrun.port, False, 10), "test")
    end = starts.end()
    assert end is not None
    assert end.code == 2  # so the others do not wait
    with pytest.raises(FaultError, match="nothing is left to start again: MASTER_ADDR") as late:
        lead(torchrun, StopSignals(), print).__enter__()
    assert late.value.exit_code == 2
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with pytest.raises(InputError, match="GLOO_SOCKET_IFNAME is lo on"):
        lead(replace(torchrun, run="other"), StopSignals(), print).__enter__()


def test_a_worker_leaves_when_the_leading_one_has_left(torchrun: Torchrun, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(torchrun, rank=1, local_rank=1, local_ranks=2)
    environment_of(other, monkeypatch)
    Starts(open_store("127.0.0.1", torchrun.port, False, 10), "test").ended(InputError("x"))
    assert serve() == 2


def test_a_worker_that_does_not_lead_has_no_result(torchrun: Torchrun, monkeypatch: pytest.MonkeyPatch) -> None:
    assert serve() is None
    environment_of(torchrun, monkeypatch)
    assert serve() is None  # it leads: `train` is to be called
    environment_of(replace(torchrun, rank=1), monkeypatch)
    with pytest.raises(InputError, match="this worker has RANK 1: it serves one rank"):
        train(JOB)


def test_another_number_of_ranks_names_both() -> None:
    check_ranks(None, replace(JOB, processes=3))
    check_ranks(2, replace(JOB, processes=2), planned=2)
    with pytest.raises(InputError, match=r"--processes is 3, but torchrun started 2 \(WORLD_SIZE\)"):
        check_ranks(2, replace(JOB, processes=3))
    with pytest.raises(InputError, match=r"plan\.json is for 4 processes, but torchrun started 2 \(WORLD_SIZE\)"):
        check_ranks(2, replace(JOB, plan=Path("plan.json")), planned=4)


def test_a_name_that_nobody_knows_is_refused_before_the_store_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(_: Torchrun) -> None:
        raise AssertionError("the store would be waited for")

    monkeypatch.setattr(importlib.import_module("evenflow.train.hosts"), "_store", waits)
    unknown = Torchrun(0, 2, 0, 1, "no.such.host.invalid", 29500, serves_store=False, run="test")
    with pytest.raises(InputError, match=r"MASTER_ADDR no\.such\.host\.invalid cannot be reached from"):
        lead(unknown, StopSignals(), print).__enter__()


def test_a_worker_passes_over_the_leading_one_of_an_earlier_start(
    torchrun: Torchrun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is where it was, or somebody who knows nothing of it; both are asked, and the next one waited for."""
    hosts = importlib.import_module("evenflow.train.hosts")
    asked: list[int] = []
    dial = hosts.dial

    def noting(address: str, port: int, *rest: object) -> object:
        asked.append(port)
        return dial(address, port, *rest)

    monkeypatch.setattr(hosts, "dial", noting)
    starts = Starts(open_store("127.0.0.1", torchrun.port, False, 10), "test")
    found: list[object] = []

    def joins() -> None:
        environment = replace(torchrun, rank=1, local_rank=1, local_ranks=2)
        found.append(hosts._find_leader(environment, "127.0.0.1", StopSignals()))

    def waited_for(port: int) -> None:
        deadline = time.monotonic() + 30
        while asked[-1:] != [port]:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    with listen("127.0.0.1") as nobody:
        gone = nobody.getsockname()[1]
    starts.announce({"address": "127.0.0.1", "port": gone, "secret": "old"})
    thread = threading.Thread(target=joins, daemon=True)
    thread.start()
    waited_for(gone)
    with listen("127.0.0.1") as foreign:
        foreign.settimeout(30)
        starts.announce({"address": "127.0.0.1", "port": foreign.getsockname()[1], "secret": "old"})
        connection, _ = foreign.accept()
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")
        with listen("127.0.0.1") as listener:
            starts.announce({"address": "127.0.0.1", "port": listener.getsockname()[1], "secret": "new"})
            connection.close()
            foreign.close()
            with SeveralHosts(torchrun, listener, "new"):
                thread.join(30)
    assert isinstance(found[0], Agent)
