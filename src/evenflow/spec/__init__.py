"""What is trained, on what, and how much at a time: frozen values that everything downstream reads."""

from evenflow.spec.batch import DEFAULT_GLOBAL_BATCH_SIZE, DEFAULT_SEQ_LENGTH, Batch
from evenflow.spec.cluster import Cluster, Device, parse_cluster
from evenflow.spec.dtype import DEFAULT_DTYPE, DTYPE_BYTES, DTYPES, GRADIENT_BYTES, Dtype, check_dtype
from evenflow.spec.machine import Machine, this_machine
from evenflow.spec.model import (
    RECOMPUTE_WISHES,
    RECOMPUTES,
    Activations,
    Again,
    Combined,
    Exchanged,
    Layer,
    LayerKind,
    Model,
    Operator,
    Recompute,
    Recomputes,
    RecomputeWish,
    check_recompute,
    gradient_bytes,
    recompute_of,
)
from evenflow.spec.operators import Attention, LayerOperator, Matmul, Traffic, Work

__all__ = [
    "DEFAULT_DTYPE",
    "DEFAULT_GLOBAL_BATCH_SIZE",
    "DEFAULT_SEQ_LENGTH",
    "DTYPES",
    "DTYPE_BYTES",
    "GRADIENT_BYTES",
    "RECOMPUTES",
    "RECOMPUTE_WISHES",
    "Activations",
    "Again",
    "Attention",
    "Batch",
    "Cluster",
    "Combined",
    "Device",
    "Dtype",
    "Exchanged",
    "Layer",
    "LayerKind",
    "LayerOperator",
    "Machine",
    "Matmul",
    "Model",
    "Operator",
    "Recompute",
    "RecomputeWish",
    "Recomputes",
    "Traffic",
    "Work",
    "check_dtype",
    "check_recompute",
    "gradient_bytes",
    "parse_cluster",
    "recompute_of",
    "this_machine",
]
