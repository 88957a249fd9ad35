"""The ranks of one job, watched from the process that asked for them: messages, deaths, and who was to blame."""

from __future__ import annotations

import select
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from evenflow.errors import (
    EvenflowError,
    FaultError,
    ImpossibleError,
    InputError,
    PeerLostError,
    RankError,
    RankLostError,
    WorkerLostError,
)
from evenflow.launch.channel import Message
from evenflow.launch.heartbeat import Pulse
from evenflow.launch.oom import MemoryKills
from evenflow.launch.process import Process
from evenflow.launch.watch import Watch

# How long the report or death of the rank that is to blame may come after those of the ranks that lost it.
_ROOT_CAUSE_S = 2.0
_ERRORS: dict[str, type[EvenflowError]] = {
    kind.__name__: kind for kind in (InputError, ImpossibleError, PeerLostError, FaultError)
}


@dataclass
class RunningRank:
    """One rank: its process, and what was last heard of it."""

    number: int
    process: Process
    done: bool = False
    error: Message | None = None
    said: str = "starting"

    @property
    def pulse(self) -> Pulse | None:
        """What its heartbeat shows; None where it cannot be seen."""
        return self.process.pulse

    @property
    def stopped(self) -> bool:
        """Whether the system says that it is stopped."""
        return self.process.stopped

    @property
    def blocked(self) -> bool:
        """Whether the system says that it waits for a disk."""
        return self.process.blocked

    @property
    def leaving(self) -> bool:
        """Whether it is done, or known to have failed."""
        return self.done or self.error is not None or self.process.closed

    @property
    def doing(self) -> str:
        """What it does, or did last, down to the action where its heartbeat can be seen."""
        pulse = self.pulse
        return pulse.doing if pulse is not None and pulse.phase else self.said

    @property
    def phase(self) -> str:
        """The same without the action."""
        pulse = self.pulse
        return pulse.phase if pulse is not None and pulse.phase else self.said

    @property
    def who(self) -> str:
        """The rank, for messages."""
        return f"rank {self.number} ({self.process_name})"

    @property
    def process_name(self) -> str:
        """Its process, and its host if that is another one."""
        return f"process {self.process.pid}{self.process.where}"


@dataclass
class Group:
    """Running ranks of one job.

    Attributes:
        name: what the job is, for messages.
        ranks: the ranks, by number.
        watch: notices those that are alive and yet lost.
        starved: the number of the rank that the kernel killed, where it did so for want of memory.
    """

    name: str
    ranks: list[RunningRank] = field(default_factory=list)
    watch: Watch = field(init=False)
    starved: int | None = None
    _memory_kills: MemoryKills = field(default_factory=MemoryKills)

    def __post_init__(self) -> None:
        self.watch = Watch(self.ranks)

    @property
    def pids(self) -> list[int]:
        """The ranks' process ids."""
        return [rank.process.pid for rank in self.ranks]

    @property
    def hosts(self) -> list[str]:
        """The name of the host that each rank runs on."""
        return [rank.process.host for rank in self.ranks]

    def tell(self, message: Message) -> None:
        """Send a message to every rank."""
        for rank in self.ranks:
            rank.process.send(message)

    def messages(self, idle_s: float = 0.2) -> Iterator[tuple[int, Message] | None]:
        """All ranks' messages as they come, until all are done; None whenever none came for `idle_s`.

        Raises:
            EvenflowError: a rank failed or died; all others are ended first and the root cause is raised.
        """
        deadline: float | None = None
        while not all(rank.done for rank in self.ranks):
            found = self._read(idle_s if deadline is None else 0.05)
            for rank, message in found:
                yield rank.number, message
            if any(self._failed(rank) for rank in self.ranks):
                # A rank that lost its peer says so at once; what became of the peer may come a little later.
                deadline = deadline or time.monotonic() + _ROOT_CAUSE_S
                if self._culprit() is not None or time.monotonic() > deadline:
                    yield from self._end_with(self._root_cause())
            else:
                try:
                    self.watch.look()
                except RankLostError as error:
                    yield from self._end_with(error)
                self._memory_kills.look()
            if not found:
                yield None
        self._reap()

    def end(self) -> None:
        """Kill every rank that still runs and wait until it is gone."""
        self._kill()
        self._reap()

    def _end_with(self, error: EvenflowError) -> Iterator[tuple[int, Message]]:
        """End all ranks, pass on what they had sent by then, and raise."""
        self._kill()
        self._await_gone()
        for rank, message in self._read(0.0):
            yield rank.number, message
        self._close()
        raise error

    def _kill(self) -> None:
        for rank in self.ranks:
            rank.process.kill()

    def _read(self, wait_s: float) -> list[tuple[RunningRank, Message]]:
        for rank in self.ranks:
            rank.process.poll(0.0)
        open_ranks = [rank for rank in self.ranks if not rank.process.closed]
        found: list[tuple[RunningRank, Message]] = []
        if not open_ranks:
            time.sleep(min(wait_s, 0.01))
            return found
        select.select([rank.process for rank in open_ranks], [], [], wait_s)
        for rank in open_ranks:
            for message in rank.process.waiting():
                if message["kind"] == "done":
                    rank.done = True
                elif message["kind"] == "error":
                    rank.error = message
                elif message["kind"] == "doing":
                    rank.said = message["what"]
                else:
                    found.append((rank, message))
        return found

    def _failed(self, rank: RunningRank) -> bool:
        return not rank.done and (rank.error is not None or rank.process.closed)

    def _root_cause(self) -> EvenflowError:
        """What the rank that is to blame reported, or how it died."""
        culprit = self._culprit()
        if culprit is None:
            return self._silent_error()
        if culprit.error is None:
            deadline = time.monotonic() + _ROOT_CAUSE_S
            while not culprit.process.poll(0.05) and time.monotonic() < deadline:
                pass
        return self._error_of(culprit)

    def _culprit(self) -> RunningRank | None:
        """The rank that failed by itself: with an error of its own, or by dying without a word."""
        for rank in self.ranks:
            if rank.error is not None and rank.error["type"] != PeerLostError.__name__:
                return rank
        for rank in self.ranks:
            if rank.error is None and rank.process.closed and not rank.done:
                return rank
        return None

    def _silent_error(self) -> RankLostError:
        """All that spoke lost somebody: whoever said nothing is the one they lost."""
        silent = [rank for rank in self.ranks if not self._failed(rank) and not rank.done]
        if not silent:
            first = next(rank for rank in self.ranks if rank.error is not None)
            assert first.error is not None
            return RankLostError(
                f"the ranks lost each other; {first.who} said while {first.doing}: {first.error['text']}"
            )
        names = ", ".join(f"{rank.who} while {rank.doing}" for rank in silent)
        return RankLostError(f"the ranks lost each other; not heard of in time: {names}")

    def _error_of(self, rank: RunningRank) -> EvenflowError:
        if rank.error is None:
            status = rank.process.status
            if rank.process.lost:  # nothing could be started there again: torchrun starts the whole run anew
                return WorkerLostError(
                    f"{rank.who} is lost: its host or the network to it is gone, or its worker there was killed, "
                    f"while {rank.doing}; the other ranks were ended"
                )
            if status == -signal.SIGKILL and not rank.process.where and self._memory_kills.any_recent:
                self.starved = rank.number
                how = "was killed by SIGKILL, by the kernel, as memory ran out,"
            elif status is not None and status < 0:
                how = f"was killed by {signal.Signals(-status).name}"
            else:
                how = f"left without a word (status {status})"
            return RankLostError(f"{rank.who} {how} while {rank.doing}; the other ranks were ended")
        kind = _ERRORS.get(rank.error["type"])
        if kind is not None and kind is not FaultError:
            return kind(rank.error["text"])
        text = (rank.error["text"].strip().splitlines() or ["no reason given"])[0]
        if rank.error["type"] == RankError.__name__:  # it names rank, action and cause, first of all
            return RankError(f"{text} ({rank.process_name}, {rank.phase})")
        detail = text if rank.error["on_purpose"] else f"{rank.error['type']}: {text}"
        return FaultError(f"{rank.who} failed while {rank.phase}: {detail}")

    def _await_gone(self) -> None:
        deadline = time.monotonic() + 10
        running = [rank.process for rank in self.ranks]
        while running and time.monotonic() < deadline:
            running = [process for process in running if not process.poll(0.05)]

    def _reap(self) -> None:
        self._await_gone()
        self._close()

    def _close(self) -> None:
        for rank in self.ranks:
            rank.process.close()
