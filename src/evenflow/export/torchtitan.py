"""A plan as a configuration of torchtitan: a Python module with a config function, for its `--module` and `--config`.

torchtitan 0.3 has its settings in Python (torchtitan/config/configs.py, models/*/config_registry.py). The module takes
a registered model's config and replaces what a plan decides. The split is `module_fqns_per_model_part`. 1F1B and GPipe
of torch are named; any other order goes as CSV (`pipeline_parallel_schedule_csv`), beside the name of a schedule of the
same placement, from which torchtitan takes the ranks of the stages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from evenflow.errors import ImpossibleError
from evenflow.export.constants import docstring_text, read_constants
from evenflow.export.exported import Export, Split, Target
from evenflow.export.limits import needs_placement, needs_recompute, needs_sequences
from evenflow.export.torch_script import CSV_FILE, compute_orders, needs_losses_in_order, own_class_of
from evenflow.plan import Plan
from evenflow.program import order_csv, placement_of
from evenflow.spec.presets import find_preset, is_preset

FILE = "evenflow_torchtitan.py"
_TITLE = "torchtitan"
_FUNCTION = "plan"

# Presets that torchtitan has too: its module under torchtitan.models, and the config function there.
_REGISTERED = {
    "llama-3.1-8b": ("llama3", "llama3_8b"),
    "llama-3.1-70b": ("llama3", "llama3_70b"),
    "llama-3.1-405b": ("llama3", "llama3_405b"),
    "qwen3-32b": ("qwen3", "qwen3_32b"),
    "qwen3-30b-a3b": ("qwen3", "qwen3_30b_a3b"),
    "gpt-oss-120b": ("gpt_oss", "gpt_oss_120b"),
    "deepseek-v3": ("deepseek_v3", "deepseek_v3_671b"),
}
_HUGGING_FACE = ("torchtitan.experiments.transformers_modeling_backend", "transformers_modeling_backend_full")
_RECOMPUTE = "torchtitan.distributed.activation_checkpoint"
_ROTARY = "rotary_emb"  # every part has it there


def torchtitan_export(plan: Plan) -> Export:
    """The module, and where the schedule is not torch's own, its CSV.

    Raises:
        ImpossibleError: torchtitan cannot express the plan.
    """
    needs_recompute(plan, _TITLE, ("full", "selective"))
    if plan.recomputed == "mixed":
        raise ImpossibleError(
            f"{_TITLE} recomputes all blocks alike, and this plan some of them; a plan with --recompute full, "
            "selective or none would do"
        )
    needs_placement(plan, _TITLE, ("one", "loop", "v"))
    placement, pp = placement_of(plan.stage_rank), plan.axes.pp
    if len(plan.stages) % pp or (placement == "v" and len(plan.stages) != 2 * pp):
        raise ImpossibleError(
            f"{_TITLE} needs equally many stages on each rank, two of them in v placement, and the plan has "
            f"{len(plan.stages)} on {pp}; a plan under interleaved would do"
        )
    if len(plan.stages) > pp == 1:
        raise ImpossibleError(f"{_TITLE} pipelines over 2 or more ranks; a plan of one stage on one rank would do")
    needs_sequences(plan, _TITLE, _pieces(plan))
    files = {FILE: _module(plan)}
    if pp > 1 and own_class_of(plan) is None:
        order = compute_orders(plan)
        needs_losses_in_order(order, len(plan.stages), _TITLE)
        files[CSV_FILE] = order_csv(order)
    return Export("torchtitan", files, _notes(plan))


def _pieces(plan: Plan) -> int:
    """What sequences are cut into: `Trainer.__init__`, and for its transformers backend `seq_len_divisor`."""
    axes = plan.axes
    return axes.tp * (2 * axes.cp if axes.cp > 1 or not _is_registered(plan) else 1)


def read_torchtitan(files: Mapping[str, str]) -> tuple[Split, tuple[int, ...]]:
    """The split that the module's parts say, and by torchtitan's rule for its schedule the rank of each stage."""
    found = read_constants(files[FILE])
    parts, ranks = found["PARTS"], found["PARALLELISM"]["pipeline_parallel_degree"]
    blocks = sum(name.startswith("layers.") for part in parts for name in part)
    split = tuple(tuple(sorted({_layer_of(name, blocks) for name in part if name != _ROTARY})) for part in parts)
    in_v = "ZBV" in found["PARALLELISM"]["pipeline_parallel_schedule"]
    return split, tuple(
        stage if stage < ranks else (2 * ranks - 1 - stage if in_v else stage % ranks) for stage in range(len(parts))
    )


def _layer_of(name: str, blocks: int) -> int:
    match name.split("."):
        case ["tok_embeddings"]:
            return 0
        case ["layers", number]:
            return int(number) + 1
        case _:
            return blocks + 1


def _is_registered(plan: Plan) -> bool:
    """Whether torchtitan has the plan's model: a preset's, since a directory of that name may hold anything."""
    return plan.model in _REGISTERED and is_preset(plan.source)


def _parts(plan: Plan) -> list[list[str]]:
    last = len(plan.layers) - 1
    registered = _is_registered(plan)
    parts = []
    for stage in plan.stage_layers:
        names = ["tok_embeddings"] if 0 in stage else []
        names += [f"layers.{layer - 1}" for layer in stage if 0 < layer < last]
        names += ["norm", "lm_head"] if last in stage else []
        parts.append(names if registered else [*names, _ROTARY])
    return parts


def _schedule_name(plan: Plan) -> str:
    """The schedule, or one from whose placement torchtitan takes that of a CSV."""
    own = own_class_of(plan)
    if own is not None:
        return own
    return "ZBVZeroBubble" if placement_of(plan.stage_rank) == "v" and plan.axes.pp > 1 else "PipelineScheduleMulti"


def _module(plan: Plan) -> str:
    is_pipeline, is_registered = plan.axes.pp > 1, _is_registered(plan)
    has_csv = is_pipeline and own_class_of(plan) is None
    name = " ".join(plan.model.split())
    module, function = _REGISTERED[plan.model] if is_registered else _HUGGING_FACE
    module = f"torchtitan.models.{module}" if is_registered else module
    recompute = {"none": "None", "full": "FullAC.Config()", "selective": "SelectiveAC.Config()"}[plan.recomputed]
    imports = [
        "import dataclasses",
        *(["from pathlib import Path"] if has_csv else []),
        "",
        "from torchtitan.config import ParallelismConfig",
        *([f"from {_RECOMPUTE} import {recompute.partition('.')[0]}"] if recompute != "None" else []),
        f"from {module}.config_registry import {function}",
    ]
    constants = [
        *([] if is_registered else [f"HF_MODEL = {_text(plan.source or plan.model)}  # a hub id or a directory"]),
        "# the modules of each stage",
        "PARTS = [",
        *(f"    {_text(part)}," for part in _parts(plan)),
        "]",
        f"PARALLELISM = {_dictionary(_parallelism(plan))}",
        f"TRAINING = {_dictionary(_training(plan))}",
    ]
    arguments = [
        "**PARALLELISM",
        *(["module_fqns_per_model_part=PARTS"] if is_pipeline else []),
        *([f'pipeline_parallel_schedule_csv=str(Path(__file__).with_name("{CSV_FILE}"))'] if has_csv else []),
    ]
    replaced = [
        *([] if is_registered else ["hf_model=HF_MODEL"]),
        "parallelism=parallelism",
        "training=dataclasses.replace(config.training, **TRAINING)",
        f"activation_checkpoint={recompute}",
    ]
    body = [
        f"def {_FUNCTION}():",
        '    """The model\'s config with what the plan decides."""',
        f"    config = {function}()",
        "    parallelism = ParallelismConfig(",
        *(f"        {argument}," for argument in arguments),
        "    )",
        "    return dataclasses.replace(",
        "        config,",
        *(f"        {argument}," for argument in replaced),
        "    )",
    ]
    return "\n".join([*_head(plan, name), "", *imports, "", *constants, "", "", *body]) + "\n"


def _head(plan: Plan, name: str) -> list[str]:
    processes = plan.axes.processes
    name = docstring_text(name)
    return [
        f'"""evenflow\'s plan of {name} for torchtitan 0.3, {processes} processes. Start it from this folder with',
        "",
        f"    torchrun ... -m torchtitan.train --module {FILE.removesuffix('.py')} --config {_FUNCTION}",
        '"""',
    ]


def _parallelism(plan: Plan) -> dict[str, object]:
    axes = plan.axes
    shards = axes.dp if plan.zero else 1
    return {
        "pipeline_parallel_degree": axes.pp,
        "pipeline_parallel_schedule": _schedule_name(plan),
        "pipeline_parallel_microbatch_size": plan.micro_batch_size,
        "tensor_parallel_degree": axes.tp,
        "context_parallel_degree": axes.cp,
        "expert_parallel_degree": axes.ep,
        "data_parallel_replicate_degree": axes.dp // shards,
        "data_parallel_shard_degree": shards,
        "fsdp_reshard_after_forward": "always" if plan.zero > 2 else "never",
    }


def _training(plan: Plan) -> dict[str, object]:
    """A pipeline takes a replica's whole step at once; without one torchtitan accumulates gradients."""
    held = plan.microbatches if plan.axes.pp > 1 else 1
    return {
        "local_batch_size": plan.micro_batch_size * held,
        "global_batch_size": plan.global_batch_size,
        "seq_len": plan.seq_length,
        "mixed_precision_param": "bfloat16" if plan.dtype == "bf16" or plan.trainer == "torchtitan" else "float32",
        "disable_cuda_graphs": True,  # torchtitan has them without a pipeline alone
    }


def _dictionary(values: Mapping[str, object]) -> str:
    return "{\n" + "".join(f'    "{key}": {_text(value)},\n' for key, value in values.items()) + "}"


def _text(value: object) -> str:
    return repr(value) if isinstance(value, bool | int) else json.dumps(value)


def _notes(plan: Plan) -> tuple[str, ...]:
    notes = ["the registered config's optimizer, data and checkpoints are kept"]
    if not _is_registered(plan):
        notes.append(
            "torchtitan has no config of its own for this model: it runs by its transformers backend, as HF_MODEL, "
            "which has to be a hub id or a directory"
        )
        if is_preset(plan.source) and find_preset(plan.source).experts is not None:
            notes.append(
                f"that backend's config for mixtures (transformers_modeling_backend_full_moe) has the dimensions of "
                f"qwen3-30b-a3b: {FILE} takes the one for dense models, and a model_spec with the experts of "
                f"{plan.model} is yours to add"
            )
    if plan.tied_bytes:
        notes.append(
            "embedding and head share a weight, and torchtitan ties none between ranks: with its registered models it "
            "stops, by its transformers backend each rank trains a weight of its own"
            if plan.axes.pp > 1
            else "embedding and head share a weight, and torchtitan's transformers backend trains one for each"
        )
    if plan.zero:
        notes.append(
            f"torchtitan has no ZeRO {plan.zero} by itself: FSDP shares out weights, gradients and optimizer "
            "state, and "
            + ("frees weights after each use" if plan.zero > 2 else "keeps gathered weights until the step's end")
        )
    if "selective" in plan.recompute and plan.trainer != "torchtitan":
        notes.append("torchtitan's selective recomputation goes by operators: it keeps and runs again other things")
    if plan.axes.tp > 1 and plan.trainer != "torchtitan":
        notes.append("torchtitan's tp has sequence parallelism, which the plan does not count: it keeps less")
    return tuple(notes)


TORCHTITAN = Target("torchtitan", torchtitan_export, read_torchtitan)
