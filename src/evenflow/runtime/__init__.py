"""What a rank is made of beside its stage: what `execute` runs with and `measure` times must be one and the same."""

from evenflow.runtime.clock import Clock, CudaClock, HostClock, ProcessorClock, clock_of
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
from evenflow.runtime.in_memory import InMemoryNetwork, InMemoryTransport
from evenflow.runtime.live_bytes import LiveBytes
from evenflow.runtime.made_up import MadeUpTensorGroup, MadeUpTransport, made_up_mesh
from evenflow.runtime.memory import CudaMemoryMeter, MemoryMeter, memory_meter
from evenflow.runtime.mesh import Mesh, PipelineTransport, job_edges, make_mesh
from evenflow.runtime.optimizer import MOMENTS, WEIGHT, Optimizer, OptimizerSettings, global_norm
from evenflow.runtime.out_of_memory import saying_what_lacks
from evenflow.runtime.parts import differentiable, local, plain_part
from evenflow.runtime.precision import TORCH_DTYPES, is_rounded
from evenflow.runtime.reductions import Reductions
from evenflow.runtime.rendezvous import open_store
from evenflow.runtime.row_gradients import add_row_gradients
from evenflow.runtime.staged import StagedTransport
from evenflow.runtime.tensor_group import (
    ImaginedTensorGroup,
    MeetingInTurns,
    ProcessTensorGroup,
    TensorGroup,
    ThreadMeeting,
    ThreadTensorGroup,
)
from evenflow.runtime.timeouts import set_gloo_timeouts
from evenflow.runtime.transport import AloneTransport, Transfer, Transport, connect
from evenflow.runtime.weight_gradients import WeightGradients

__all__ = [
    "MOMENTS",
    "TORCH_DTYPES",
    "WEIGHT",
    "AloneTransport",
    "Clock",
    "ClockOffset",
    "CudaClock",
    "CudaMemoryMeter",
    "EdgeGroupTransport",
    "HostClock",
    "ImaginedTensorGroup",
    "InMemoryNetwork",
    "InMemoryTransport",
    "LiveBytes",
    "MadeUpTensorGroup",
    "MadeUpTransport",
    "MeetingInTurns",
    "MemoryMeter",
    "Mesh",
    "Optimizer",
    "OptimizerSettings",
    "PipelineTransport",
    "ProcessTensorGroup",
    "ProcessorClock",
    "Reductions",
    "StagedTransport",
    "TensorGroup",
    "ThreadMeeting",
    "ThreadTensorGroup",
    "Transfer",
    "Transport",
    "WeightGradients",
    "add_row_gradients",
    "carry",
    "choose_transport",
    "clock_of",
    "clock_offset",
    "connect",
    "differentiable",
    "edges_of",
    "global_norm",
    "is_rounded",
    "job_edges",
    "local",
    "made_up_mesh",
    "make_mesh",
    "memory_meter",
    "open_store",
    "plain_part",
    "rank_device",
    "rank_devices",
    "saying_what_lacks",
    "set_gloo_timeouts",
    "synchronize",
    "to_device",
    "use_device",
]
