"""What another trainer cannot express of a plan: found, and refused with what would do, before a line is written."""

from __future__ import annotations

from collections.abc import Collection

from evenflow.errors import ImpossibleError
from evenflow.plan import Plan
from evenflow.program import placement_of


def needs_schedule(plan: Plan, title: str, schedules: Collection[str]) -> None:
    """Refuse a schedule that the trainer does not have.

    Raises:
        ImpossibleError: with those that it has.
    """
    if plan.schedule not in schedules:
        would = " or ".join(schedules)
        raise ImpossibleError(
            f"{title} cannot run the schedule {plan.schedule}; a plan under {would} would do "
            f"(`evenflow plan ... --schedule {next(iter(schedules))}`)"
        )


def needs_placement(plan: Plan, title: str, placements: Collection[str]) -> None:
    """Refuse stages on other ranks than the trainer can put them.

    Raises:
        ImpossibleError: with where they are, and where they could be.
    """
    placement = placement_of(plan.stage_rank)
    on_one = plan.axes.pp == 1 and "one" in placements and len(plan.stages) == 1
    if placement not in placements and not on_one:
        raise ImpossibleError(
            f"{title} cannot hold stages on the ranks {list(plan.stage_rank)}; stages in {' or '.join(placements)} "
            "placement would do"
        )


def needs_axes(plan: Plan, title: str, axes: Collection[str]) -> None:
    """Refuse degrees of parallelism over axes that the trainer (or this export of it) does not have.

    Raises:
        ImpossibleError: with the axis.
    """
    for name in ("pp", "tp", "dp", "cp", "ep"):
        degree = getattr(plan.axes, name)
        if degree > 1 and name not in axes:
            raise ImpossibleError(f"{title} has no {name} here, and the plan has {name} {degree}; {name} 1 would do")


def needs_recompute(plan: Plan, title: str, kinds: Collection[str]) -> None:
    """Refuse recomputation that the trainer does not have.

    Raises:
        ImpossibleError: with the kinds that it has.
    """
    found = sorted({kind for kind in plan.recompute if kind != "none"} - set(kinds))
    if found:
        raise ImpossibleError(
            f"{title} cannot recompute as the plan does ({', '.join(found)}); "
            f"a plan with --recompute {' or '.join(['none', *kinds])} would do"
        )


def needs_sequences(plan: Plan, title: str, pieces: int) -> None:
    """Refuse sequences that cannot be cut into `pieces` equal ones, over tp and (in pairs) over cp.

    Raises:
        ImpossibleError: with the nearest length below that can.
    """
    if plan.seq_length % pieces:
        would = max(plan.seq_length - plan.seq_length % pieces, pieces)
        raise ImpossibleError(
            f"{title} cuts sequences into {pieces} pieces for tp {plan.axes.tp} and cp {plan.axes.cp}, and the plan's "
            f"have {plan.seq_length} tokens; --seq-length {would} would do"
        )


def recomputed_first(plan: Plan) -> int | None:
    """How many blocks every stage recomputes from its beginning on, those with fewer blocks all; None if it is not so.

    Blocks are all layers but the first (the embedding) and the last (the head).
    """
    blocks = range(1, len(plan.layers) - 1)
    held = [[plan.recompute[layer] == "full" for layer in stage.layers if layer in blocks] for stage in plan.stages]
    leading = [own.index(False) if False in own else len(own) for own in held]
    if any(sum(own) != count for own, count in zip(held, leading, strict=True)):
        return None
    asked = max(leading, default=0)
    fits = all(count == min(asked, len(own)) for own, count in zip(held, leading, strict=True))
    return asked if fits else None
