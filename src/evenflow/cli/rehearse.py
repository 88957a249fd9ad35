"""Run one rank of a plan on this one device, with made-up peers: its real time and memory beside the plan's."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenflow.cli.options import add_json, count, path
from evenflow.errors import InputError

if TYPE_CHECKING:
    from evenflow.models import ModelSource
    from evenflow.plan import Plan
    from evenflow.rehearse import Rehearsed
    from evenflow.spec import Model

_NOTE = "what was computed means nothing: weights, tokens and all that peers would send were made up"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("plan", type=path, metavar="PLAN", help="a plan.json, as `plan --out` writes it")
    parser.add_argument("--rank", type=int, metavar="R", help="which rank of the pp axis to run here")
    parser.add_argument(
        "--all", action="store_true", help="each rank that differs from the others, and the whole step from their times"
    )
    parser.add_argument("--steps", type=count, metavar="N", help="steps to measure, after two of warm-up (default 5)")
    parser.add_argument(
        "--model", metavar="MODEL", help="where the plan's model is now (default: where it was when it was planned)"
    )
    parser.add_argument("--out", type=path, metavar="F", help="with --all: write the times as a profile, for `plan`")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Rehearse, save and print."""
    _check(arguments)
    from evenflow.files import load_plan, save_profile

    plan = load_plan(arguments.plan)  # before torch is imported: what is wrong with it is said at once
    from evenflow.cli.console import TerminalProgress, show, show_json
    from evenflow.draw import rehearsal_table
    from evenflow.rehearse import (
        DEFAULT_STEPS,
        check_model,
        check_rank,
        distinct_ranks,
        held_otherwise,
        rehearse_rank,
        rehearsed_plan,
        rehearsed_profile,
    )
    from evenflow.search import plan_timeline
    from evenflow.spec.presets import find_preset
    from evenflow.spec.trainers import OURS

    if not arguments.all:
        check_rank(plan, arguments.rank)
    source = _find(plan, arguments)
    if arguments.out and source.is_preset and plan.speeds is not None:
        raise InputError(
            f"--out writes a profile of one kind of device, and the ranks of {arguments.plan} are on several; a plan "
            f"for {plan.device} alone would do, and without --out the times are printed"
        )
    model = check_model(plan, source)
    alike = distinct_ranks(plan) if arguments.all else {arguments.rank: (arguments.rank,)}
    steps, said = arguments.steps or DEFAULT_STEPS, TerminalProgress().said
    found = {rank: rehearse_rank(plan, source, model, rank, steps, said) for rank in alike}
    figures = [_figures(plan, model, own, alike[rank]) for rank, own in found.items()]
    step_s: float | None = None
    if arguments.all:
        every = {rank: found[first] for first, ranks in alike.items() for rank in ranks}
        step_s = plan_timeline(rehearsed_plan(plan, model, every)).step_s
        if arguments.out:
            preset = find_preset(source.name) if source.is_preset else None
            save_profile(rehearsed_profile(plan, model, every, preset), arguments.out)
    device = next(iter(found.values())).device
    note = _NOTE if device == plan.device else f"{_NOTE}; the plan's seconds are those of {plan.device}, not {device}"
    if plan.trainer != OURS:
        note = f"{note}; the plan is for {plan.trainer}, and what ran is evenflow's own trainer"
    note = "; ".join([note, *filter(None, (held_otherwise(plan, model, rank) for rank in found))])
    if not arguments.json:
        show(rehearsal_table(plan, figures, step_s, device, note))
    elif step_s is None:
        show_json({**figures[0], "device": device, "note": note, "costs": plan.costs})
    else:
        step = {"measured_s": step_s, "predicted_s": plan.predicted.step_s}
        show_json({"ranks": figures, "step": step, "device": device, "note": note, "costs": plan.costs})
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.all == (arguments.rank is not None):
        both = "--rank and --all are both there" if arguments.all else "which rank to rehearse is missing"
        raise InputError(f"{both}; --rank R for one, or --all for each distinct one, would do")
    if arguments.out and not arguments.all:
        raise InputError("--out writes a profile of all layers, which one rank does not have; with --all it would work")
    if arguments.out and (arguments.out.is_dir() or not arguments.out.parent.is_dir()):  # known before what takes long
        raise InputError(f"--out {arguments.out} cannot be written; a file's path, in a folder that is there, would do")


def _find(plan: Plan, arguments: argparse.Namespace) -> ModelSource:
    """The plan's model: where it was, or where the user says it is.

    Raises:
        InputError: it is not there.
    """
    from evenflow.models import find_model, preset_source
    from evenflow.spec.presets import is_preset

    name = arguments.model or plan.source or plan.model
    if not Path(name).exists() and is_preset(name):
        return preset_source(name)
    try:
        return find_model(name)
    except InputError as error:
        if arguments.model:
            raise
        raise InputError(
            f"{arguments.plan} is a plan for {plan.model}, which is gone: {error}; --model MODEL says where it is now"
        ) from None


def _figures(plan: Plan, model: Model, own: Rehearsed, alike: tuple[int, ...]) -> dict[str, Any]:
    from evenflow.rehearse import predicted_compute_s

    predicted = {
        "compute_s": predicted_compute_s(plan, model, own.rank),
        "peak_bytes": plan.ranks[own.rank].peak_bytes,
    }
    measured = {"compute_s": own.compute_s, "peak_bytes": own.peak_bytes}
    return {"rank": own.rank, "measured": measured, "predicted": predicted, "same_as": list(alike[1:])}
