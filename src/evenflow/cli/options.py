"""Options that several subcommands share, with one meaning and one wording each."""

from __future__ import annotations

import argparse
from pathlib import Path

from evenflow.errors import InputError
from evenflow.plan import ZEROS
from evenflow.program import AUTO, SCHEDULES
from evenflow.spec import DEFAULT_DTYPE, DEFAULT_GLOBAL_BATCH_SIZE, DEFAULT_SEQ_LENGTH, DTYPES, RECOMPUTE_WISHES
from evenflow.spec.trainers import OURS, TRAINERS
from evenflow.units import parse_bytes

_MOST = 10**9  # of anything that is counted on the command line


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a Hugging Face model directory, its config.json, a hub id, or a preset (gpt3-175b, llama-3.1-405b, ...)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output and nothing else")


def add_shape(parser: argparse.ArgumentParser) -> None:
    """--micro-batch-size and --seq-length of one microbatch."""
    parser.add_argument(
        "--micro-batch-size", type=count, default=1, metavar="N", help="sequences of a microbatch (default 1)"
    )
    parser.add_argument(
        "--seq-length",
        type=count,
        default=DEFAULT_SEQ_LENGTH,
        metavar="S",
        help=f"tokens of a sequence (default {DEFAULT_SEQ_LENGTH})",
    )


def add_tp(parser: argparse.ArgumentParser) -> None:
    """--tp alone."""
    parser.add_argument(
        "--tp", type=count, default=1, metavar="N", help="processes that share every layer's tensors (default 1)"
    )


def add_dtype(parser: argparse.ArgumentParser, preset: str = "") -> None:
    """--dtype; None where it is not given. `preset` is what a preset has then, if it may be one."""
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="type of weights and activations; bf16 keeps gradients and the optimizer's state in fp32 "
        f"(default {DEFAULT_DTYPE}{_for_preset(preset)})",
    )


def _for_preset(preset: str) -> str:
    return f"; for a preset: {preset}" if preset else ""


def add_batch(parser: argparse.ArgumentParser, has_defaults: bool = True, preset: str = "") -> None:
    """--global-batch-size, --micro-batch-size and --seq-length of a step; without defaults a plan may give them."""
    otherwise = "" if has_defaults else ", or the plan's"
    parser.add_argument(
        "--global-batch-size",
        type=count,
        default=DEFAULT_GLOBAL_BATCH_SIZE if has_defaults else None,
        metavar="N",
        help=f"sequences of a step (default {DEFAULT_GLOBAL_BATCH_SIZE}{otherwise})",
    )
    parser.add_argument(
        "--micro-batch-size",
        type=count,
        metavar="N",
        help=f"sequences of a microbatch (default: as many as leave each rank four microbatches{otherwise}"
        f"{_for_preset(preset)})",
    )
    parser.add_argument(
        "--seq-length",
        type=count,
        default=DEFAULT_SEQ_LENGTH if has_defaults else None,
        metavar="S",
        help=f"tokens of a sequence (default {DEFAULT_SEQ_LENGTH}{otherwise})",
    )


def add_axes(parser: argparse.ArgumentParser, preset: str = "") -> None:
    """--pp, --tp, --dp and --zero."""
    otherwise = _for_preset(preset)
    parser.add_argument(
        "--pp", type=count, metavar="N", help=f"pipeline ranks (default: what the other axes leave{otherwise})"
    )
    parser.add_argument(
        "--tp", type=count, metavar="N", help=f"processes that share a stage's tensors (default 1{otherwise})"
    )
    parser.add_argument("--dp", type=count, metavar="N", help=f"data-parallel replicas (default 1{otherwise})")
    parser.add_argument(
        "--zero",
        type=int,
        choices=ZEROS,
        help=f"1: replicas share out the optimizer's state and its update (default 0{otherwise})",
    )


def add_trainer_axes(parser: argparse.ArgumentParser) -> None:
    """--cp, --ep and --for."""
    parser.add_argument(
        "--cp",
        type=count,
        metavar="N",
        help="processes that share every sequence (default 1; for a preset: free, --for a trainer that has it)",
    )
    parser.add_argument(
        "--ep", type=count, metavar="N", help="processes that share the experts, among dp x cp (the same)"
    )
    parser.add_argument(
        "--for",
        dest="trainer",
        metavar="TRAINER",
        help=f"who will run the plan of a preset: {', '.join(TRAINERS)} (default {OURS})",
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """--processes and --threads."""
    parser.add_argument(
        "--processes", type=count, metavar="N", help="processes of the whole job (default: the cores, 8 at most)"
    )
    parser.add_argument(
        "--threads",
        type=count,
        metavar="N",
        help="compute threads of each process (default: an equal slice of the cores)",
    )


def add_memory_limit(parser: argparse.ArgumentParser) -> None:
    """--memory-limit."""
    parser.add_argument(
        "--memory-limit", type=size, metavar="X", help="memory that a rank may use, such as 70GiB (default: a device's)"
    )


def add_schedule(parser: argparse.ArgumentParser, default: str = "default 1f1b") -> None:
    """--schedule."""
    parser.add_argument("--schedule", metavar="NAME", help=f"{', '.join(SCHEDULES)} or {AUTO} ({default})")


def add_stages_per_rank(parser: argparse.ArgumentParser, preset: str = "") -> None:
    """--stages-per-rank."""
    parser.add_argument(
        "--stages-per-rank",
        type=count,
        metavar="N",
        help="stages of each rank, for schedules that run several (default: as many as the schedule asks for"
        f"{_for_preset(preset)})",
    )


def add_recompute(parser: argparse.ArgumentParser, preset: str = "") -> None:
    """--recompute."""
    parser.add_argument(
        "--recompute",
        choices=RECOMPUTE_WISHES,
        help="what blocks run again in their backward, to keep less for it: selective (their attention), full (all "
        "of their forward), or auto (as little as fits the memory) "
        f"(default none{_for_preset(preset)})",
    )


def count(text: str) -> int:
    """A whole number from 1 to a billion."""
    try:
        value = int(text[:40])
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too small; 1 would be the least")
    if value > _MOST:
        raise argparse.ArgumentTypeError(f"{text[:40]} is too large; {_MOST} would be the most")
    return value


def size(text: str) -> int:
    """A memory size."""
    try:
        return parse_bytes(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def path(text: str) -> Path:
    """A path, with ~ expanded."""
    return Path(text).expanduser()
