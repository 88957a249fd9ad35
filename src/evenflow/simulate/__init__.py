"""Reads a program: the timeline and memory it would have."""

from evenflow.simulate.seconds import Hardware, check_hardware
from evenflow.simulate.simulator import free_transfers, simulate, step_seconds
from evenflow.simulate.what_if import replayed_step_s

__all__ = ["Hardware", "check_hardware", "free_transfers", "replayed_step_s", "simulate", "step_seconds"]
