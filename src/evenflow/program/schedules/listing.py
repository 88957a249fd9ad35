"""List scheduling: play the step forward and let each rank that is free take the best action it can take now.

What a rank would rather do is a `Policy`; what it may do is decided by what has arrived and by its memory cap.
A rank prefers the input half of a backward, which others wait for, then a forward, and uses weight halves to
fill the time in which neither can run, or to free memory for the next forward.

Every schedule made so is one that ran, so none can deadlock. For the same to hold while it is made, what a rank holds
up to any of its stages leaves room, in memory and in how far forwards may be ahead, for one microbatch in each of its
later stages. The oldest microbatch can then always go on: what is in later stages than it is of older ones and done.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf

from evenflow.program.times import FORWARD, INPUT, WEIGHT, Coded, OrderTimes
from evenflow.program.work import Work


@dataclass(frozen=True, slots=True)
class Policy:
    """What the ranks prefer.

    Attributes:
        target: for each rank, by how many its forwards, all stages together, should be ahead of its backwards: below
            it a forward goes first, from there on a backward.
        most: for each rank, by how many they may be ahead where it would idle otherwise.
        backlog: for each rank, how many weight halves may be put off: more than that go before all else.
        patience: a weight half that would keep a known input waiting for more than this part of itself is put off.
        deep_first: whether of several forwards the one of the deepest stage is taken.
    """

    target: tuple[int, ...]
    most: tuple[float, ...]
    backlog: tuple[float, ...]
    patience: float = 0.0
    deep_first: bool = True


def list_schedule(work: Work, policy: Policy) -> tuple[Coded, OrderTimes] | None:
    """Each rank's actions under a policy, as numbers, and when they run; None where the caps leave no way."""
    play = _Play(work, policy)
    return (play.order, OrderTimes(play.start, play.end)) if play.run() else None


class _Play:
    def __init__(self, work: Work, policy: Policy) -> None:
        self.policy = policy
        stages, ranks = work.stages, work.ranks
        self.last_stage, self.microbatches = stages - 1, work.microbatches
        self.stage_rank, self.rank_stages, self.seconds = work.stage_rank, work.rank_stages, work.seconds
        self.saved, self.pending_part = work.saved, work.pending
        self.lag, self.back_lag = work.lag, work.back_lag
        # A rank's stages in the order in which their forwards are preferred.
        self.preferred = tuple(held[::-1] if policy.deep_first else held for held in work.rank_stages)
        self.most = [max(most, len(held)) for most, held in zip(policy.most, work.rank_stages, strict=True)]
        self.clock, self.held = [0.0] * ranks, [0.0] * ranks
        self.order: Coded = [[] for _ in range(ranks)]
        self.start: list[list[float]] = [[] for _ in range(ranks)]
        self.end: list[list[float]] = [[] for _ in range(ranks)]
        # When each stage's next inputs and output gradients arrive, in microbatch order.
        self.inputs: list[deque[float]] = [deque() for _ in range(stages)]
        self.gradients: list[deque[float]] = [deque() for _ in range(stages)]
        self.inputs[0].extend([0.0] * work.microbatches)
        self.count = [[0] * stages for _ in range(4)]
        self.ahead = [0] * ranks
        self.pending: list[deque[int]] = [deque() for _ in range(ranks)]  # stages whose weight half is to run
        self.left = [3 * len(held) * work.microbatches for held in work.rank_stages]
        self.later = [
            sum(later > stage for later in work.rank_stages[rank]) for stage, rank in enumerate(work.stage_rank)
        ]
        self.reserve = [
            sum(work.saved[later] for later in work.rank_stages[rank] if later > stage)
            for stage, rank in enumerate(work.stage_rank)
        ]
        self.needs = [saved + more for saved, more in zip(work.saved, self.reserve, strict=True)]
        self.cap = [cap + 1e-9 * max(abs(cap), 1.0) if cap < inf else inf for cap in work.cap]
        self.queue: list[tuple[float, int]] = []
        self.look = [inf] * ranks  # when each rank looks next; what else stands in the queue is out of date

    def run(self) -> bool:
        """Until nobody can do anything; whether all is done then."""
        for rank in range(len(self.clock)):
            self._look_at(rank, 0.0)
        while self.queue:
            now, rank = heappop(self.queue)
            if now == self.look[rank]:
                self.look[rank] = inf
                self._look_at(rank, self._act(rank, now))
        return not any(self.left)

    def _look_at(self, rank: int, moment: float) -> None:
        """Have a rank look for something to do at a moment, or when it is free if that is later."""
        if moment < self.clock[rank]:
            moment = self.clock[rank]
        if moment < self.look[rank]:
            self.look[rank] = moment
            heappush(self.queue, (moment, rank))

    def _act(self, rank: int, now: float) -> float:
        """Take one action, if any; returns when to look again."""
        pending = self.pending[rank]
        if len(pending) > self.policy.backlog[rank]:
            return self._take(rank, WEIGHT, pending[0], now)
        gradient_at, gradient = self._next_gradient(rank)
        forward_at, forward = self._next_forward(rank, now)
        if gradient_at <= now and (forward_at > now or self.ahead[rank] >= self.policy.target[rank]):
            return self._take(rank, INPUT, gradient, now)
        if forward_at <= now:
            return self._take(rank, FORWARD, forward, now)
        then = min(gradient_at, forward_at)
        if pending:
            stuck_for_memory = forward < -1
            least = self.seconds[WEIGHT][pending[0]] * (1 - self.policy.patience)
            if stuck_for_memory or then - now >= least:
                return self._take(rank, WEIGHT, pending[0], now)
        return then

    def _next_gradient(self, rank: int) -> tuple[float, int]:
        """When the rank's next output gradient is there, and for which stage: the one that came first."""
        best, chosen = inf, -1
        for stage in self.preferred[rank]:
            arrivals = self.gradients[stage]
            if arrivals and arrivals[0] < best:
                best, chosen = arrivals[0], stage
        return best, chosen

    def _next_forward(self, rank: int, now: float) -> tuple[float, int]:
        """When the rank's next forward can start, and of which stage; stage -2 if only memory keeps it from it."""
        best, chosen = inf, -1
        ahead, room = self.most[rank] - self.ahead[rank], self.cap[rank] - self.held[rank]
        blocked = False
        for stage in self.preferred[rank]:
            arrivals = self.inputs[stage]
            if not arrivals or (self.later[stage] >= ahead and not self._may_be_ahead(rank, stage)):
                continue
            at = arrivals[0]
            if self.needs[stage] > room and not self._has_room(rank, stage):
                blocked = blocked or at <= now
                continue
            if at < now:
                at = now
            if at < best:
                best, chosen = at, stage
        return (inf, -2) if chosen < 0 and blocked else (best, chosen)

    def _may_be_ahead(self, rank: int, stage: int) -> bool:
        """Whether a forward more leaves each later stage of the rank one, whatever is ahead in that stage itself."""
        ahead = 1
        for own in self.rank_stages[rank]:
            ahead += self.count[FORWARD][own] - self.count[INPUT][own]
            if own >= stage and ahead + self.later[own] > self.most[rank]:
                return False
        return True

    def _has_room(self, rank: int, stage: int) -> bool:
        """Whether a forward more leaves each later stage of the rank room, whatever that stage itself holds."""
        forwards, halves, weights = (self.count[code] for code in (FORWARD, INPUT, WEIGHT))
        held = self.saved[stage]
        for own in self.rank_stages[rank]:
            held += (forwards[own] - halves[own]) * self.saved[own]
            held += (halves[own] - weights[own]) * self.pending_part[own]
            if own >= stage and held + self.reserve[own] > self.cap[rank]:
                return False
        return True

    def _take(self, rank: int, code: int, stage: int, now: float) -> float:
        end = now + self.seconds[code][stage]
        count = self.count[code]
        self.order[rank].append((code * (self.last_stage + 1) + stage) * self.microbatches + count[stage])
        count[stage] += 1
        self.clock[rank] = end
        self.start[rank].append(now)
        self.end[rank].append(end)
        self.left[rank] -= 1
        if code == FORWARD:
            self.inputs[stage].popleft()
            self.held[rank] += self.saved[stage]
            self.ahead[rank] += 1
            if stage < self.last_stage:
                self._deliver(self.inputs[stage + 1], stage + 1, end + self.lag[stage])
            else:
                self.gradients[stage].append(end)
        elif code == INPUT:
            self.gradients[stage].popleft()
            self.held[rank] += self.pending_part[stage] - self.saved[stage]
            self.ahead[rank] -= 1
            self.pending[rank].append(stage)
            if stage:
                self._deliver(self.gradients[stage - 1], stage - 1, end + self.back_lag[stage - 1])
        else:
            self.pending[rank].popleft()
            self.held[rank] -= self.pending_part[stage]
        return end

    def _deliver(self, arrivals: deque[float], stage: int, at: float) -> None:
        arrivals.append(at)
        self._look_at(self.stage_rank[stage], at)
