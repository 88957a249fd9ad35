"""Published rows by the planner's own path, so that figures known of closed forms are known of what `plan` prints.

`benchmarks.published` predicts from `cost.pinned`; `evenflow plan PRESET` from layers' figures (`cost.preset`) and the
simulator. Here a row's layout, its split included, goes down the second path, which is then held against the first.
What a row says of its trainer and no flag of `plan` does is passed on all the same: fp8, attention that keeps scores,
and that ranks of tp without sequence parallelism hand on a piece of the hidden states each (Narayanan et al. 2021,
arXiv:2104.04473, section 4.1), where evenflow's hand on the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import median
from typing import Any

from evenflow.cost import LinkCost, Network
from evenflow.cost.pinned import Holding, Pinned, Redone
from evenflow.cost.preset import PresetCosts, Shape
from evenflow.cost.roofline import Roofline
from evenflow.errors import InputError
from evenflow.plan import Search
from evenflow.program import check_size
from evenflow.search.layouts import Layout
from evenflow.search.layouts.assemble import assemble
from evenflow.search.layouts.solve import Kind, Solver
from evenflow.spec import Batch, parse_cluster
from evenflow.spec.accelerators import reserved_bytes
from evenflow.spec.architecture import Architecture
from evenflow.spec.trainers import TRAINERS, Trainer

_SCHEDULES = {"1f1b": "1f1b", "interleaved-1f1b": "interleaved", "zb-1p": "zb-1p", "zb-2p": "zb-2p"}
_WAYS = {"none": "none", "attention": "selective", "operators": "selective", "full": "full"}
_ROOM = 1e15  # bytes of a device: what was published has run


class Unplanned(Exception):
    """What the planner has no word for."""


@dataclass(frozen=True, slots=True)
class Planned:
    """What the planner's path comes to.

    Attributes:
        step_s: seconds of a step.
        rank_bytes: allocated on each pipeline rank at its fullest; None where the job's bytes have no word in a plan.
    """

    step_s: float
    rank_bytes: tuple[int, ...] | None

    def peak_bytes(self, is_last_rank: bool = False, is_driver: bool = False) -> float | None:
        """As `cost.pinned.peak_bytes`."""
        if self.rank_bytes is None:
            return None
        found = float(self.rank_bytes[-1] if is_last_rank else max(self.rank_bytes))
        return reserved_bytes(found) if is_driver else found


class _Costs(PresetCosts):
    """A preset's figures with what a row says beside them."""

    def __init__(self, pinned: Pinned, trainer: Trainer, roofline: Roofline) -> None:
        super().__init__(pinned.architecture, pinned.device, pinned.seq, trainer, roofline)
        self._pinned = pinned

    def job(self, shape: Shape, architecture: Architecture | None = None, redone: Redone = "none") -> Pinned:
        own = self._pinned
        return replace(
            super().job(shape, architecture, redone), is_eighth=own.is_eighth, is_flash=own.is_flash,
            is_ep_overlapped=own.is_ep_overlapped, is_sequence_parallel=own.is_sequence_parallel,
        )  # fmt: skip

    def links(self, ranks: int, rank_devices: int) -> tuple[LinkCost, Network | None]:
        own, network = super().links(ranks, rank_devices)
        return self._in_pieces(own), network and replace(network, link=self._in_pieces(network.link))

    def _in_pieces(self, own: LinkCost) -> LinkCost:
        pieces = 1 if self._pinned.is_sequence_parallel else self._pinned.tp
        return replace(own, bytes_per_s=own.bytes_per_s * pieces)


@cache
def planned(job: Pinned, roofline: Roofline) -> Planned:
    """The step and peaks of a job by the planner's path.

    Raises:
        Unplanned: the job has what no plan has.
    """
    if job.order not in _SCHEDULES:
        raise Unplanned(f"evenflow has no order {job.order}")
    if job.zero > 1:
        raise Unplanned(f"plans share out no parameters or gradients (ZeRO {job.zero})")
    try:
        check_size(job.pp * job.vpp, job.microbatches)
        return _planned(job, roofline)
    except InputError as error:
        raise Unplanned(str(error)) from None


def _planned(job: Pinned, roofline: Roofline) -> Planned:
    trainer = replace(
        TRAINERS["megatron"], is_sequence_parallel=job.is_sequence_parallel, is_overlapped=job.is_overlapped,
        is_tp_overlapped=job.is_tp_overlapped, is_gradient_overlapped=job.is_gradient_overlapped,
        selective="operators" if job.redone == "operators" else "attention",
    )  # fmt: skip
    costs = _Costs(job, trainer, roofline)
    layout = Layout(
        job.pp, job.tp, job.dp, job.cp, job.ep, job.vpp, _SCHEDULES[job.order], job.micro_batch, job.zero,
        job.microbatches,
    )  # fmt: skip
    solver = Solver(costs, [Kind(job.devices, 1.0, _ROOM)], _WAYS[job.redone])
    found = solver.of_split(layout, stage_ends(job))
    cluster = parse_cluster(f"{job.devices}x{job.device.name}")
    batch = Batch(job.microbatches * job.micro_batch * job.dp, job.micro_batch, job.seq, job.dp)
    plan = assemble(found, costs, cluster, batch, int(_ROOM), found.step_s, Search(1, 0.0), ())
    has_bytes = job.is_loss_fused and job.gradient_bytes == 4 and not job.bucket_bytes
    return Planned(plan.predicted.step_s, tuple(own.peak_bytes for own in plan.ranks) if has_bytes else None)


def stage_ends(job: Pinned) -> tuple[int, ...]:
    """Where each stage ends, 0 first, of a split whose ranks hold what `job.holdings()` says."""
    each = [_stages(own, job.vpp) for own in job.holdings()]
    ends = [0]
    for stage in range(job.pp * job.vpp):
        ends.append(ends[-1] + each[stage % job.pp][stage // job.pp])
    ends[1:] = [end + 1 for end in ends[1:]]  # the embedding
    ends[-1] += 1  # the head
    return tuple(ends)


def _stages(holding: Holding, count: int) -> list[int]:
    """A rank's blocks by stage; the stage of the embedding or the head has no more than others."""
    least, more = divmod(holding.blocks, count)
    has_more = range(more) if holding.has_head else range(count - more, count)
    return [least + (stage in has_more) for stage in range(count)]


def compared(jobs: Sequence[tuple[int, Pinned, Planned, float, float]]) -> dict[str, Any]:
    """How far apart the two paths are: by order of the pipeline, median and worst.

    Args:
        jobs: each with its row, its plan, and the closed forms' seconds and bytes.
    """
    groups = {"all": jobs, **{order: [own for own in jobs if own[1].order == order] for order in _SCHEDULES}}
    return {
        name: {
            "step_time": _differences([(row, plan.step_s / seconds) for row, _, plan, seconds, _ in own]),
            "memory": _differences([
                (row, peak / size) for row, _, plan, _, size in own if (peak := plan.peak_bytes()) is not None
            ]),
        }
        for name, own in groups.items()
    }  # fmt: skip


def _differences(ratios: Sequence[tuple[int, float]]) -> dict[str, float | int | None]:
    found = sorted((abs(ratio - 1), row) for row, ratio in ratios)
    if not found:
        return {"rows": 0, "median": None, "p90": None, "worst": None, "worst_row": None}
    return {
        "rows": len(found), "median": median(own for own, _ in found), "p90": found[int(0.9 * (len(found) - 1))][0],
        "worst": found[-1][0], "worst_row": found[-1][1],
    }  # fmt: skip
