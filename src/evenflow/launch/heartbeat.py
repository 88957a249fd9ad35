"""A rank's signs of life, told apart from what it computes: a page of memory that it shares with whoever watches it.

A thread of its own counts heartbeats, so a rank that computes for long, or waits for a peer, still shows that it
lives; one whose process is stopped does not. The thread that trains notes what it begins. Nothing is sent: the notes
cost two writes to memory, and the last one can be read when the process is dead.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from dataclasses import dataclass

from evenflow.launch.nameless import nameless_file

BEAT_S = 0.25
_SLOT = 128  # bytes of a rank: two cache lines, so that ranks do not write to each other's; actions write to the first
_COUNTS = struct.Struct("<qqq7x?")  # heartbeats, actions begun, whether they are timed, whether the newest still waits
_WAITS = _COUNTS.size - 1
_ACTION, _ACTION_BYTES = 32, 32
_PHASE, _PHASE_BYTES = 64, 64


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a rank has shown of itself so far.

    Attributes:
        beats: heartbeats.
        begun: actions and other work that it has begun.
        waits: whether the newest action waits for another rank.
        timed: whether the plan says how long the phase may take: a step's, not that of a disk.
        phase: what it does, such as `in step 3`.
        action: the newest action of that, such as `1F2`; empty outside of steps.
    """

    beats: int
    begun: int
    waits: bool
    timed: bool
    phase: str
    action: str

    @property
    def doing(self) -> str:
        """Phase and action, for messages."""
        if not self.action:
            return self.phase
        return f"{self.phase}, {'waiting for' if self.waits else 'at'} {self.action}"


class Page:
    """The shared memory of some ranks, as whoever watches them has it.

    Attributes:
        descriptor: what the ranks' processes map; no file has a name, so none is ever left behind.
    """

    def __init__(self, ranks: int) -> None:
        self.descriptor = nameless_file("evenflow-heartbeats")
        os.ftruncate(self.descriptor, ranks * _SLOT)
        self._memory = mmap.mmap(self.descriptor, ranks * _SLOT)

    def read(self, index: int) -> Pulse:
        """What the rank with this number in the page shows."""
        slot = self._memory[index * _SLOT : (index + 1) * _SLOT]
        beats, begun, timed, waits = _COUNTS.unpack_from(slot)
        phase, action = slot[_PHASE : _PHASE + _PHASE_BYTES], slot[_ACTION : _ACTION + _ACTION_BYTES]
        return Pulse(beats, begun, waits, bool(timed), _text(phase), _text(action))

    def shared(self) -> None:
        """The ranks have their own descriptors by now: close this one."""
        os.close(self.descriptor)


class Heartbeat:
    """A rank's side of the page; without one, as in a process that nobody watches, its notes go nowhere.

    Args:
        descriptor: of the page; None where there is none.
        index: this rank's number in it.
    """

    def __init__(self, descriptor: int | None = None, index: int = 0) -> None:
        if descriptor is None:
            self._memory: bytearray | mmap.mmap = bytearray(_SLOT)
        else:
            self._memory = mmap.mmap(descriptor, 0)
        at = index * _SLOT
        self._counts = memoryview(self._memory)[at : at + _WAITS - 7].cast("q")
        self._phase = slice(at + _PHASE, at + _PHASE + _PHASE_BYTES)
        self._waits = at + _WAITS
        self._note = slice(at + _WAITS, at + _ACTION + _ACTION_BYTES)  # whether the action waits, and its text

    @property
    def action(self) -> str:
        """The newest action that was noted; empty outside of steps."""
        return _text(bytes(self._memory[self._note][1:]))

    def start(self) -> None:
        """Beat from now on, until the process ends."""
        self._counts[0] += 1
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def phase(self, what: str, timed: bool) -> None:
        """Note what this rank does from now on."""
        self._memory[self._phase] = _padded(what, _PHASE_BYTES)
        self._memory[self._note] = bytes(1 + _ACTION_BYTES)
        self._counts[2] = timed
        self._counts[1] += 1

    def takes(self, action: bytes) -> None:
        """Note an action that begins now; `action` is made by `action_note`."""
        self._memory[self._note] = action
        self._counts[1] += 1

    def has_input(self) -> None:
        """Note that the action waits no more."""
        self._memory[self._waits] = 0

    def _beat(self) -> None:
        never = threading.Event()
        while not never.wait(BEAT_S):
            self._counts[0] += 1


def action_note(action: str, waits: bool) -> bytes:
    """What `Heartbeat.takes` writes of an action: made once, since steps take it over and over.

    Args:
        action: its text.
        waits: whether it begins by waiting for what it needs.
    """
    return bytes([waits]) + _padded(action, _ACTION_BYTES)


def _padded(text: str, size: int) -> bytes:
    return text.encode()[: size - 1].ljust(size, b"\0")


def _text(part: bytes) -> str:
    return part.partition(b"\0")[0].decode(errors="replace")
