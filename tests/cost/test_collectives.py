"""Why: collectives cost what their counts of bytes and steps say, worked out by hand."""

import pytest

from evenflow.cost import LinkCost
from evenflow.cost.collectives import Fabric

FABRIC = Fabric(LinkCost(0.0, 100.0), LinkCost(0.0, 10.0), node_devices=8)


@pytest.mark.parametrize(
    ("kind", "ranks", "stride", "seconds"),
    [
        ("all-reduce", 1, 1, 0.0),
        ("all-reduce", 8, 1, 2 * 7 / 8 * 10),
        ("all-gather", 4, 1, 3 / 4 * 10),
        ("all-reduce", 4, 8, 2 * 3 / 4 * 100),  # one rank on each node
        ("all-reduce", 16, 1, 2 * 7 / 8 * 10 + 2 * 1 / 2 * 12.5),
        ("all-to-all", 8, 1, 7 / 8 * 10),
        ("all-to-all", 16, 1, 8 / 16 * 100),
        ("send", 2, 8, 100.0),
    ],
)
def test_bytes_over_bandwidth(kind, ranks, stride, seconds):
    assert FABRIC.seconds(kind, 1000.0, ranks, stride) == pytest.approx(seconds)


def test_a_tree_is_taken_where_latency_rules():
    slow = Fabric(LinkCost(1.0, 1e9), LinkCost(1.0, 1e9), node_devices=64)
    assert slow.seconds("all-reduce", 8.0, 64) == pytest.approx(12.0, rel=1e-3)


def test_tokens_cross_to_a_node_once():
    # of 2 nodes a token with 8 experts reaches both: half of the states cross, whatever their copies
    seconds = FABRIC.routed_s(1000.0, 8, 16)
    assert seconds == pytest.approx(1000.0 * 2 * (1 - 0.5**8) / 2 / 10.0)
    assert FABRIC.routed_s(1000.0, 8, 1) == 0.0
    assert FABRIC.routed_s(1000.0, 1, 8) == pytest.approx(1000.0 * 7 / 8 / 100.0)
    # of two processes that are 8 devices apart each is on a node of its own: one expert of two is there
    assert FABRIC.routed_s(1000.0, 1, 2, stride=8) == pytest.approx(1000.0 / 2 / 10.0)
