"""A proven lower bound of a step whose stages are given: no order of their compute actions is faster.

Every rank is taken as a machine with jobs, each of which has a *release*, before which it cannot start, and a *tail*,
the time that must pass from its end to the end of the last rank's NORM. The k-th forward that a stage runs, whichever
microbatch it is of, comes after k others there, and after the k-th of the stage before it has ended and travelled; the
k-th input half after that of the stage behind it; a forward that the memory cap leaves no room for, after as many
backwards as make room. Tails follow alike from the other end. Halves are the lesser of I and B, and what is left
of a backward is the lesser of B and I + W, less that.

For jobs with releases and tails, to run at every moment the one of the longest tail, interrupting others, ends first:
that is exact, takes n log n steps, and no order without interruptions is faster (Jackson's preemptive schedule: Carlier
1982, European Journal of Operational Research 11(1)). The bound is the longest over all ranks. STEP follows the
last NORM and the reduction. Where ranks share processors, all work over their number is a bound as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import pairwise
from math import ceil, floor, inf

from evenflow.program import Work
from evenflow.simulate import Hardware

_Job = tuple[float, float, float]  # release, seconds, tail
_Moments = list[list[float]]  # by stage and count


def order_bound_s(work: Work, hardware: Hardware) -> float:
    """Seconds that a step of this work takes at least."""
    return _Bound(work, hardware).seconds()


class _Bound:
    def __init__(self, work: Work, hardware: Hardware) -> None:
        self.work, self.ranks, self.hardware = work, hardware.own_ranks(), hardware
        self.slowest_update = max(cost.optimizer_s for cost in self.ranks)
        # Ranks with less to update begin earlier, since their last step ended earlier.
        self.begin = [cost.optimizer_s - self.slowest_update for cost in self.ranks]
        self.forward = [cost.forward_s for cost in work.costs]
        self.half = [min(cost.input_s, cost.backward_s) for cost in work.costs]
        whole = [min(cost.backward_s, cost.input_s + cost.weight_s) for cost in work.costs]
        self.rest = [max(own - half, 0.0) for own, half in zip(whole, self.half, strict=True)]
        self.there, self.back = [*work.lag, 0.0], [0.0, *work.back_lag]

    def seconds(self) -> float:
        forwards, halves = self._releases()
        jobs = self._jobs(forwards, halves)
        norm_at = max(max(_preemptive(own), self._with_later_forwards(rank, halves)) for rank, own in enumerate(jobs))
        return max(norm_at, self._crowded()) + self.hardware.reduce_s + self.slowest_update

    def _releases(self) -> tuple[_Moments, _Moments]:
        """For each stage and each k, before when its k-th forward and its k-th input half cannot start."""
        work, stages = self.work, self.work.stages
        forwards: _Moments = [[] for _ in range(stages)]
        halves: _Moments = [[] for _ in range(stages)]
        for k in range(work.microbatches):
            for stage, rank in enumerate(work.stage_rank):
                earliest = self.begin[rank]
                if stage:
                    earliest = max(earliest, forwards[stage - 1][k] + self.forward[stage - 1] + self.there[stage - 1])
                if k:
                    earliest = max(earliest, forwards[stage][k - 1] + self.forward[stage])
                before = self._backwards_before(stage, k)
                if before:
                    earliest = max(earliest, halves[stage][before - 1] + self.half[stage])
                forwards[stage].append(earliest)
            for stage in reversed(range(stages)):
                earliest = forwards[stage][k] + self.forward[stage]
                if stage < stages - 1:
                    earliest = max(earliest, halves[stage + 1][k] + self.half[stage + 1] + self.back[stage + 1])
                if k:
                    earliest = max(earliest, halves[stage][k - 1] + self.half[stage])
                halves[stage].append(earliest)
        return forwards, halves

    def _backwards_before(self, stage: int, k: int) -> int:
        """How many backwards must have begun so that the cap has room for k + 1 forwards of a rank's only stage."""
        rank = self.work.stage_rank[stage]
        cap, saved = self.work.cap[rank], self.work.saved[stage]
        if cap == inf or saved <= 0 or len(self.work.rank_stages[rank]) > 1:
            return 0
        return min(max(ceil(k + 1 - cap / saved * (1 + 1e-9) - 1e-9), 0), k)

    def _jobs(self, forwards: _Moments, halves: _Moments) -> list[list[_Job]]:
        """Each rank's jobs. A tail counts from the last: what follows the k-th last forward, half or rest."""
        work, m, stages = self.work, self.work.microbatches, self.work.stages
        jobs: list[list[_Job]] = [[] for _ in self.ranks]
        after_half: _Moments = [[] for _ in range(stages)]
        after_forward: _Moments = [[] for _ in range(stages)]
        for k in range(m):
            for stage, rank in enumerate(work.stage_rank):
                half, rest = self.half[stage], self.rest[stage]
                tail = k * half + (k + 1) * rest + self.ranks[rank].norm_s
                if stage:
                    tail = max(tail, self.back[stage] + self.half[stage - 1] + after_half[stage - 1][k])
                after_half[stage].append(tail)
                jobs[rank].append((halves[stage][m - 1 - k], half, tail))
                jobs[rank].append((halves[stage][m - 1 - k] + half, rest, self.ranks[rank].norm_s))
            for stage in reversed(range(stages)):
                tail = self.half[stage] + after_half[stage][k]
                if k:
                    tail = max(tail, self.forward[stage] + after_forward[stage][k - 1])
                if stage < stages - 1:
                    onward = self.there[stage] + self.forward[stage + 1]
                    tail = max(tail, onward + after_forward[stage + 1][k])
                after_forward[stage].append(tail)
                jobs[work.stage_rank[stage]].append((forwards[stage][m - 1 - k], self.forward[stage], tail))
        return jobs

    def _with_later_forwards(self, rank: int, halves: _Moments) -> float:
        """When a rank of several stages has its norm at the least.

        Behind its first half are all backwards and the forwards that its cap kept it from running before.
        """
        work, held = self.work, self.work.rank_stages[rank]
        m, least = work.microbatches, min(work.saved[stage] for stage in held)
        if len(held) == 1 or work.cap[rank] == inf or least <= 0:
            return 0.0
        later = max(m * len(held) - floor(work.cap[rank] / least * (1 + 1e-9)), 0)
        backwards = m * sum(self.half[stage] + self.rest[stage] for stage in held)
        forwards = later * min(self.forward[stage] for stage in held)
        return min(halves[stage][0] for stage in held) + backwards + forwards + self.ranks[rank].norm_s

    def _crowded(self) -> float:
        """When all work up to the last NORM can be done by the processors that there are."""
        processors = self.hardware.at_once
        if processors is None or processors >= len(self.ranks):
            return 0.0
        m = self.work.microbatches
        each = zip(self.forward, self.half, self.rest, strict=True)
        seconds = m * sum(map(sum, each)) + sum(cost.norm_s for cost in self.ranks)
        earlier = min(-sum(self.begin), -processors * min(self.begin))  # what may be done before time begins
        return (seconds - earlier) / processors


def _preemptive(jobs: Sequence[_Job]) -> float:
    """The least time by which every job's tail can have passed, on one machine that may interrupt jobs."""
    ordered = sorted(job for job in jobs if job[1] > 0)
    latest = max((release + seconds + tail for release, seconds, tail in jobs), default=0.0)
    waiting: list[tuple[float, float]] = []  # (-tail, seconds still to go)
    now = ordered[0][0] if ordered else 0.0
    for (release, seconds, tail), following in pairwise([*ordered, (inf, 0.0, 0.0)]):
        now = max(now, release) if not waiting else now
        heappush(waiting, (-tail, seconds))
        while waiting and now < following[0]:
            minus_tail, left = heappop(waiting)
            done = min(left, following[0] - now)
            now += done
            if done < left:
                heappush(waiting, (minus_tail, left - done))
            else:
                latest = max(latest, now - minus_tail)
    return latest
