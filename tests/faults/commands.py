"""Training commands in processes of their own, which can be killed: forked from one that has imported torch once.

So are their fork servers, which are else as they always are: a command and its ranks start in less than a second.

Run as `python -m tests.faults.commands`: of each line of its input (a job's settings, and a file for what is said) it
makes a command, answers with its process id, and with another line once that process is gone.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xxhash

import evenflow
from evenflow.launch import ForkServer, client, server
from evenflow.launch.allocator import allocator_environment
from evenflow.train import Job, Silent

_PATHS = ("data", "out", "plan")
_PATIENCE_S = 120.0


def newest_whole(run: Path) -> int:
    """The step of the newest checkpoint all of whose files are what its manifest says; found without our reader."""
    for folder in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        with suppress(OSError, ValueError):
            files = json.loads((folder / "manifest.json").read_bytes())["files"]
            if all(_hash(folder / name) == (own["bytes"], own["xxh3"]) for name, own in files.items()):
                return int(folder.name.removeprefix("step-"))
    return 0


def _hash(file: Path) -> tuple[int, str]:
    content = file.read_bytes()
    return len(content), xxhash.xxh3_128_hexdigest(content)


class Command:
    """A process that trains, and what it has said.

    Attributes:
        pid: its id.
        out: the run's folder.
    """

    def __init__(self, parent: subprocess.Popen[str], job: Job, log: Path) -> None:
        assert parent.stdin is not None
        assert parent.stdout is not None
        self._parent, self._log = parent, log
        self.out = job.out
        parent.stdin.write(json.dumps({"job": asdict(job), "log": str(log)}, default=str) + "\n")
        parent.stdin.flush()
        self.pid = int(parent.stdout.readline())

    def said(self, start: str) -> list[str]:
        """Its lines that begin so."""
        return [line for line in self._lines() if line.startswith(start)]

    def _lines(self) -> list[str]:
        return self._log.read_text().split("\n")[:-1] if self._log.exists() else []

    def hears(self, start: str, count: int = 1) -> str:
        """Wait until it has said so many lines that begin so; returns the last of them."""
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until:
            found = self.said(start)
            if len(found) >= count:
                return found[-1]
            time.sleep(0.02)
        raise AssertionError(f"{count} lines of {start!r} did not come: {self._lines()[-5:]}")

    def gone(self) -> None:
        """Wait until the process is."""
        assert self._parent.stdout is not None
        assert self._parent.stdout.readline() == f"{self.pid} is gone\n"


class Commands:
    """Starts one command after another."""

    def __init__(self, parent: subprocess.Popen[str], logs: Path) -> None:
        self._parent, self._logs = parent, logs
        self._count = 0

    def start(self, job: Job) -> Command:
        """A command; the one before is gone."""
        self._count += 1
        return Command(self._parent, job, self._logs / f"said-{self._count}")


@contextmanager
def commands(logs: Path) -> Iterator[Commands]:
    """Within, commands can be started; none is left."""
    path = os.pathsep.join(filter(None, sys.path))
    threadless = {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.commands"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **allocator_environment(os.environ), **threadless},
    )
    try:
        yield Commands(process, logs)
    finally:
        process.kill()  # its child dies with it
        process.communicate()


class ForkedServer(ForkServer):
    """A fork server that has not to import anything, since whoever starts it has."""

    alive = True

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            ours.close()
            os.setsid()
            sys.argv = ["server", str(theirs.fileno()), *client.PRELOAD]
            server.main()
            os._exit(0)
        theirs.close()
        self._connection = ours
        self._unread, self._ready = b"", False
        self._exits: dict[int, int] = {}
        self._started: list[list[int]] = []

    def close(self) -> None:
        """It leaves when nobody listens."""
        self._connection.close()


def main() -> None:
    """Serve until the input ends."""
    _die_with_parent()
    for module in (*client.PRELOAD, "evenflow.train.ranks"):
        importlib.import_module(module)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _die_with_parent()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the answers' is not its own
            _become_command(json.loads(line))
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print(f"{pid} is gone", flush=True)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _become_command(told: dict[str, Any]) -> None:
    client._shared = ForkedServer()
    facts = told["job"]
    job = Job(**{**facts, **{name: Path(facts[name]) for name in _PATHS}})

    class Notes(Silent):
        """Writes down what is said, and before a restart what is on the disk: all ranks are gone, none are new."""

        def said(self, text: str) -> None:
            with open(told["log"], "a") as file:  # noqa: PTH123
                found = f"disk: {newest_whole(job.out)}\n" if text.startswith("restart ") else ""
                file.write(f"{found}{text}\n")

    notes, status = Notes(), 0
    try:
        evenflow.train(job, notes)
    except evenflow.EvenflowError as error:
        notes.said(f"ended: {error}")
        status = error.exit_code
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
