"""What a rank is made of beside its stage: what `execute` runs with and `measure` times must be one and the same."""

from evenflow.runtime.clock import Clock, CudaClock, HostClock, clock_of
from evenflow.runtime.in_memory import InMemoryNetwork, InMemoryTransport, MadeUpTransport
from evenflow.runtime.memory import MemoryMeter
from evenflow.runtime.optimizer import Optimizer, OptimizerSettings
from evenflow.runtime.transport import AloneTransport, Transfer, Transport, connect
from evenflow.runtime.weight_gradients import WeightGradients

__all__ = [
    "AloneTransport",
    "Clock",
    "CudaClock",
    "HostClock",
    "InMemoryNetwork",
    "InMemoryTransport",
    "MadeUpTransport",
    "MemoryMeter",
    "Optimizer",
    "OptimizerSettings",
    "Transfer",
    "Transport",
    "WeightGradients",
    "clock_of",
    "connect",
]
