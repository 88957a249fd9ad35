"""What the forked ranks of the faults test run: one step, in which one of them fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from evenflow.launch import Channel
from evenflow.program import build_program
from evenflow.runtime import connect
from tests.execute.alone import make_executor
from tests.execute.test_faults import fail_at, tokens


def run(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Fail in the forward of microbatch 2 on the payload's rank."""
    torch.set_num_threads(1)
    executor = make_executor(build_program("1f1b", 2, 4), rank, connect(rank, 2, Path(payload["rendezvous"]), 60))
    if rank == payload["rank"]:
        fail_at(executor, rank, 2)
    channel.doing("in step 1")
    executor.run_step(tokens, 1e-3)
