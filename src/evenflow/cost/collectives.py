"""How long tensors take to be combined over a group of processes, each with a link to the next: on a ring.

A ring of n processes passes an n-th of the tensor on in each of n - 1 turns, once to add and once to spread the sums
(Thakur, Rabenseifner and Gropp 2005, doi:10.1177/1094342005051521, section 4). Adding itself is taken as free.
"""

from __future__ import annotations

from evenflow.cost.costs import LinkCost


def spread_s(link: LinkCost, processes: int, size: float) -> float:
    """Seconds of a reduce-scatter or an all-gather of `size` bytes."""
    turns = processes - 1
    return turns * link.seconds(size / processes) if turns else 0.0


def all_reduce_s(link: LinkCost, processes: int, size: float) -> float:
    """Seconds of adding `size` bytes, the sum to be everywhere."""
    return 2 * spread_s(link, processes, size)
