"""What is trained, on what, and how much at a time: frozen values that everything downstream reads."""

from evenflow.spec.batch import Batch
from evenflow.spec.cluster import Cluster, Device, parse_cluster
from evenflow.spec.machine import Machine, this_machine
from evenflow.spec.model import Layer, LayerKind, Model, Operator

__all__ = [
    "Batch",
    "Cluster",
    "Device",
    "Layer",
    "LayerKind",
    "Machine",
    "Model",
    "Operator",
    "parse_cluster",
    "this_machine",
]
