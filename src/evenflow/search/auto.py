"""auto: a schedule made for one plan's own costs, transfers and memory caps.

Every named schedule that can run these stages is a candidate; so are list schedules under many settings, the best of
which are then improved by exchanging actions on the critical path. The simulator judges the finalists as whole
programs: with transfers, postings and the optimizer, and with the memory that the program really holds. So the
result is never slower than a named schedule under the same caps. Where nothing of all that fits, orders with few
microbatches in flight are tried, down to one: what holds least is known, and with it the least limit that would do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf

from evenflow.errors import ImpossibleError, InputError
from evenflow.plan import Posting
from evenflow.program import (
    SCHEDULES,
    Backward,
    InputBackward,
    Order,
    Program,
    WeightBackward,
    Work,
    check_size,
    compute_order,
    lower,
    misfit,
    peak_bytes,
    rank_memory,
    verify,
)
from evenflow.program.schedules.automatic import best_listings
from evenflow.program.schedules.few_in_flight import few_in_flight
from evenflow.program.schedules.halves import in_halves
from evenflow.program.schedules.improve import counted_peak, improve
from evenflow.program.schedules.listing import Policy, list_schedule
from evenflow.program.times import Coded, OrderTimes, decode, encode, order_times
from evenflow.search.advice import would_fit
from evenflow.search.hardware import plan_work
from evenflow.search.order_bound import order_bound_s
from evenflow.simulate import Hardware, check_hardware, step_seconds
from evenflow.units import format_bytes

_EFFORT = 0.25  # of what ZB-2p spends on settings
_LISTED = 2  # list schedules that are judged
_IMPROVED = 4  # candidates that are improved
# Actions timed while each is improved. Where one order has more than so many, few can be timed: lists see to those.
_ACTIONS_TIMED, _ACTIONS_TIMED_LONG, _MANY = 200_000, 25_000, 3_000
_ORDERS_TIMED = 800  # at most, however short they are
_IMPROVED_AGAIN = 2  # times that one is improved, under smaller caps if its program holds too much
_TIGHTER = 4  # times that a list schedule is made anew under smaller caps if its program holds too much


@dataclass(frozen=True, slots=True)
class AutoSchedule:
    """What was found.

    Attributes:
        program: the whole program, verified with memory and caps.
        order: its compute order.
        posting: by which times its receives are posted.
        step_s: seconds of its simulated step.
        bound_s: no order of these stages is faster.
        based_on: the named schedule that it is or comes from, or `list`.
        simulated: how many programs were simulated.
    """

    program: Program
    order: Order
    posting: Posting
    step_s: float
    bound_s: float
    based_on: str
    simulated: int

    @property
    def gap(self) -> float:
        """Step / bound - 1."""
        return self.step_s / self.bound_s - 1


def make_auto(stage_rank: tuple[int, ...], microbatches: int, hardware: Hardware, caps: list[float]) -> AutoSchedule:
    """The fastest schedule found whose program keeps every rank under its cap.

    Args:
        stage_rank: the rank of each stage.
        microbatches: microbatches of the step.
        hardware: seconds and bytes of each stage, transfers, norm and update.
        caps: bytes that each rank may hold, parameters and optimizer state included.

    Raises:
        InputError: stages, microbatches, hardware or caps do not go together, or a figure of them is no amount.
        ImpossibleError: no schedule keeps under the caps; the closest is named, and where all caps are the same, one
            that would do.
    """
    found = find_auto(stage_rank, microbatches, hardware, caps)
    if isinstance(found, Unfit):
        raise ImpossibleError(found.text)
    return found


def find_auto(
    stage_rank: tuple[int, ...],
    microbatches: int,
    hardware: Hardware,
    caps: list[float],
    reduces: bool = False,
    tied: tuple[tuple[int, ...], ...] = (),
) -> AutoSchedule | Unfit:
    """As `make_auto`, but what is closest is returned where nothing fits.

    Args:
        stage_rank: as for `make_auto`, as are the next three.
        microbatches: microbatches of the step.
        hardware: seconds and bytes.
        caps: bytes that each rank may hold.
        reduces: whether gradients are added over replicas.
        tied: groups of stages that share weights.
    """
    _check_request(stage_rank, microbatches, hardware, caps, len(tied))
    return _Auto(stage_rank, microbatches, hardware, caps, reduces, tied).run()


def _check_request(
    stage_rank: tuple[int, ...], microbatches: int, hardware: Hardware, caps: Sequence[float], ties: int
) -> None:
    """Once for all candidates, before anything is made from these figures."""
    ranks = max(stage_rank, default=-1) + 1
    if sorted(set(stage_rank)) != list(range(ranks)) or not stage_rank:
        raise InputError(
            f"stage_rank: stages are on the ranks {sorted(set(stage_rank))}; one stage or more on each rank, counted "
            "from 0, would do"
        )
    if microbatches < 1:
        raise InputError(f"a step of {microbatches} microbatches has nothing to do; 1 would be the least")
    check_size(len(stage_rank), microbatches)
    check_hardware(len(stage_rank), ranks, ties, hardware)
    if len(caps) != ranks:
        raise InputError(f"caps: there are {len(caps)}; the stages are on {ranks} ranks, so {ranks} would do")
    for rank, cap in enumerate(caps):
        if not cap > -inf:  # nor is it NaN
            raise InputError(f"caps: rank {rank} may hold {cap:g} bytes; a number, inf for no cap, would do")


@dataclass(frozen=True, slots=True)
class Unfit:
    """The schedule that is least over the caps.

    Attributes:
        over: by how many bytes, on the rank that is the most over.
        rank: that rank.
        need: what it needs.
        name: the schedule.
        limit: the cap that would do for every rank, where all have the same; else None.
    """

    over: float
    rank: int
    need: float
    name: str
    limit: float | None

    @property
    def text(self) -> str:
        """One line for people."""
        text = f"no schedule fits: rank {self.rank} needs {format_bytes(self.need)} of "
        text += f"{format_bytes(self.need - self.over)} with {self.name}"
        return text if self.limit is None else f"{text}; {would_fit(self.limit)}"


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An order, the quick look at its step, and what its receives may be posted by."""

    quick: float
    name: str
    order: Order
    postings: tuple[Posting, ...] = ("costs", "even")


class _Auto:
    def __init__(
        self,
        stage_rank: tuple[int, ...],
        microbatches: int,
        hardware: Hardware,
        caps: list[float],
        reduces: bool,
        tied: tuple[tuple[int, ...], ...],
    ) -> None:
        self.reduces, self.tied = reduces, tied
        self.stage_rank, self.microbatches = stage_rank, microbatches
        self.hardware, self.caps = hardware, caps
        self.work = plan_work(stage_rank, microbatches, hardware, caps)
        self.state = [cap - room for cap, room in zip(caps, self.work.cap, strict=True)]
        self.least_saved = [min(self.work.saved[stage] for stage in held) for held in self.work.rank_stages]
        ranks = hardware.own_ranks()
        self.norms = [cost.norm_s for cost in ranks]
        self.least_after = hardware.reduce_s + min(cost.optimizer_s for cost in ranks)
        self.best: AutoSchedule | None = None
        self.bound_s = order_bound_s(self.work, hardware)
        self.goal = self.bound_s - hardware.reduce_s - max(cost.optimizer_s for cost in ranks)
        self.simulated = 0
        self.closest: Unfit | None = None
        self.programs: dict[tuple[Order, Posting], Program] = {}

    def run(self) -> AutoSchedule | Unfit:
        """Judge all candidates, the most promising first; then improve the best of those that fit."""
        fitting: list[_Candidate] = []
        is_long = 3 * self.work.stages * self.microbatches > _MANY
        wanted, actions = (1, _ACTIONS_TIMED_LONG) if is_long else (_IMPROVED, _ACTIONS_TIMED)
        for one in sorted([*self._named(), *self._listed()], key=lambda own: own.quick):
            if self._is_best_possible():
                break
            # The quick look leaves out whatever may hold an action up, so no simulation of the whole is shorter.
            can_win = self.best is None or one.quick + self.least_after < self.best.step_s
            if (can_win or len(fitting) < wanted) and self._judge(one):
                fitting.append(one)
        if self.best is None:
            fitting = self._few_in_flight()
        for one in fitting[:wanted]:
            if not self._is_best_possible():
                self._improve(one, actions)
        if self.best is None:
            assert self.closest is not None
            return self.closest
        verify(self.best.program, self.hardware.memory, self.caps)
        return replace(self.best, simulated=self.simulated)

    def _is_best_possible(self) -> bool:
        return self.best is not None and self.best.step_s <= self.bound_s * (1 + 1e-12)

    def _objective(self, times: OrderTimes) -> tuple[float, ...]:
        """When the last rank has its norm; then how early all are done, which leaves room to improve."""
        ends = [own[-1] for own in times.end if own]
        return max(end + norm for end, norm in zip(ends, self.norms, strict=True)), sum(ends)

    def _candidate(self, name: str, order: Order) -> _Candidate:
        return _Candidate(self._objective(order_times(encode(order, self.work), self.work))[0], name, order)

    def _named(self) -> Iterator[_Candidate]:
        """Named schedules that can run these stages, as they are and with whole backwards in halves."""
        for name, schedule in SCHEDULES.items():
            if misfit(name, self.stage_rank) is None:
                order = compute_order(name, self.stage_rank, self.microbatches, self.work)
                yield self._candidate(name, order)
                if not schedule.halves:
                    yield self._candidate(f"{name} in halves", in_halves(order))

    def _listed(self) -> Iterator[_Candidate]:
        """List schedules; where a program holds too much, listed again under smaller caps."""
        for listing in best_listings(self.work, self._objective, _EFFORT, keep=_LISTED):
            work, coded = self.work, listing.coded
            for attempt in range(_TIGHTER):
                order = decode(coded, work)
                # What caps like these led to may not come out of others: it is no limit to tell anybody of.
                over = self._excess(self._peaks(self._lowered(order, "costs")))
                if not any(over):
                    yield self._candidate("list", order)
                    break
                # A rank that is hardly over may hold a whole microbatch less only under a cap that is much smaller.
                more = [excess and excess + attempt * self.least_saved[rank] / 4 for rank, excess in enumerate(over)]
                tighter = self._listed_tighter(work, more, listing.policy)
                if tighter is None:
                    break
                work, coded = tighter

    def _listed_tighter(self, work: Work, less: list[float], policy: Policy) -> tuple[Work, Coded] | None:
        """A list under caps that are so much smaller, or by a half or a quarter of it where that leaves no way."""
        for part in (1.0, 0.5, 0.25):
            tighter = _with_less(work, [part * own for own in less])
            listed = list_schedule(tighter, policy)
            if listed is not None:
                return tighter, listed[0]
        return None

    def _few_in_flight(self) -> list[_Candidate]:
        """Judge orders with few microbatches in flight, as many as fit; the best, if any does.

        With more in flight a step is shorter and more is held, so that the most that fit are found by halving.
        """
        best: list[_Candidate] = []
        stages = self.work.stages
        for halved in dict.fromkeys(((True,) * stages, (False,) * stages, self._lighter_in_halves())):
            fits, fails = 0, min(stages, self.microbatches) + 1
            count = 1  # first, as nothing holds less
            while fits < count < fails:
                text = "one microbatch" if count == 1 else f"{count} microbatches"
                one = self._candidate(f"{text} in flight", few_in_flight(self.work, count, halved))
                before = self.best
                if self._judge(one):
                    fits = count
                else:
                    fails = count
                if self.best is not before:
                    best = [one]
                count = (fits + fails) // 2
        return best

    def _lighter_in_halves(self) -> tuple[bool, ...]:
        """For each stage, whether its backwards hold less in halves, with one microbatch in flight."""
        most: list[list[int]] = []
        for is_halved in (True, False):
            order = few_in_flight(self.work, 1, [is_halved] * self.work.stages)
            most.append(self._backward_peaks(self._lowered(order, "costs")))
        return tuple(halves <= whole for halves, whole in zip(*most, strict=True))

    def _backward_peaks(self, program: Program) -> list[int]:
        """The most bytes that each stage's rank holds while the stage runs backward."""
        most = [0] * program.stages
        for rank, actions in enumerate(program.ranks):
            peaks = rank_memory(program, self.hardware.memory, rank).peak_bytes
            for action, peak in zip(actions, peaks, strict=True):
                if isinstance(action, Backward | InputBackward | WeightBackward):
                    most[action.stage] = max(most[action.stage], int(peak))
        return most

    def _improve(self, one: _Candidate, actions: int) -> None:
        """Move actions of a candidate that fits, in the memory that its program leaves, timing so many in all."""
        work, coded = self.work, encode(one.order, self.work)
        peaks = self._peaks(self._lowered(one.order, "costs"))
        counted = [counted_peak(own, work) for own in coded]
        beside = [peak - own - state for peak, own, state in zip(peaks, counted, self.state, strict=True)]
        work = _with_less(work, beside)
        for _ in range(_IMPROVED_AGAIN):
            evaluations = min(actions // sum(map(len, coded)), _ORDERS_TIMED)
            improved, _ = improve(work, coded, self.norms, evaluations, self.goal)
            found = self._candidate(f"{one.name}, improved", decode(improved, work))
            if improved == coded or self._judge(found):
                break
            # What its program holds beside what is counted may be more than it was.
            work = _with_less(work, self._over(self._lowered(found.order, "costs"), found.name))

    def _judge(self, one: _Candidate) -> bool:
        """Simulate a candidate's programs and keep the best; whether any fits."""
        fits = False
        for posting in one.postings:
            program = self._lowered(one.order, posting)
            if any(self._over(program, one.name)):
                continue
            fits = True
            self.simulated += 1
            step_s = step_seconds(program, self.hardware, checked=True)
            if self.best is None or step_s < self.best.step_s:
                self.best = AutoSchedule(program, one.order, posting, step_s, self.bound_s, one.name, self.simulated)
            if step_s <= (one.quick + self.least_after) * (1 + 1e-12):
                break  # nothing is held up, so no other posting is faster
        return fits

    def _lowered(self, order: Order, posting: Posting) -> Program:
        program = self.programs.get((order, posting))
        if program is None:
            work = self.work if posting == "costs" else None
            program = lower(order, self.stage_rank, self.microbatches, work, reduces=self.reduces, tied=self.tied)
            self.programs[order, posting] = program
        return program

    def _over(self, program: Program, name: str) -> list[float]:
        """By how much each rank is over its cap."""
        peaks = self._peaks(program)
        over = self._excess(peaks)
        worst = max(range(len(over)), key=over.__getitem__)
        if over[worst] and (self.closest is None or over[worst] < self.closest.over):
            limit = float(max(peaks)) if len(set(self.caps)) == 1 else None
            self.closest = Unfit(over[worst], worst, peaks[worst], name, limit)
        return over

    def _excess(self, peaks: list[int]) -> list[float]:
        return [max(need - cap, 0.0) for need, cap in zip(peaks, self.caps, strict=True)]

    def _peaks(self, program: Program) -> list[int]:
        return [peak_bytes(program, self.hardware.memory, rank) for rank in range(len(self.caps))]


def _with_less(work: Work, less: Sequence[float]) -> Work:
    """The same under caps that are so much smaller."""
    return replace(work, cap=tuple(cap - own for cap, own in zip(work.cap, less, strict=True)))
