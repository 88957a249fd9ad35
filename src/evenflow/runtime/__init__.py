"""What a rank is made of beside its stage: what `execute` runs with and `measure` times must be one and the same."""

from evenflow.runtime.in_memory import InMemoryNetwork, InMemoryTransport, MadeUpTransport
from evenflow.runtime.memory import MemoryMeter
from evenflow.runtime.optimizer import Optimizer, OptimizerSettings
from evenflow.runtime.transport import AloneTransport, Transfer, Transport, connect
from evenflow.runtime.weight_gradients import WeightGradients

__all__ = [
    "AloneTransport",
    "InMemoryNetwork",
    "InMemoryTransport",
    "MadeUpTransport",
    "MemoryMeter",
    "Optimizer",
    "OptimizerSettings",
    "Transfer",
    "Transport",
    "WeightGradients",
    "connect",
]
