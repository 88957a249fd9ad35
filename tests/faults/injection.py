"""Real faults at chosen moments, from outside the package: a `sitecustomize` that the fork server imports.

What is to happen stands in a file that each rank reads when it starts: which rank, in what, at which time, and which
signal it then sends itself. Whoever does it takes the file away first, so a rank that is started again lives.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evenflow.files import StepMetrics
from evenflow.launch import ForkServer, client
from evenflow.train import Progress

POINTS = ("forward", "backward", "communication", "optimizer", "save")

_SITECUSTOMIZE = """
import ctypes, importlib, json, os, sys, time
if "evenflow.launch.server" in sys.orig_argv and "FAULT" in os.environ:
    import torch.distributed
    from evenflow.execute.runner import StageRunner
    from evenflow.launch.channel import Channel
    from evenflow.runtime import Optimizer
    from evenflow.runtime.transport import GlooTransfer
    from evenflow.train.copies import Copy
    from evenflow.train.saver import Saver
    shards = importlib.import_module("evenflow.train.shards")
    plan, calls, wholes = [], {}, {}

    def happen(fault, *rest):
        try:
            os.rename(os.environ["FAULT"], os.environ["FAULT"] + ".done")
        except FileNotFoundError:
            return  # it has happened already
        with open(os.environ["FAULT"] + ".at", "w") as file:
            file.write(str(time.time()))
        match fault["what"]:
            case "hang":
                time.sleep(600)
            case "slow":
                time.sleep(6)
            case "pause":
                time.sleep(1.5)
            case "hold":  # the interpreter, with all its threads
                ctypes.PyDLL(None).sleep(600)
            case "fifth":  # from here on all that it computes takes five times as long
                for name in ("forward", "backward", "input_backward", "weight_backward"):
                    slow_down(type(rest[0]), name)
            case "memory":
                torch.empty(2**50)
            case str(cgroup) if cgroup.startswith("/"):  # takes more memory than its processes may have
                with open(cgroup + "/cgroup.procs", "w") as file:
                    file.write(str(os.getpid()))
                torch.ones(2**28)
            case str(bad):  # such as "nan output": what the runner makes next has such a number in it
                kind, _, _ = bad.partition(" ")
                runner, made = rest[0], wholes[fault["point"]]

                def spoilt(*arguments, **more):
                    found = made(runner, *arguments, **more)
                    if fault["point"] == "forward" and runner.stage.is_last:
                        runner._losses[arguments[0]] = float(kind)
                    elif found is None:  # a first stage's backward makes weights' gradients only
                        next(runner.stage.parameters()).grad.view(-1)[0] = float(kind)
                    else:
                        found.view(-1)[0] = float(kind)
                    return found

                setattr(runner, fault["point"], spoilt)
            case number:
                os.kill(os.getpid(), number)

    def slow_down(owner, name):
        whole = getattr(owner, name)

        def slower(*arguments, **more):
            began = time.monotonic()
            found = whole(*arguments, **more)
            time.sleep(4 * (time.monotonic() - began))
            return found

        setattr(owner, name, slower)

    take = Copy.take

    def takes(copy, *arguments):
        take(copy, *arguments)
        with open(os.environ["FAULT"] + ".copied", "a") as file:
            file.write("one\\n")

    Copy.take = takes

    def all_have_copied(times):
        # Before one dies in its writes: else what is lost would depend on whether the others were as quick.
        until = time.monotonic() + 10
        while time.monotonic() < until:
            with open(os.environ["FAULT"] + ".copied") as file:
                if len(file.readlines()) >= times * plan[0]["writers"]:
                    return
            time.sleep(0.001)

    def passes(point, *rest):
        if not plan:
            try:
                plan.append(json.load(open(os.environ["FAULT"])))
            except FileNotFoundError:
                plan.append(None)
        fault = plan[0]
        if fault and fault["point"] == point and torch.distributed.get_rank() == fault["rank"]:
            calls[point] = calls.get(point, 0) + 1
            if calls[point] == fault["call"]:
                if point == "save":
                    all_have_copied(fault["call"])
                happen(fault, *rest)

    def counting(owner, name):
        whole = getattr(owner, name)

        def noted(own, *arguments, **more):
            rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
            with open(os.environ["FAULT"] + ".counts", "a") as file:
                file.write(f"{rank} {name}\\n")
            return whole(own, *arguments, **more)

        setattr(owner, name, noted)

    counting(StageRunner, "begin_step")
    counting(torch.optim.AdamW, "step")

    def before(owner, name, point):
        whole = wholes[point] = getattr(owner, name)

        def patched(*arguments, **more):
            passes(point, arguments[0])
            own = vars(arguments[0]).pop(name, None) if hasattr(arguments[0], "__dict__") else None
            return own(*arguments[1:], **more) if own else whole(*arguments, **more)

        setattr(owner, name, patched)

    before(StageRunner, "forward", "forward")
    before(StageRunner, "backward", "backward")
    before(StageRunner, "evaluate", "evaluation")
    before(GlooTransfer, "wait", "communication")
    before(Optimizer, "step", "optimizer")
    before(importlib.import_module("evenflow.train.ranks"), "_write_model", "model")
    done = Saver.done

    def settled(saver):
        # Else what is lost by a fault outside a save would depend on how fast the disk is.
        if (plan and plan[0] and plan[0]["settles"]) or heard() is not None:
            saver.idle(30)
        return done(saver)

    Saver.done = settled
    send = Channel.send

    def heard():
        try:
            return int(open(os.environ["FAULT"] + ".heard").read())
        except FileNotFoundError:
            return None

    def waits(channel, message):
        # For whoever hears of steps, where it says that it does: ranks may be some steps on by then.
        send(channel, message)
        until = time.monotonic() + 60
        while message["kind"] == "step" and (step := heard()) is not None and step < message["step"]:
            if time.monotonic() > until:
                raise TimeoutError(f"step {message['step']} was not heard of")
            time.sleep(0.001)

    Channel.send = waits
    write = shards._write

    def failing(file, data):
        # Amid each write. A file holds the error's number, for as long as it is to last.
        write(file, data[: len(data) // 2])
        passes("save", file)
        try:
            number = int(open(os.environ["FAULT"] + ".disk").read())
        except (FileNotFoundError, ValueError):
            return write(file, data[len(data) // 2 :])
        raise OSError(number, os.strerror(number))

    shards._write = failing
"""


class Faults:
    """What is to happen to the next run's ranks.

    Attributes:
        file: what the ranks read.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "fault"

    def plan(self, rank: int, point: str, call: int, what: int | str, settles: bool = True, writers: int = 2) -> None:
        """Have a rank do something at its `call`-th pass of a point: send itself a signal, or hang.

        Outside a save the writes of one are waited for in its step, so that what is lost does not depend on how fast
        the disk is, unless it is not to settle.
        """
        self.clear()
        fault = {
            "rank": rank,
            "point": point,
            "call": call,
            "what": what,
            "settles": settles and point != "save",
            "writers": writers,
        }
        self.file.write_text(json.dumps(fault))

    def at(self) -> float:
        """When it happened."""
        return float(self.file.with_name("fault.at").read_text())

    def counted(self, rank: int, name: str) -> int:
        """How often a rank has begun a step (`begin_step`), or updated its weights (`step`), since the last plan."""
        lines = self.file.with_name("fault.counts").read_text().splitlines()
        return lines.count(f"{rank} {name}")

    def disk(self, number: int | None) -> None:
        """Have every write of a checkpoint fail with this error from now on, or none."""
        switch = self.file.with_name("fault.disk")
        if number is None:
            switch.unlink(missing_ok=True)
        else:
            switch.write_text(str(int(number)))

    def pace(self, hears: Progress) -> None:
        """Have ranks wait after each step, for its save too, until what `hears` does when it is done is over.

        Else what it does to a disk or to a process comes some steps later where the ranks are quick.
        """
        stepped = hears.stepped

        def then(metrics: StepMetrics, steps: int) -> None:
            stepped(metrics, steps)
            self._hear(metrics.step)

        hears.stepped = then  # type: ignore[method-assign]
        self._hear(0)

    def _hear(self, step: int) -> None:
        new = self.file.with_name("fault.new")
        new.write_text(str(step))
        new.rename(self.file.with_name("fault.heard"))

    def clear(self) -> None:
        """Nothing is to happen any more."""
        for file in self.file.parent.glob("fault*"):
            file.unlink()


@contextmanager
def faulty_server(folder: Path) -> Iterator[Faults]:
    """Within, runs of this process get their ranks from a fork server that lets faults happen."""
    (folder / "injected").mkdir(parents=True)
    (folder / "injected" / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    faults = Faults(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAULT", str(faults.file))
        patch.syspath_prepend(str(folder / "injected"))
        server = ForkServer((*client.PRELOAD, "evenflow.train.ranks"))
        patch.setattr(client, "_shared", server)
        try:
            yield faults
        finally:
            server.close()


def pids_of(run: Path) -> list[int]:
    """The process ids in a run's ranks.json."""
    return [own["pid"] for own in json.loads((run / "ranks.json").read_text())]


def alive(pids: list[int]) -> list[int]:
    """Which of these processes still are."""
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]  # noqa: PTH110
