"""Opens a run's saved model twice, by evenflow's own stage and by transformers alone: both must find the same loss."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, logging

from evenflow.models import build_stage, draw_weights, find_model, read_weights
from evenflow.train.store import TokenStore


def saved_model_losses(out: Path, seq_length: int) -> tuple[float, float]:
    """The loss of RUN/model on the last sequence of RUN/tokens: evenflow's, then transformers'."""
    store = TokenStore.open(out / "tokens")
    ids = torch.from_numpy(store.read(store.sequences(seq_length) - 1, seq_length))[None]
    source = find_model(str(out / "model"))
    stage = build_stage(source.config, range(source.config.num_hidden_layers + 2))
    draw_weights(stage, seed=0)
    read_weights(stage, source.weight_files)
    logging.disable_progress_bar()
    other = AutoModelForCausalLM.from_pretrained(out / "model")
    logging.enable_progress_bar()
    with torch.no_grad():
        return float(stage.eval()(ids, ids)), float(other(input_ids=ids, labels=ids).loss)
