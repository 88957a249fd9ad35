"""What each forked rank of the peers benchmark does: in every round a turn of every contestant, in turning order."""

from __future__ import annotations

import cProfile
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import CONTESTANTS, OPTIONAL, Contestant
from benchmarks.peer_job import Work, draw_ids
from evenflow.errors import first_line
from evenflow.files import load_plan
from evenflow.launch import Channel
from evenflow.models import find_model
from evenflow.program import verify
from evenflow.runtime import connect
from evenflow.search import plan_program

_WARM_UP_ROUNDS = 2
_TIMEOUT_S = 300.0


def work_of(rank: int, payload: dict[str, Any]) -> Work:
    """Meet the other ranks and take up this rank's share of the job."""
    # Other trainers print while they are built; standard output is for the parent's result alone.
    sys.stdout = sys.stderr
    plan = load_plan(Path(payload["plan"]))
    torch.set_num_threads(plan.threads)
    program = plan_program(plan)
    verify(program)
    config = find_model(payload["model"]).config
    return Work(
        rank=rank,
        plan=plan,
        program=program,
        equal_split=payload["equal_split"],
        config=config,
        ids=draw_ids(config, plan.micro_batch_size * plan.microbatches, plan.seq_length),
        transport=connect(rank, len(plan.ranks), Path(payload["rendezvous"]), _TIMEOUT_S),
    )


def run(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Time `payload["rounds"]` rounds and send each contestant's seconds a step and the loss of every step."""
    work = work_of(rank, payload)
    contestants, left_out = _build(work, channel, payload["contestants"])
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, list[float | None]] = {name: [] for name in names}
    profiles = {name: cProfile.Profile() for name in names} if payload["profile"] else {}
    for round_number in range(payload["rounds"] + _WARM_UP_ROUNDS):
        turn = round_number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            channel.doing(f"in round {round_number}, {name}")
            warm = round_number >= _WARM_UP_ROUNDS
            profile = profiles.get(name) if warm else None
            used = _cpu_s()
            taken = _turn(work, contestants[name], payload["steps"], losses[name], profile)
            if warm:
                seconds[name].append(taken)
                cpu[name].append((_cpu_s() - used) / payload["steps"])
    for name, profile in profiles.items():
        profile.dump_stats(str(Path(payload["profile"]) / f"{name}-rank{rank}.pstats"))
    splits = {name: split for name in names if (split := getattr(contestants[name], "split", None)) is not None}
    result = {"seconds": seconds, "cpu": cpu, "losses": losses, "splits": splits, "left_out": left_out}
    channel.send({"kind": "result", **result})
    work.transport.close()


def _cpu_s() -> float:
    """Seconds of processor time that this process has used, all threads, in the kernel or not."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _build(work: Work, channel: Channel, names: list[str]) -> tuple[dict[str, Contestant], dict[str, str]]:
    """The contestants, and why some are left out: an optional trainer may be installed and still not work here."""
    contestants: dict[str, Contestant] = {}
    left_out: dict[str, str] = {}
    for name in names:
        channel.doing(f"building {name}")
        failed = torch.zeros(1)
        try:
            contestants[name] = CONTESTANTS[name](work)
        except Exception as error:  # whatever it may lack: a compiler, say
            if name not in OPTIONAL:
                raise
            failed += 1
            left_out[name] = f"{type(error).__name__}: {first_line(error)}"
        work.transport.sum(failed)
        if failed and contestants.pop(name, None) is not None:
            left_out[name] = "it failed on another rank"
    return contestants, left_out


def _turn(
    work: Work, contestant: Contestant, steps: int, losses: list[float | None], profile: cProfile.Profile | None
) -> float:
    """Seconds a step, from all ranks' being ready to all ranks' being done."""
    together = torch.zeros(1)
    work.transport.sum(together)
    if profile is not None:
        profile.enable()
    start = time.perf_counter()
    for _ in range(steps):
        losses.append(contestant.run_step())
    if profile is not None:
        profile.disable()
    work.transport.sum(together)
    return (time.perf_counter() - start) / steps
