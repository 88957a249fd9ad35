"""Reads a program and runs one rank of it."""

from evenflow.execute.check import CheckResult, check_split
from evenflow.execute.executor import Executor, StepResult
from evenflow.execute.memory import MemoryMeter
from evenflow.execute.optimizer import Optimizer, OptimizerSettings
from evenflow.execute.transport import AloneTransport, Transport, connect

__all__ = [
    "AloneTransport",
    "CheckResult",
    "Executor",
    "MemoryMeter",
    "Optimizer",
    "OptimizerSettings",
    "StepResult",
    "Transport",
    "check_split",
    "connect",
]
