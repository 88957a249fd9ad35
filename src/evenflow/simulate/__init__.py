"""Reads a program: the timeline and memory it would have."""

from evenflow.simulate.simulator import free_transfers, simulate

__all__ = ["free_transfers", "simulate"]
