"""Hugging Face causal LMs: described by tracing, built one stage at a time, their weights read and written."""

from evenflow.models.anatomy import build_skeleton, count_layers
from evenflow.models.cut import Cut
from evenflow.models.describe import describe_model
from evenflow.models.documents import find_leak
from evenflow.models.dropout import draw_of, dropouts, drops_out, silence
from evenflow.models.microbatch import NOT_LEARNED, Microbatch
from evenflow.models.precision import compute_in
from evenflow.models.preset import preset_source
from evenflow.models.read import read_weights
from evenflow.models.source import ModelSource, find_model, read_config
from evenflow.models.stage import Stage, build_stage
from evenflow.models.tensor_parallel import Sharing, share_out
from evenflow.models.tied import share_tied, tied_names
from evenflow.models.tp_plan import TpPlan, check_tensor_parallel, tp_plan_of
from evenflow.models.weights import draw_weights, make_up_weights, write_index, write_weights
from evenflow.models.z_loss import add_z_loss, check_z_loss

__all__ = [
    "NOT_LEARNED",
    "Cut",
    "Microbatch",
    "ModelSource",
    "Sharing",
    "Stage",
    "TpPlan",
    "add_z_loss",
    "build_skeleton",
    "build_stage",
    "check_tensor_parallel",
    "check_z_loss",
    "compute_in",
    "count_layers",
    "describe_model",
    "draw_of",
    "draw_weights",
    "dropouts",
    "drops_out",
    "find_leak",
    "find_model",
    "make_up_weights",
    "preset_source",
    "read_config",
    "read_weights",
    "share_out",
    "share_tied",
    "silence",
    "tied_names",
    "tp_plan_of",
    "write_index",
    "write_weights",
]
