"""The words of a program: inert values that name what one rank does next.

Every action prints as one token, as PyTorch's pipelining prints its own (`2F0` is the forward of
microbatch 0 on stage 2), and none of ours that PyTorch lacks begins with F, B, I or W, because its
parser would read `0FREE3` as `0F`.

Readers `match` on these and end with `assert_never`, so that the type checker lists every reader that
a new action must teach.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Forward:
    """F: compute a stage's output for one microbatch."""

    stage: int
    microbatch: int


@dataclass(frozen=True, slots=True)
class Backward:
    """B: compute a stage's input gradient and accumulate its weight gradients for one microbatch."""

    stage: int
    microbatch: int


@dataclass(frozen=True, slots=True)
class InputBackward:
    """I: the half of a backward that others wait for: a stage's input gradient; weight gradients are put off."""

    stage: int
    microbatch: int


@dataclass(frozen=True, slots=True)
class WeightBackward:
    """W: the other half: the weight gradients that I put off are computed and accumulated."""

    stage: int
    microbatch: int


@dataclass(frozen=True, slots=True)
class SendForward:
    """SEND_F: start sending a stage's output to the stage after; returns at once."""

    stage: int
    microbatch: int


@dataclass(frozen=True, slots=True)
class ReceiveForward:
    """RECV_F: make room for a stage's input and start receiving it from the stage before; returns at once."""

    stage: int
    microbatch: int


@dataclass(frozen=True, slots=True)
class SendBackward:
    """SEND_B: start sending a stage's input gradient to the stage before; returns at once."""

    stage: int
    microbatch: int


@dataclass(frozen=True, slots=True)
class ReceiveBackward:
    """RECV_B: make room for a stage's output gradient and start receiving it; returns at once."""

    stage: int
    microbatch: int


@dataclass(frozen=True, slots=True)
class ReleaseForward:
    """RELEASE_F: by now SEND_F must be complete (else wait), and the stage's output is freed."""

    stage: int
    microbatch: int


@dataclass(frozen=True, slots=True)
class ReleaseBackward:
    """RELEASE_B: by now SEND_B must be complete (else wait), and the stage's input gradient is freed."""

    stage: int
    microbatch: int


@dataclass(frozen=True, slots=True)
class ReduceTied:
    """REDUCE_TIED: start adding the gradients of weights that this stage shares with stages on other ranks."""

    stage: int


@dataclass(frozen=True, slots=True)
class ReduceGrad:
    """REDUCE_GRAD: start adding this stage's weight gradients over all data-parallel replicas."""

    stage: int


@dataclass(frozen=True, slots=True)
class Norm:
    """NORM: once this rank's reductions are complete, the norm of each gradient, then combine all ranks' norms."""


@dataclass(frozen=True, slots=True)
class Step:
    """STEP: clip by the combined norm and update this rank's parameters."""


Compute = Forward | Backward | InputBackward | WeightBackward
Reduction = ReduceTied | ReduceGrad
MicrobatchAction = (
    Compute | SendForward | ReceiveForward | SendBackward | ReceiveBackward | ReleaseForward | ReleaseBackward
)
StageAction = MicrobatchAction | Reduction
Action = StageAction | Norm | Step
Order = tuple[tuple[Compute, ...], ...]  # each rank's compute actions: what a schedule decides
