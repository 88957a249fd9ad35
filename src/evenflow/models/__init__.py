"""Hugging Face causal LMs: described by tracing, built one stage at a time, their weights read and written."""

from evenflow.models.anatomy import count_layers
from evenflow.models.describe import describe_model
from evenflow.models.dropout import draw_of, dropouts
from evenflow.models.microbatch import NOT_LEARNED, Microbatch
from evenflow.models.read import read_weights
from evenflow.models.recompute import keep_blocks, recompute_blocks
from evenflow.models.source import ModelSource, find_model, read_config
from evenflow.models.stage import Stage, build_stage
from evenflow.models.tied import share_tied, tied_names
from evenflow.models.weights import draw_weights, write_index, write_weights

__all__ = [
    "NOT_LEARNED",
    "Microbatch",
    "ModelSource",
    "Stage",
    "build_stage",
    "count_layers",
    "describe_model",
    "draw_of",
    "draw_weights",
    "dropouts",
    "find_model",
    "keep_blocks",
    "read_config",
    "read_weights",
    "recompute_blocks",
    "share_tied",
    "tied_names",
    "write_index",
    "write_weights",
]
