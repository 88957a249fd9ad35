"""A step's seconds and a rank's bytes where every axis of a layout is given: closed forms, for any size of job."""

from evenflow.cost.pinned.bytes import (
    RankBytes,
    activation_bytes,
    peak_bytes,
    pending_bytes,
    rank_bytes,
    worst_rank,
)
from evenflow.cost.pinned.job import Holding, Order, Pinned, Redone
from evenflow.cost.pinned.seconds import (
    BlockSeconds,
    block_seconds,
    embedding_seconds,
    exchange_seconds,
    expert_replicas,
    fabric_of,
    layer_seconds,
    link_origin,
    one_block,
    step_seconds,
)

__all__ = [
    "BlockSeconds",
    "Holding",
    "Order",
    "Pinned",
    "RankBytes",
    "Redone",
    "activation_bytes",
    "block_seconds",
    "embedding_seconds",
    "exchange_seconds",
    "expert_replicas",
    "fabric_of",
    "layer_seconds",
    "link_origin",
    "one_block",
    "peak_bytes",
    "pending_bytes",
    "rank_bytes",
    "step_seconds",
    "worst_rank",
]
