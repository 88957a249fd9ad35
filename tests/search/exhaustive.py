"""The best step by trying everything: every split, and every number of blocks that a rank runs again, simulated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import combinations, pairwise, product

from evenflow.cost.preset import PresetCosts
from evenflow.cost.preset_model import preset_costs, preset_model
from evenflow.program import Backward, Forward, InputBackward, Program, build_program, compute_order
from evenflow.search.layouts.bounds import norm_seconds
from evenflow.search.layouts.layout import Layout
from evenflow.search.layouts.stages import WAYS
from evenflow.search.problem import Problem
from evenflow.simulate import step_seconds
from evenflow.spec import Recompute

_PAIRS: tuple[tuple[Recompute, Recompute], ...] = (("none", "full"), ("none", "selective"), ("selective", "full"))


def best_by_trying_everything(layouts: Iterable[Layout], costs: PresetCosts, cap: float) -> float:
    """The shortest step of all layouts, splits and recomputations that the search's own account of memory lets pass."""
    return min((_best(layout, costs, cap) for layout in layouts), default=float("inf"))


def _best(layout: Layout, costs: PresetCosts, cap: float) -> float:
    model = preset_model(costs, layout.shape, layout.dp, layout.zero)
    base = preset_costs(costs, layout.shape, layout.pp, layout.dp, layout.zero, norm_seconds(costs, layout))
    program = _program(layout)
    count, best = len(model.layers), float("inf")
    for cuts in combinations(range(1, count), layout.stages - 1):
        ends = (0, *cuts, count)
        split = tuple(tuple(range(one, end)) for one, end in pairwise(ends))
        held = [
            [layer for stage, owner in enumerate(layout.stage_rank) if owner == rank for layer in split[stage]]
            for rank in range(layout.pp)
        ]
        tried: set[tuple[str, ...]] = set()
        for choice in product(*(_ways(layers) for layers in held)):
            modes: list[Recompute] = ["none"] * count
            for layers, (pair, again) in zip(held, choice, strict=True):
                for place, layer in enumerate(layers):
                    modes[layer] = pair[1] if place < again else pair[0]
            own = model.recomputing(modes)
            if (
                not _can_say(costs.trainer.name, own, split)
                or own in tried
                or not _fits(layout, costs, cap, split, held, choice)
            ):
                continue
            tried.add(own)
            problem = Problem(
                model.under(own),
                base.under(own),
                layout.microbatches,
                layout.schedule,
                layout.stage_rank,
                cap,
                layout.pp,
            )
            best = min(best, step_seconds(program, problem.hardware(split)))
    return best


def _can_say(trainer: str, modes: Sequence[Recompute], split: Sequence[Sequence[int]]) -> bool:
    """Whether a trainer's configuration has words for such recomputation, by its documentation."""
    blocks = modes[1:-1]
    if trainer == "torchtitan":
        return len(set(blocks)) == 1
    if trainer == "deepspeed":
        return "selective" not in blocks
    if trainer == "megatron" and set(blocks) not in ({"none"}, {"selective"}):
        held = [[modes[layer] for layer in stage if 0 < layer < len(modes) - 1] for stage in split]
        most = max(own.count("full") for own in held)
        return all(own == (["full"] * most + ["none"] * len(own))[: len(own)] for own in held)
    return True


def _ways(layers: list[int]) -> list[tuple[tuple[Recompute, Recompute], int]]:
    return [(pair, again) for pair in _PAIRS for again in range(len(layers) + 1)]


@lru_cache(maxsize=64)
def _program(layout: Layout) -> Program:
    return build_program(layout.schedule, layout.stage_rank, layout.microbatches, reduces=layout.dp * layout.cp > 1)


def _fits(
    layout: Layout,
    costs: PresetCosts,
    cap: float,
    split: Sequence[Sequence[int]],
    held: Sequence[Sequence[int]],
    choice: Sequence[tuple[tuple[Recompute, Recompute], int]],
) -> bool:
    """The search's rule for a rank's bytes, walked action by action."""
    figures = costs.figures(layout.shape)
    state = costs.step_figures(layout.shape, layout.dp, layout.zero).state_bytes
    hidden, order = figures.hidden_bytes, compute_order(layout.schedule, layout.stage_rank, layout.microbatches)
    for rank, (layers, (pair, again)) in enumerate(zip(held, choice, strict=True)):
        way = {layer: WAYS.index(pair[1] if place < again else pair[0]) for place, layer in enumerate(layers)}
        own = [stage for stage, owner in enumerate(layout.stage_rank) if owner == rank]
        saved = {s: max(sum(figures.saved_bytes[way[layer], layer] for layer in split[s]) - hidden, 0) for s in own}
        pending = {s: sum(figures.pending_bytes[layer] for layer in split[s]) for s in own}
        used = {WAYS.index(pair[0]), WAYS.index(pair[1])} if again else {WAYS.index(pair[0])}
        passing = max(float(figures.passing_bytes[one][1:-1].max()) for one in used)
        if figures.layers - 1 in layers:
            passing = max(passing, float(figures.passing_bytes[0][-1]))
        now = most = 0.0
        flight = most_flight = 0
        for action in order[rank]:
            stage = action.stage
            match action:
                case Forward():
                    now, flight = now + saved[stage], flight + 1
                    most = max(most, now)
                case Backward():
                    now, flight = now - saved[stage], flight - 1
                case InputBackward():
                    most = max(most, now + pending[stage])
                    now += pending[stage] - saved[stage]
                    most_flight = max(most_flight, flight + 1)
                case _:
                    now, flight = now - pending[stage], flight - 1
            most, most_flight = max(most, now), max(most_flight, flight)
        buffers = (most_flight + 4 + 4 * layout.stages_per_rank) * hidden
        if sum(state[layer] for layer in layers) + most + passing + buffers > cap:
            return False
    return True
