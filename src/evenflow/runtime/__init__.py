"""What a rank is made of beside its stage: what `execute` runs with and `measure` times must be one and the same."""

from evenflow.runtime.clock import Clock, CudaClock, HostClock, clock_of
from evenflow.runtime.device import (
    carry,
    choose_transport,
    rank_device,
    rank_devices,
    synchronize,
    to_device,
    use_device,
)
from evenflow.runtime.edge_groups import EdgeGroupTransport, edges_of
from evenflow.runtime.host_clocks import ClockOffset, clock_offset
from evenflow.runtime.in_memory import InMemoryNetwork, InMemoryTransport, MadeUpTransport
from evenflow.runtime.live_bytes import LiveBytes
from evenflow.runtime.memory import CudaMemoryMeter, MemoryMeter, memory_meter
from evenflow.runtime.mesh import Mesh, PipelineTransport, job_edges, make_mesh
from evenflow.runtime.optimizer import MOMENTS, Optimizer, OptimizerSettings
from evenflow.runtime.reductions import Reductions
from evenflow.runtime.rendezvous import open_store
from evenflow.runtime.staged import StagedTransport
from evenflow.runtime.transport import AloneTransport, Transfer, Transport, connect
from evenflow.runtime.weight_gradients import WeightGradients

__all__ = [
    "MOMENTS",
    "AloneTransport",
    "Clock",
    "ClockOffset",
    "CudaClock",
    "CudaMemoryMeter",
    "EdgeGroupTransport",
    "HostClock",
    "InMemoryNetwork",
    "InMemoryTransport",
    "LiveBytes",
    "MadeUpTransport",
    "MemoryMeter",
    "Mesh",
    "Optimizer",
    "OptimizerSettings",
    "PipelineTransport",
    "Reductions",
    "StagedTransport",
    "Transfer",
    "Transport",
    "WeightGradients",
    "carry",
    "choose_transport",
    "clock_of",
    "clock_offset",
    "connect",
    "edges_of",
    "job_edges",
    "make_mesh",
    "memory_meter",
    "open_store",
    "rank_device",
    "rank_devices",
    "synchronize",
    "to_device",
    "use_device",
]
