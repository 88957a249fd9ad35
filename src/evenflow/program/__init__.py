"""One short program for each rank: actions, their text, lowering, memory accounting and legality."""

from evenflow.program.actions import (
    Action,
    Backward,
    Compute,
    Forward,
    Norm,
    ReceiveBackward,
    ReceiveForward,
    ReleaseBackward,
    ReleaseForward,
    SendBackward,
    SendForward,
    Step,
)
from evenflow.program.lower import build_program, lower
from evenflow.program.memory import Held, PeakForm, peak_bytes, peak_forms, rank_memory
from evenflow.program.program import Program, in_flight
from evenflow.program.schedules import SCHEDULES, compute_order
from evenflow.program.text import action_kind, action_text, parse_action, parse_ranks, ranks_text
from evenflow.program.verify import verify

__all__ = [
    "SCHEDULES",
    "Action",
    "Backward",
    "Compute",
    "Forward",
    "Held",
    "Norm",
    "PeakForm",
    "Program",
    "ReceiveBackward",
    "ReceiveForward",
    "ReleaseBackward",
    "ReleaseForward",
    "SendBackward",
    "SendForward",
    "Step",
    "action_kind",
    "action_text",
    "build_program",
    "compute_order",
    "in_flight",
    "lower",
    "parse_action",
    "parse_ranks",
    "peak_bytes",
    "peak_forms",
    "rank_memory",
    "ranks_text",
    "verify",
]
