"""Reads a program: the timeline and memory it would have."""

from evenflow.simulate.seconds import Hardware
from evenflow.simulate.simulator import free_transfers, simulate, step_seconds

__all__ = ["Hardware", "free_transfers", "simulate", "step_seconds"]
