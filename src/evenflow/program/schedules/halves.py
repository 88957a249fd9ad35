"""Orders with the backward in halves."""

from __future__ import annotations

from evenflow.program.actions import Backward, Compute, Forward, InputBackward, Order, WeightBackward


def halves(stage: int, microbatches: int, warm_up: int, delay: int) -> tuple[Compute, ...]:
    """The order of one stage alone on its rank: some forwards, then one input half and one forward in turn.

    Args:
        stage: the stage.
        microbatches: microbatches of the step.
        warm_up: forwards before the first backward.
        delay: how many microbatches later than its input half a weight half runs.
    """
    warm_up = min(warm_up, microbatches)
    order: list[Compute] = [Forward(stage, microbatch) for microbatch in range(warm_up)]
    for microbatch in range(microbatches):
        order.append(InputBackward(stage, microbatch))
        if microbatch >= delay:
            order.append(WeightBackward(stage, microbatch - delay))
        if warm_up + microbatch < microbatches:
            order.append(Forward(stage, warm_up + microbatch))
    left = range(max(microbatches - delay, 0), microbatches)
    return (*order, *(WeightBackward(stage, microbatch) for microbatch in left))


def in_halves(order: Order) -> Order:
    """The same order with every whole backward as its two halves, one right after the other.

    Nobody computes earlier or later, but the gradient leaves a weight half earlier.
    """
    return tuple(
        tuple(
            part
            for action in actions
            for part in (
                (InputBackward(action.stage, action.microbatch), WeightBackward(action.stage, action.microbatch))
                if isinstance(action, Backward)
                else (action,)
            )
        )
        for actions in order
    )
