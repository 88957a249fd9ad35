"""A plan as a script on torch.distributed.pipelining that runs without evenflow: its split, its schedule, its axes.

1F1B and GPipe with one stage a rank are torch's own classes; every other order goes to `_PipelineScheduleRuntime` as
CSV, action by action.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from importlib.resources import files

from evenflow.errors import ImpossibleError
from evenflow.export.constants import docstring_text, read_constants
from evenflow.export.exported import Export, Split, Target
from evenflow.export.limits import needs_axes, needs_recompute
from evenflow.plan import Plan
from evenflow.program import Compute, Forward, InputBackward, Order, order_csv, plan_program
from evenflow.spec.presets import is_preset

FILE = "train_torch.py"
CSV_FILE = "schedule.csv"
_TITLE = "torch.distributed.pipelining"
_WIDTH = 118  # of a line
_OWN_CLASSES = {"1f1b": "1F1B", "gpipe": "GPipe"}


def torch_export(plan: Plan) -> Export:
    """The script, and where it needs one, the CSV.

    Raises:
        ImpossibleError: the script cannot express the plan.
    """
    needs_axes(plan, _TITLE, ("pp", "dp"))
    needs_recompute(plan, _TITLE, ("full",))
    if is_preset(plan.source):
        raise ImpossibleError(
            f"this script for {_TITLE} finds layers by their paths in a model, and {plan.source} is known by its "
            "dimensions alone; a plan of the model's directory, where its config.json is enough, would do"
        )
    order = compute_orders(plan)
    needs_losses_in_order(order, len(plan.stages), _TITLE)
    if len(plan.tied) and plan.stage_rank[0] == plan.stage_rank[-1]:
        raise ImpossibleError(
            f"this script for {_TITLE} ties a weight between ranks, and the plan has embedding and head as two stages "
            "of one rank; a plan under 1f1b would do"
        )
    own_class = own_class_of(plan)
    template = files("evenflow.export").joinpath("assets", "torch_train.py.txt").read_text("utf-8")
    text = template.replace("@PLAN@", _constants(plan, own_class or CSV_FILE)).replace("@FILE@", FILE)
    name = docstring_text(plan.model)
    text = text.replace("@MODEL@", name).replace("@PROCESSES@", str(plan.axes.processes))
    written = {FILE: text} if own_class else {FILE: text, CSV_FILE: order_csv(order)}
    return Export("torch", written, _notes(plan))


def read_torch(written: Mapping[str, str]) -> tuple[Split, tuple[int, ...]]:
    """The split that the script's constants say, and the rank of each stage."""
    found = read_constants(written[FILE])
    return tuple(map(tuple, found["STAGES"])), tuple(found["STAGE_RANK"])


def compute_orders(plan: Plan) -> Order:
    """Each rank's compute actions, in order."""
    ranks = plan_program(plan).ranks
    return tuple(tuple(action for action in actions if isinstance(action, Compute)) for actions in ranks)


def own_class_of(plan: Plan) -> str | None:
    """The schedule class of torch that makes the plan's own order; None where it has to be told it."""
    return _OWN_CLASSES.get(plan.schedule) if len(plan.stages) == plan.axes.pp else None


def needs_losses_in_order(order: Order, stages: int, title: str) -> None:
    """Refuse an order in which the last stage's forwards overtake each other.

    torch (2.13) counts losses in the order in which they come, and takes the n-th one for microbatch n's.

    Raises:
        ImpossibleError: they do.
    """
    forwards = [
        own.microbatch for actions in order for own in actions if isinstance(own, Forward) and own.stage == stages - 1
    ]
    if forwards != sorted(forwards):
        raise ImpossibleError(
            f"{title} takes the losses of microbatches in their order, and the plan's last stage does not; "
            "a plan under another schedule than its own would do"
        )


def _constants(plan: Plan, schedule: str) -> str:
    layers = plan.layer_names
    values = {
        "PP, DP": None,
        "LAYERS": list(layers),
        "STAGES": [list(stage) for stage in plan.stage_layers],
        "STAGE_RANK": list(plan.stage_rank),
        "SCHEDULE": schedule,
        "MICROBATCHES": plan.microbatches,
        "MICRO_BATCH_SIZE": plan.micro_batch_size,
        "SEQ_LENGTH": plan.seq_length,
        "RECOMPUTED": [index for index, kind in enumerate(plan.recompute) if kind == "full"],
        "ZERO": plan.zero,
        "TIED": {f"{layers[-1]}.weight": f"{layers[0]}.weight"} if plan.tied_bytes else {},
    }
    comments = {
        "LAYERS": "embedding, blocks, head: by their paths in the model; the final norm goes with the head",
        "STAGES": "the layers of each stage",
        "STAGE_RANK": "the pipeline rank of each stage",
        "SCHEDULE": "a class of torch, or each rank's actions as CSV beside this file",
        "MICROBATCHES": "of a step, for each replica",
        "RECOMPUTED": "layers that run their forward again in the backward",
        "ZERO": "1: replicas share out the optimizer's state",
        "TIED": "a weight that is another one",
    }
    lines = []
    for name, value in values.items():
        if name in comments:
            lines.append(f"# {comments[name]}")
        text = f"{plan.axes.pp}, {plan.axes.dp}" if value is None else _literal(name, value)
        lines.append(f"{name} = {text}")
    return "\n".join(lines)


def _literal(name: str, value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    text = repr(value).replace("'", '"')
    if len(name) + 3 + len(text) <= _WIDTH:
        return text
    inside = textwrap.fill(text[1:-1], _WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    return f"{text[0]}\n{textwrap.indent(inside, '    ')}\n{text[-1]}  # fmt: skip"


def _notes(plan: Plan) -> tuple[str, ...]:
    notes = [
        f"{FILE} trains in fp32 with AdamW at a constant learning rate, on token ids in their order; what differs is "
        "yours to change"
    ]
    if plan.dtype != "fp32":
        notes.append(f"the plan is for {plan.dtype}, and {FILE} trains in fp32: it takes more memory than planned")
    if plan.zero:
        notes.append("ZeRO 1 is torch's ZeroRedundancyOptimizer, which shares out whole parameters")
    if "full" in plan.recompute and _has_halves(plan):
        notes.append("torch runs a recomputed block again for each group of its parameters in W: slower than planned")
    return tuple(notes)


def _has_halves(plan: Plan) -> bool:
    return any(isinstance(action, InputBackward) for actions in compute_orders(plan) for action in actions)


TORCH = Target(_TITLE, torch_export, read_torch)
