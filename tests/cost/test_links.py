"""Why: whoever is charged NVLink for what leaves its node plans pipelines that are slower than they were sold as."""

from __future__ import annotations

from itertools import pairwise, product

import pytest

from evenflow.cost import LinkCost, Links, Network, rank_links
from evenflow.cost.collectives import Fabric
from evenflow.cost.links import leaves_node
from evenflow.plan import Axes
from evenflow.program import place

NEAR, FAR = LinkCost(1e-6, 100.0), LinkCost(1e-5, 10.0)
FABRIC = Fabric(NEAR, FAR, node_devices=8)


def links_of(axes: Axes, stage_rank: tuple[int, ...] | None = None) -> Links:
    """As both kinds of plans make them."""
    return rank_links(*FABRIC.pipeline(axes.pp, axes.processes // axes.pp), stage_rank or tuple(range(axes.pp)))


@pytest.mark.parametrize(
    ("axes", "far"),
    [
        (Axes(pp=8, tp=2), [3]),  # over two nodes: from rank 3 to rank 4
        (Axes(pp=4, dp=2, tp=2), [1]),
        (Axes(pp=4, cp=2, tp=2), [1]),
        (Axes(pp=2, tp=8), [0]),
        (Axes(pp=16), [7]),
        (Axes(pp=4, dp=2, tp=8), [0, 1, 2]),  # every rank has two nodes of its own
        (Axes(pp=4, tp=2), []),  # one node
        (Axes(pp=3, dp=3), [1]),  # rank 2 has the devices 6 to 8, of which the last is on another node
        (Axes(pp=6, dp=3), [1, 2, 4]),
        (Axes(pp=1, tp=8, dp=2), []),
    ],
)
def test_an_edge_takes_the_network_where_it_leaves_its_node(axes: Axes, far: list[int]) -> None:
    links = links_of(axes)
    ranks = range(axes.pp)
    for there, back in ((edge, edge[::-1]) for edge in pairwise(ranks)):
        assert links.cost(there) == links.cost(back) == (FAR if there[0] in far else NEAR), there


def test_an_edge_leaves_a_node_where_any_of_its_columns_does() -> None:
    """By the numbers that processes have, one by one."""
    for pp, tp, dp, node in product((2, 3, 5), (1, 2, 3), (1, 2, 4), (1, 2, 4, 5, 8)):
        axes = Axes(pp=pp, tp=tp, dp=dp)
        columns = [axes.pipeline(axes.coordinates(process)) for process in range(tp * dp)]
        for one, other in product(range(pp), repeat=2):
            parts = any(own[one] // node != own[other] // node for own in columns)
            assert leaves_node((one, other), tp * dp, node) == parts, (axes, node, one, other)


@pytest.mark.parametrize("kind", ["loop", "v"])
def test_stages_that_go_round_take_the_link_back_to_the_first_rank(kind: str) -> None:
    links = links_of(Axes(pp=4, tp=4), place(kind, 4, 8))
    wrap = {(3, 0), (0, 3)} if kind == "loop" else set()
    assert links == Links(NEAR, dict.fromkeys({(1, 2), (2, 1)} | wrap, FAR))


def test_both_ends_of_a_pipeline_are_as_far_apart_as_they_are() -> None:
    """Copies of tied weights are added between them, without stages in between."""
    assert links_of(Axes(pp=8, tp=2)).cost((7, 0)) == FAR
    assert links_of(Axes(pp=4, tp=2)).cost((3, 0)) == NEAR


def test_a_network_is_named_only_where_edges_differ() -> None:
    assert FABRIC.pipeline(8, 2) == (NEAR, Network(FAR, 8, 2))
    assert FABRIC.pipeline(4, 2) == (NEAR, None)
    assert FABRIC.pipeline(2, 8) == (FAR, None)
    assert FABRIC.pipeline(1, 64) == (NEAR, None)
