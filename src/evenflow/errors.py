"""The exception tree: every failure a user can meet, and the exit code that the command line gives it.

EvenflowError
├── InputError          2   what was asked for is wrong: what, where, what would work
│   ├── NotEqualError   2   a split model does not compute what the whole one does: where, by how much
│   └── ProgramError    2   a program breaks a rule of `program.verify`: rank, action, reason
├── FaultError          3   a run stopped on a fault it names
│   ├── RankError       3   an action of a rank failed: rank, action, cause
│   ├── RankLostError   3   a rank died, fell silent or got stuck: going on from a checkpoint may do
│   ├── WorkerLostError 3   a worker of torchrun is gone: nothing but torchrun can start it again
│   └── PeerLostError   3   a rank saw another one disappear (never the root cause)
├── ImpossibleError     4   nothing fits: the closest, and what it lacks
└── StoppedError  130/143   saved and stopped by a signal
"""

from __future__ import annotations


class EvenflowError(Exception):
    """Base of all errors that evenflow raises on purpose; its text is one line for a person."""

    exit_code = 3


class InputError(EvenflowError):
    """The input is wrong: the text says what, where, and what would work."""

    exit_code = 2


class NotEqualError(InputError):
    """A split model differs from the whole one; the text names the cut, the tensor and the difference."""


class ProgramError(InputError):
    """A program breaks a rule; the text names the rank, the action and the reason."""


class FaultError(EvenflowError):
    """A run stopped on a fault: the text names the rank and the cause."""

    exit_code = 3


class RankError(FaultError):
    """An action failed by itself; the text names the rank, the action and the cause, which is `__cause__`."""


class RankLostError(FaultError):
    """A rank died without a word, fell silent or got stuck; nothing says that it would again, so a run may restart."""


class WorkerLostError(FaultError):
    """A worker of torchrun, its host or the network to it is gone: only torchrun can start the run again."""


class PeerLostError(FaultError):
    """A rank lost the connection to another one; the cause is elsewhere, so this is never reported first."""


class ImpossibleError(EvenflowError):
    """No plan fits: the text says which was closest and what it lacks."""

    exit_code = 4


class StoppedError(EvenflowError):
    """A signal stopped the run after it saved; the exit code is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
