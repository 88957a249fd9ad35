"""Where a run on one host can be reached: on the loopback interface, and nowhere else; on several, it is said where."""

from __future__ import annotations

import ipaddress
import os
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import evenflow
from evenflow.files import StepMetrics
from evenflow.launch import Torchrun, shared_server
from evenflow.plan import Plan
from evenflow.spec import Model
from evenflow.train import Job, Silent
from evenflow.train import hosts as train_hosts
from evenflow.train.hosts import exposure


class Looks(Silent):
    """Lists the sockets of all processes of a command, again and again while it lasts, with what it is at."""

    def __init__(self) -> None:
        self.processes = 0
        self.looks: Counter[str] = Counter()
        self.places: set[tuple[str, str, str]] = set()
        self.phase = "preparing"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Looks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def said(self, text: str) -> None:
        self._look()  # and one at least of each phase
        if text.startswith("profile: timing"):
            self.phase = "profile"
        elif text.startswith("check: split"):
            self.phase = "planned"

    def planned(self, plan: Plan, model: Model) -> None:
        self.phase = "training"

    def stepped(self, metrics: StepMetrics, steps: int) -> None:
        self._look()  # one look at least while ranks are surely there

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self._look()

    def _look(self) -> None:
        phase, top = self.phase, psutil.Process(os.getpid())
        family = [top, *top.children(recursive=True)]
        self.processes = max(self.processes, len(family))
        self.looks[phase] += 1
        for process in family:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):  # just ending
                found = process.net_connections(kind="inet")
                self.places |= {(phase, own.status, own.laddr.ip) for own in found if own.laddr}


@pytest.mark.usefixtures("measured_at_length")  # so that there is something to look at
def test_no_socket_of_a_local_run_is_off_loopback(make_model: Callable[..., Path], text: Path, tmp_path: Path) -> None:
    """Through all of the command: it is measured, checked, planned and trained anew."""
    shared_server()
    job = Job(
        model=str(make_model()), data=text, out=tmp_path / "run", steps=3, processes=2, seq_length=32,
        measure_again=True,
    )  # fmt: skip
    with Looks() as looks:
        evenflow.train(job, looks)
    assert looks.processes >= 4  # this one, the fork server and two ranks
    assert looks.looks["preparing"] >= 1, looks.looks
    assert min(looks.looks[phase] for phase in ("profile", "training")) >= 3, looks.looks
    listening = {phase for phase, status, _ in looks.places if status == psutil.CONN_LISTEN}
    assert {"profile", "training"} <= listening  # gloo's own: so it was looked for
    assert {place for *_, place in looks.places if not ipaddress.ip_address(place).is_loopback} == set()


def test_on_several_hosts_interface_and_danger_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_hosts, "interface_of", lambda address: {"10.1.2.3": "eth7"}[address])
    two = Torchrun(0, 4, 0, 2, "10.1.2.3", 29500, True, "run")
    said = exposure(two, "10.1.2.3")
    assert said is not None
    assert "over eth7 (10.1.2.3)" in said
    assert "neither encrypted nor authenticated" in said
    assert exposure(Torchrun(0, 2, 0, 2, "10.1.2.3", 29500, True, "run"), "10.1.2.3") is None  # all on one
    assert exposure(two, "127.0.0.1") is None
