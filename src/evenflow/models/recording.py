"""What was noted of a stage at one microbatch shape, and what is read off: FLOPs, operators, bytes and their peaks.

A recording holds only what single tensors and calls have: a size, a shape. Sums and maxima are made when it is read, so
that a recording whose numbers are worked out for another shape is read as one that was made there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate

from evenflow.models.work import Call, left_of, operators_of
from evenflow.spec import GRADIENT_BYTES, Activations, Again, Combined, Exchanged, LayerOperator, Recompute

_Ran = tuple[tuple[LayerOperator, ...], tuple[LayerOperator, ...], tuple[LayerOperator, ...]]
_Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """What one microbatch of a stage did.

    Attributes:
        forward: FLOPs of the forward by operator.
        backward: FLOPs of the backward by operator, recomputation not included.
        weight_flops: those of the backward that the queue of weight gradients makes.
        weight_bytes: the gradients that it makes.
        output_bytes: its output.
        kept: bytes where every layer keeps what its backward needs.
        recomputed: what it does in each way in which its blocks have something to run again.
        forward_combined: what the forward put together over tp.
        backward_combined: what the backward did.
        ran: every operator of forward, of the backward's half for the input, and of the half for the weights.
        exchanged: what its forward hands to processes that share sequences or experts.
    """

    forward: dict[str, int]
    backward: dict[str, int]
    weight_flops: int
    weight_bytes: int
    output_bytes: int
    kept: Activations
    recomputed: tuple[Again, ...]
    forward_combined: tuple[Combined, ...] = ()
    backward_combined: tuple[Combined, ...] = ()
    ran: _Ran = ((), (), ())
    exchanged: Exchanged | None = None


@dataclass(frozen=True, slots=True)
class Flops:
    """Those of one call of an operator."""

    operator: str
    count: int


@dataclass(frozen=True, slots=True)
class Counted:
    """What was called in F, I and W.

    Attributes:
        flops: what PyTorch's counter counts.
        calls: everything that reaches a device.
        forward_combined: what F put together over tp.
        backward_combined: what I and W did.
    """

    flops: tuple[tuple[Flops, ...], ...]
    calls: tuple[tuple[Call, ...], ...]
    forward_combined: tuple[Combined, ...]
    backward_combined: tuple[Combined, ...]

    @property
    def all_flops(self) -> int:
        """Of the three."""
        return sum(own.count for part in self.flops for own in part)


@dataclass(frozen=True, slots=True)
class Run:
    """Every storage that came (its bytes) and went (its bytes below 0) in one forward and one backward, in order.

    Attributes:
        entered: up to the forward's start.
        forward: in the forward.
        handed: where its output was handed on, and the output's gradient came.
        backward: in the backward.
        ended: where autograd's graph and the input's gradient went.
        let_go: where the output's gradient went; nothing where what is left to do needs it.
        output_bytes: its output.
        seed_bytes: the output's gradient.
        freed_input_bytes: its input, where that went with whoever made it.
        shared: of each storage that was there before the stage's own first module and was kept.
    """

    entered: _Sizes
    forward: _Sizes
    handed: _Sizes
    backward: _Sizes
    ended: _Sizes
    let_go: _Sizes
    output_bytes: int
    seed_bytes: int
    freed_input_bytes: int
    shared: _Sizes

    @property
    def saved_bytes(self) -> int:
        """What the backward found."""
        return sum((*self.entered, *self.forward, *self.handed)) - self.seed_bytes

    @property
    def forward_peak_bytes(self) -> int:
        """The most that the forward held above what it started from."""
        return _peak((*self.entered, *self.forward)) - sum(self.entered)

    @property
    def backward_peak_bytes(self) -> int:
        """The most that the backward held above what it started from."""
        return _peak(self.backward)

    @property
    def left_bytes(self) -> int:
        """What the backward left, the kept gradient in it."""
        return self.saved_bytes + self.seed_bytes + sum((*self.backward, *self.ended, *self.let_go))

    @property
    def kept_gradient_bytes(self) -> int:
        """The output's gradient, where it is kept."""
        return 0 if sum(self.let_go) else self.seed_bytes


@dataclass(frozen=True, slots=True)
class Runs:
    """A step's first microbatch, which makes the parameters' gradients, and a later one: whole, and in halves."""

    first_whole: Run
    first_half: Run
    whole: Run
    half: Run

    def activations(self) -> Activations:
        """Their bytes, as a layer has them."""
        return Activations(
            saved_bytes=self.whole.saved_bytes,
            shared_bytes=sum(self.whole.shared),
            pending_bytes=self.half.left_bytes,
            forward_peak_bytes=self.whole.forward_peak_bytes,
            backward_peak_bytes=self.whole.backward_peak_bytes,
            input_peak_bytes=self.half.backward_peak_bytes,
            first_backward_peak_bytes=self.first_whole.backward_peak_bytes,
            first_input_peak_bytes=self.first_half.backward_peak_bytes,
            kept_gradient_bytes=self.half.kept_gradient_bytes,
            freed_input_bytes=self.whole.freed_input_bytes,
        )


@dataclass(frozen=True, slots=True)
class Rerun:
    """A stage that runs a part of its forward again."""

    recompute: Recompute
    counted: Counted
    runs: Runs


@dataclass(frozen=True, slots=True)
class Recording:
    """What one microbatch of a stage did, call by call and tensor by tensor.

    Attributes:
        counted: its calls.
        runs: its bytes.
        weight_numbers: how many the queue of weight gradients makes.
        reruns: both, in each way in which its blocks have something to run again.
    """

    counted: Counted
    runs: Runs
    weight_numbers: int
    reruns: tuple[Rerun, ...]

    def trace(self) -> Trace:
        """Read it off."""
        own = self.counted
        forward, inputs, weights = map(_by_operator, own.flops)
        return Trace(
            forward=forward,
            backward={name: inputs.get(name, 0) + weights.get(name, 0) for name in sorted(inputs | weights)},
            weight_flops=sum(weights.values()),
            weight_bytes=GRADIENT_BYTES * self.weight_numbers,
            output_bytes=self.runs.whole.output_bytes,
            kept=self.runs.activations(),
            recomputed=tuple(self._again(rerun) for rerun in self.reruns),
            forward_combined=own.forward_combined,
            backward_combined=own.backward_combined,
            ran=(operators_of(own.calls[0]), operators_of(own.calls[1]), operators_of(own.calls[2])),
        )

    def _again(self, rerun: Rerun) -> Again:
        once, twice = (
            Counter((*own.forward_combined, *own.backward_combined)) for own in (self.counted, rerun.counted)
        )
        more = rerun.counted.all_flops - self.counted.all_flops
        return Again(rerun.recompute, more, tuple((twice - once).elements()), rerun.runs.activations())


def less(trace: Trace, empty: Trace) -> Trace:
    """A stage's own work and bytes: its trace less that of a stage without layers."""

    def own(bytes: Activations) -> Activations:
        return replace(
            bytes,
            saved_bytes=bytes.saved_bytes - empty.kept.saved_bytes,
            pending_bytes=bytes.pending_bytes - empty.kept.pending_bytes,
        )

    return Trace(
        forward=_minus(trace.forward, empty.forward),
        backward=_minus(trace.backward, empty.backward),
        weight_flops=trace.weight_flops - empty.weight_flops,
        weight_bytes=trace.weight_bytes - empty.weight_bytes,
        output_bytes=trace.output_bytes,
        kept=own(trace.kept),
        recomputed=tuple(replace(again, activations=own(again.activations)) for again in trace.recomputed),
        forward_combined=trace.forward_combined,
        backward_combined=trace.backward_combined,
        ran=(
            left_of(trace.ran[0], empty.ran[0]),
            left_of(trace.ran[1], empty.ran[1]),
            left_of(trace.ran[2], empty.ran[2]),
        ),
        exchanged=trace.exchanged,
    )


def _peak(changes: Iterable[int]) -> int:
    return max(accumulate(changes, initial=0))


def _by_operator(flops: Iterable[Flops]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for own in flops:
        counts[own.operator] += own.count
    return dict(counts)


def _minus(counts: dict[str, int], less: dict[str, int]) -> dict[str, int]:
    left = {name: count - less.get(name, 0) for name, count in counts.items()}
    return {name: count for name, count in left.items() if count > 0}
