"""What each forked rank of the supervision benchmark does: steps under many heartbeats and under none, in turn."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.overhead_ranks import SHAPE, WARM_UP_ROUNDS, TimedTransport, choose_blocks, make_executor
from evenflow.execute import Executor
from evenflow.launch import Channel, Heartbeat, action_note
from evenflow.program import action_text, build_program
from evenflow.runtime import connect

_TRIALS = 200


class Beats:
    """Heartbeats as `Heartbeat` makes them, but as often as one likes, and only while they are wanted."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._wanted = threading.Event()
        self._counts = memoryview(bytearray(8)).cast("q")
        threading.Thread(target=self._beat, daemon=True).start()

    def want(self, wanted: bool) -> None:
        """Beat from now on, or not."""
        if wanted:
            self._wanted.set()
        else:
            self._wanted.clear()

    def _beat(self) -> None:
        never = threading.Event()
        while self._wanted.wait():
            never.wait(self._every_s)
            self._counts[0] += 1


def run(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Time `payload["rounds"]` rounds of both kinds of step."""
    torch.set_num_threads(1)
    program = build_program("1f1b", 2, payload["microbatches"])
    transport = TimedTransport(connect(rank, 2, Path(payload["rendezvous"]), 300))
    executor = make_executor(program, rank, choose_blocks(transport, payload["microbatch_s"]), transport)
    beats = Beats(payload["beat_s"])
    steps: dict[bool, list[float]] = {True: [], False: []}
    for round_number in range(payload["rounds"] + WARM_UP_ROUNDS):
        for beating in (True, False) if round_number % 2 else (False, True):
            beats.want(beating)
            seconds = _step(executor, transport)
            if round_number >= WARM_UP_ROUNDS:
                steps[beating].append(seconds)
    channel.send(
        {"kind": "result", "beating": steps[True], "quiet": steps[False], "notes_s": _notes_s(executor, channel)}
    )
    transport.close()


def _step(executor: Executor, transport: TimedTransport) -> float:
    """Processor seconds of a step, all threads included: what others do on the same cores is no part of them."""
    ids = torch.zeros(SHAPE, dtype=torch.int64)
    transport.transport.sum(torch.zeros(1))
    begin = time.process_time()
    executor.run_step(lambda _: ids, 1e-4)
    return time.process_time() - begin


def _notes_s(executor: Executor, channel: Channel) -> float:
    """All that a step notes, on the page that is shared."""
    heartbeat: Heartbeat = channel.heartbeat
    texts = [action_note(action_text(action), waits=True) for action in executor.actions]
    trials = []
    for _ in range(_TRIALS):
        begin = time.perf_counter()
        heartbeat.phase("in step 1", timed=True)
        for text in texts:
            heartbeat.takes(text)
            heartbeat.has_input()
        trials.append(time.perf_counter() - begin)
    return median(trials)
