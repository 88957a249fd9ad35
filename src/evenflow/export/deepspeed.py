"""A plan for DeepSpeed: a PipelineModule with the plan's parts, and the configuration of `deepspeed.initialize`.

`PipelineModule` (deepspeed/runtime/pipe/module.py) splits by counts, parameters or types, and takes no parts, so the
export is a subclass that sets them. Its engine runs 1F1B, one stage a rank, and ZeRO up to 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import accumulate, pairwise

from evenflow.errors import ImpossibleError
from evenflow.export.constants import docstring_text, read_constants
from evenflow.export.exported import Export, Split, Target
from evenflow.export.limits import needs_axes, needs_placement, needs_recompute, needs_schedule
from evenflow.plan import Plan

FILE = "evenflow_deepspeed.py"
CONFIG_FILE = "ds_config.json"
_TITLE = "deepspeed"

_MODULE = '''"""evenflow's plan of @MODEL@ for DeepSpeed, @PROCESSES@ processes.

    from evenflow_deepspeed import PlannedPipeline

    net = PlannedPipeline(layers, loss_fn=loss)
    engine, *_ = deepspeed.initialize(model=net, model_parameters=net.parameters(), config="ds_config.json")
    loss = engine.train_batch(iterator)

`layers` are @COUNT@: the embedding, the blocks, and one that does final norm and head.
"""

from deepspeed.pipe import PipelineModule
from deepspeed.runtime.pipe.topology import ProcessTopology

# stage s has the layers PARTS[s] to PARTS[s + 1] - 1
PARTS = @PARTS@
PP, DP, TP = @AXES@
RECOMPUTED = @RECOMPUTED@  # layers that run their forward again in the backward


class PlannedPipeline(PipelineModule):
    """DeepSpeed's PipelineModule with the plan's parts; what it takes beside is passed on."""

    def __init__(self, layers, **settings):
        layers = list(layers)
        if len(layers) != PARTS[-1]:
            raise ValueError(f"there are {len(layers)} layers; the plan is for {PARTS[-1]}: embedding, blocks, head")
        if RECOMPUTED:
            settings = {"activation_checkpoint_interval": 1, **settings}
        topology = ProcessTopology(axes=["pipe", "data", "model"], dims=[PP, DP, TP])
        super().__init__(layers, topology=topology, **settings)

    def _partition_layers(self, method="planned"):
        self.parts = list(PARTS)
        stage = self._topo.get_coord(self.global_rank).pipe
        self._set_bounds(start=PARTS[stage], stop=PARTS[stage + 1])

    def _precompute_checkpointable_values(self):
        own = range(self._local_start, self._local_stop)
        self.is_checkpointable_results = [layer in RECOMPUTED for layer in own]
        self.is_checkpointable_results_interval = self.activation_checkpoint_interval
'''


def deepspeed_export(plan: Plan) -> Export:
    """The module and the configuration.

    Raises:
        ImpossibleError: DeepSpeed cannot express the plan.
    """
    needs_schedule(plan, _TITLE, ("1f1b",))
    needs_placement(plan, _TITLE, ("one",))
    needs_axes(plan, _TITLE, ("pp", "dp", "tp"))
    needs_recompute(plan, _TITLE, ("full",))
    if plan.zero > 1:
        raise ImpossibleError(f"{_TITLE}'s pipelines go with ZeRO 0 and 1, and the plan has {plan.zero}; 1 would do")
    parts = [0, *accumulate(len(stage) for stage in plan.stage_layers)]
    text = (
        _MODULE.replace("@PARTS@", repr(parts))
        .replace("@AXES@", f"{plan.axes.pp}, {plan.axes.dp}, {plan.axes.tp}")
        .replace("@RECOMPUTED@", repr([index for index, kind in enumerate(plan.recompute) if kind == "full"]))
        .replace("@PROCESSES@", str(plan.axes.processes))
        .replace("@COUNT@", str(len(plan.layers)))
        .replace("@MODEL@", docstring_text(plan.model))
    )
    return Export("deepspeed", {FILE: text, CONFIG_FILE: _config(plan)}, _notes(plan))


def read_deepspeed(files: Mapping[str, str]) -> tuple[Split, tuple[int, ...]]:
    """The split that the module's parts say; stage s is on rank s."""
    found = read_constants(files[FILE])
    split = tuple(tuple(range(first, end)) for first, end in pairwise(found["PARTS"]))
    return split, tuple(range(len(split)))


def _config(plan: Plan) -> str:
    settings: dict[str, object] = {
        "train_batch_size": plan.global_batch_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.microbatches,
        "zero_optimization": {"stage": int(plan.zero)},
    }
    if plan.dtype == "bf16":
        settings["bf16"] = {"enabled": True}
    return json.dumps(settings, indent=2) + "\n"


def _notes(plan: Plan) -> tuple[str, ...]:
    notes = [f"the {len(plan.layers)} layers, the loss and the optimizer are yours to add: {FILE} says how"]
    if plan.axes.tp > 1:
        notes.append(
            f"deepspeed's pipelines leave tp to the layers: yours have to share themselves out over {plan.axes.tp}"
        )
    if plan.tied_bytes:
        notes.append("embedding and head share a weight: a TiedLayerSpec for each, with one key")
    return tuple(notes)


DEEPSPEED = Target("DeepSpeed", deepspeed_export, read_deepspeed)
