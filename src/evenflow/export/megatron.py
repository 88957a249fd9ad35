"""A plan as arguments of Megatron-LM: axes, batch, recomputation, and the split as `--pipeline-model-parallel-layout`.

The layout is a word a layer (E embedding, t block, L head and loss), with `|` between stages, `t*3` for ttt and
`(t*2|)*5` for five such stages: the grammar of `PipelineParallelLayerLayout` in megatron-core's
transformer/pipeline_parallel_layer_layout.py. Stage s is on rank s mod pp, as ours are in loop placement.
Arguments are those of megatron/training/arguments.py.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import groupby

from evenflow.errors import ImpossibleError
from evenflow.export.exported import Export, Split, Target
from evenflow.export.limits import (
    needs_placement,
    needs_recompute,
    needs_schedule,
    needs_sequences,
    recomputed_first,
)
from evenflow.plan import Plan
from evenflow.spec.trainers import TRAINERS

FILE = "megatron_args.sh"
_TITLE = "megatron"
_ARRAY = "EVENFLOW_ARGS"
_LAYOUT = "--pipeline-model-parallel-layout"


def megatron_export(plan: Plan) -> Export:
    """The plan's arguments as a bash array.

    Raises:
        ImpossibleError: Megatron cannot express the plan.
    """
    needs_schedule(plan, _TITLE, ("1f1b", "interleaved"))
    needs_placement(plan, _TITLE, ("one", "loop"))
    needs_recompute(plan, _TITLE, ("full", "selective"))
    _needs_whole_groups(plan)
    needs_sequences(plan, _TITLE, _pieces(plan))
    arguments = _arguments(plan)
    rows = "".join(f"    {' '.join(shlex.quote(word) for word in row)}\n" for row in arguments)
    text = (
        "# shellcheck shell=bash\n"
        f"# evenflow's plan of {_plain(plan.model)} for Megatron-LM, {plan.axes.processes} processes. Start it with\n"
        f'#   source {FILE} && torchrun ... pretrain_gpt.py "${{{_ARRAY}[@]}}" ...\n'
        "# and with the model's own arguments, data and optimizer, which a plan does not decide.\n"
        "# shellcheck disable=SC2034  # used by whoever sources this file\n"
        f"{_ARRAY}=(\n{rows})\n"
    )
    return Export("megatron", {FILE: text}, _notes(plan))


def layout_text(split: Sequence[Sequence[int]], layers: int) -> str:
    """The layout of a split; its first layer is the embedding, its last the head."""
    stages = [_stage_text(stage, layers) for stage in split]
    runs = [(text, len(list(same))) for text, same in groupby(stages[:-1])]
    return "".join(f"({text}|)*{count}" if count > 1 else f"{text}|" for text, count in runs) + stages[-1]


def read_layout(text: str) -> Split:
    """The layers of each stage that a layout says.

    Raises:
        ValueError: it is not a layout that begins with E, ends with L and has t between.
    """
    text = re.sub(r"\(([^)]+)\)\*(\d+)", lambda found: found[1] * int(found[2]), text)
    text = re.sub(r"(.)\*(\d+)", lambda found: found[1] * int(found[2]), text)
    words = text.replace("|", "")
    if not re.fullmatch("Et*L", words):
        raise ValueError(f"{words!r} is not E, blocks and L")
    split, next_layer = [], 0
    for stage in text.split("|"):
        split.append(tuple(range(next_layer, next_layer + len(stage))))
        next_layer += len(stage)
    return tuple(split)


def read_megatron(files: Mapping[str, str]) -> tuple[Split, tuple[int, ...]]:
    """The split that the array says, and the rank of each stage."""
    rows = files[FILE].partition(f"{_ARRAY}=(\n")[2].partition("\n)")[0]
    words = shlex.split(rows)
    split = read_layout(words[words.index(_LAYOUT) + 1])
    ranks = int(words[words.index("--pipeline-model-parallel-size") + 1])
    return split, tuple(stage % ranks for stage in range(len(split)))


def _stage_text(stage: Sequence[int], layers: int) -> str:
    blocks = sum(0 < layer < layers - 1 for layer in stage)
    middle = f"t*{blocks}" if blocks > 1 else "t" * blocks
    return f"{'E' if 0 in stage else ''}{middle}{'L' if layers - 1 in stage else ''}"


def _arguments(plan: Plan) -> list[tuple[str, ...]]:
    axes = plan.axes
    rows: list[tuple[str, ...]] = [
        ("--tensor-model-parallel-size", str(axes.tp)),
        ("--pipeline-model-parallel-size", str(axes.pp)),
        (_LAYOUT, layout_text(plan.stage_layers, len(plan.layers))),
        ("--num-layers", str(len(plan.layers) - 2)),
        ("--micro-batch-size", str(plan.micro_batch_size)),
        ("--global-batch-size", str(plan.global_batch_size)),
        ("--seq-length", str(plan.seq_length)),
    ]
    if axes.cp > 1:
        rows.append(("--context-parallel-size", str(axes.cp)))
    if axes.ep > 1:
        rows.append(("--expert-model-parallel-size", str(axes.ep)))
    if not plan.tied_bytes:
        rows.append(("--untie-embeddings-and-output-weights",))
    if plan.zero:
        rows.append(("--use-distributed-optimizer",))
    return rows + _trainer_arguments(plan) + _recompute_arguments(plan)


def _trainer_arguments(plan: Plan) -> list[tuple[str, ...]]:
    """What a plan that was made for Megatron counts on (`spec.trainers`)."""
    rows: list[tuple[str, ...]] = [("--bf16",)] if plan.dtype == "bf16" or plan.trainer == "megatron" else []
    if plan.trainer != "megatron":
        return rows
    own, axes = TRAINERS[plan.trainer], plan.axes
    if axes.tp > 1 and own.is_sequence_parallel:
        rows.append(("--sequence-parallel",))
    if axes.tp > 1 and own.is_tp_overlapped:
        rows.append(("--tp-comm-overlap",))
    if axes.copies > 1 and own.is_overlapped:
        rows.append(("--overlap-grad-reduce",))
    return rows


def _recompute_arguments(plan: Plan) -> list[tuple[str, ...]]:
    blocks = set(plan.recompute[1:-1])
    if blocks <= {"none"}:
        return []
    if blocks == {"selective"}:
        return [("--recompute-granularity", "selective"), ("--recompute-modules", "core_attn")]
    if blocks == {"full"}:
        return [
            ("--recompute-granularity", "full"),
            ("--recompute-method", "uniform"),
            ("--recompute-num-layers", "1"),
        ]
    count = recomputed_first(plan) if "selective" not in blocks else None
    if count is None:
        raise ImpossibleError(
            "megatron recomputes the same number of blocks from the beginning of each stage, and this plan does not; "
            "a plan with --recompute full, selective or none would do"
        )
    return [
        ("--recompute-granularity", "full"),
        ("--recompute-method", "block"),
        ("--recompute-num-layers", str(count)),
    ]


def _needs_whole_groups(plan: Plan) -> None:
    """Interleaved, Megatron takes microbatches in groups of pp (`forward_backward_pipelining_with_interleaving`)."""
    pp = plan.axes.pp
    if len(plan.stages) > pp == 1:
        raise ImpossibleError(
            f"megatron interleaves over 2 or more ranks, and the plan has {len(plan.stages)} stages on one; "
            "a plan under 1f1b would do"
        )
    if len(plan.stages) > pp and plan.microbatches % pp:
        more = plan.microbatches + pp - plan.microbatches % pp
        raise ImpossibleError(
            f"megatron interleaves microbatches in groups of {pp} (pp), and the plan has {plan.microbatches}; "
            f"{more} would do, which is a global batch of {more * plan.micro_batch_size * plan.axes.dp}"
        )


def _pieces(plan: Plan) -> int:
    """What sequences are cut into: over tp where it is sequence parallel, and over cp in pairs.

    `padding_factor` in megatron/core/models/multimodal/context_parallel.py.
    """
    cut = ("--sequence-parallel",) in _trainer_arguments(plan)
    return (plan.axes.tp if cut else 1) * (2 * plan.axes.cp if plan.axes.cp > 1 else 1)


def _notes(plan: Plan) -> tuple[str, ...]:
    notes = ["the model's own arguments (widths, heads, vocabulary), data and optimizer are yours to add"]
    if "selective" in plan.recompute:
        notes.append(
            "megatron's selective recomputation runs the core of attention again, not its projections: it keeps more "
            "than the plan counts, and runs less again"
        )
    if plan.axes.tp > 1 and plan.trainer != "megatron":
        notes.append(
            "the plan counts tp without sequence parallelism; --sequence-parallel is yours to add, and keeps less"
        )
    return tuple(notes)


def _plain(text: str) -> str:
    """A name that stays within its comment."""
    return " ".join(text.split())


MEGATRON = Target("Megatron-LM", megatron_export, read_megatron)
