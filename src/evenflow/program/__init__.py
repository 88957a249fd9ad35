"""One short program for each rank: actions, their text, schedules, lowering, memory accounting and legality."""

from evenflow.program.actions import (
    Action,
    Backward,
    Compute,
    Forward,
    InputBackward,
    MicrobatchAction,
    Norm,
    Order,
    ReceiveBackward,
    ReceiveForward,
    ReduceGrad,
    ReduceTied,
    Reduction,
    ReleaseBackward,
    ReleaseForward,
    SendBackward,
    SendForward,
    Step,
    WeightBackward,
)
from evenflow.program.buffers import Received, receive_buffers
from evenflow.program.build import build_program, evaluation_program
from evenflow.program.csv import order_csv, parse_order_csv
from evenflow.program.graph import CostIndex, Graph
from evenflow.program.lower import lower
from evenflow.program.memory import Held, PeakForm, peak_bytes, peak_forms, rank_memory
from evenflow.program.placement import Placement, place, placement_of, stages_of
from evenflow.program.planned import linked_work, plan_caps, plan_program, verify_plan
from evenflow.program.program import Program, in_flight
from evenflow.program.schedules import (
    AUTO,
    SCHEDULES,
    Schedule,
    compute_order,
    default_stage_rank,
    find_schedule,
    misfit,
)
from evenflow.program.table import Table
from evenflow.program.text import (
    action_kind,
    action_text,
    order_text,
    parse_action,
    parse_order,
    parse_ranks,
    ranks_text,
)
from evenflow.program.verify import verify
from evenflow.program.work import Work, check_size, even_work, make_work

__all__ = [
    "AUTO",
    "SCHEDULES",
    "Action",
    "Backward",
    "Compute",
    "CostIndex",
    "Forward",
    "Graph",
    "Held",
    "InputBackward",
    "MicrobatchAction",
    "Norm",
    "Order",
    "PeakForm",
    "Placement",
    "Program",
    "ReceiveBackward",
    "ReceiveForward",
    "Received",
    "ReduceGrad",
    "ReduceTied",
    "Reduction",
    "ReleaseBackward",
    "ReleaseForward",
    "Schedule",
    "SendBackward",
    "SendForward",
    "Step",
    "Table",
    "WeightBackward",
    "Work",
    "action_kind",
    "action_text",
    "build_program",
    "check_size",
    "compute_order",
    "default_stage_rank",
    "evaluation_program",
    "even_work",
    "find_schedule",
    "in_flight",
    "linked_work",
    "lower",
    "make_work",
    "misfit",
    "order_csv",
    "order_text",
    "parse_action",
    "parse_order",
    "parse_order_csv",
    "parse_ranks",
    "peak_bytes",
    "peak_forms",
    "place",
    "placement_of",
    "plan_caps",
    "plan_program",
    "rank_memory",
    "ranks_text",
    "receive_buffers",
    "stages_of",
    "verify",
    "verify_plan",
]
