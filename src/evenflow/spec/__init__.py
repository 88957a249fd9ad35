"""What is trained, on what, and how much at a time: frozen values that everything downstream reads."""

from evenflow.spec.batch import Batch
from evenflow.spec.cluster import Cluster, Device, parse_cluster
from evenflow.spec.machine import Machine, this_machine
from evenflow.spec.model import (
    RECOMPUTES,
    Activations,
    Combined,
    Layer,
    LayerKind,
    Model,
    Operator,
    Recompute,
    check_recompute,
)

__all__ = [
    "RECOMPUTES",
    "Activations",
    "Batch",
    "Cluster",
    "Combined",
    "Device",
    "Layer",
    "LayerKind",
    "Machine",
    "Model",
    "Operator",
    "Recompute",
    "check_recompute",
    "parse_cluster",
    "this_machine",
]
