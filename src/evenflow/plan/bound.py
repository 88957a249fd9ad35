"""A proven lower bound of the step: no contiguous split of indivisible layers and no schedule is faster.

Of all devices let d compute at full speed at once. Let each run m microbatches, layer l take f_l + b_l
seconds for each (b_l the lesser of the whole backward and its halves), and n_l for its norm and o_l for its update
once a step. From one step's norm to the next:

* d devices share all work: the step is at least sum over l of (m (f_l + b_l) + n_l + o_l) / d;
* one device does all of layer l; meanwhile it may update the layer while the first microbatch comes
  through the layers before it: the step is at least max(o_l, sum over k < l of f_k) + m (f_l + b_l) + n_l.

Transfers, and what a stage costs beside its layers, are taken as free.
"""

from __future__ import annotations

from evenflow.cost import Costs


def step_bound(costs: Costs, at_once: int, microbatches: int) -> float:
    """Seconds that a step takes at least, where `at_once` devices compute at full speed at once."""
    shared = 0.0
    busiest = 0.0
    fastest = 1.0
    capacity = float(at_once)
    if costs.speeds is not None:  # the fastest of the ranks may be those that compute
        fastest, capacity = max(costs.speeds), sum(sorted(costs.speeds, reverse=True)[:at_once])
    before = 0.0
    for layer in costs.layers:
        backward = min(layer.backward_s, layer.input_s + layer.weight_s)
        work = microbatches * (layer.forward_s + backward) + layer.norm_s
        shared += (work + layer.optimizer_s) / capacity
        busiest = max(busiest, max(layer.optimizer_s, before) + work)
        before += layer.forward_s
    return max(shared, busiest / fastest)
