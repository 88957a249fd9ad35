"""Where a run on one host can be reached: on the loopback interface, and nowhere else; on several, it is said where."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import evenflow
from evenflow.files import StepMetrics
from evenflow.launch import Torchrun, shared_server
from evenflow.train import Job, Silent
from evenflow.train import hosts as train_hosts
from evenflow.train.hosts import exposure


class Looks(Silent):
    """Lists the sockets of all processes of the run once a step is done."""

    def __init__(self) -> None:
        self.processes = 0
        self.places: list[tuple[str, str]] = []

    def stepped(self, metrics: StepMetrics, steps: int) -> None:
        top = psutil.Process(os.getpid())
        family = [top, *top.children(recursive=True)]
        self.processes = max(self.processes, len(family))
        for process in family:
            for own in process.net_connections(kind="inet"):
                self.places.append((own.status, own.laddr.ip))


def test_no_socket_of_a_local_run_is_off_loopback(make_model: Callable[..., Path], text: Path, tmp_path: Path) -> None:
    shared_server()
    looks = Looks()
    job = Job(
        model=str(make_model()), data=text, out=tmp_path / "run", steps=3, processes=2, seq_length=32, check=False
    )
    evenflow.train(job, looks)
    assert looks.processes >= 4  # this one, the fork server and two ranks
    assert any(status == psutil.CONN_LISTEN for status, _ in looks.places)  # gloo's own: so it was looked for
    assert {place for _, place in looks.places if not ipaddress.ip_address(place).is_loopback} == set()


def test_on_several_hosts_interface_and_danger_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_hosts, "interface_of", lambda address: {"10.1.2.3": "eth7"}[address])
    two = Torchrun(0, 4, 0, 2, "10.1.2.3", 29500, True, "run")
    said = exposure(two, "10.1.2.3")
    assert said is not None
    assert "over eth7 (10.1.2.3)" in said
    assert "neither encrypted nor authenticated" in said
    assert exposure(Torchrun(0, 2, 0, 2, "10.1.2.3", 29500, True, "run"), "10.1.2.3") is None  # all on one
    assert exposure(two, "127.0.0.1") is None
