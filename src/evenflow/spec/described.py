"""A preset's layers as figures, without tracing."""

from __future__ import annotations

from typing import Any

from evenflow.spec.architecture import Architecture
from evenflow.spec.operators import Shards


def preset_facts(preset: Architecture, micro_batch: int, seq: int) -> dict[str, Any]:
    """Name, source, parameters, and the forward FLOPs of each layer for one microbatch (attention's whole square)."""
    layers: list[dict[str, Any]] = [
        {"layer": 0, "kind": "embedding", "parameters": preset.embedding_parameters, "forward_flops": 0}
    ]
    for block in range(preset.layers):
        operators = preset.block(block, micro_batch, seq, Shards())
        layers.append({
            "layer": block + 1, "kind": "block", "parameters": preset.block_parameters(block),
            "forward_flops": sum(one.flops for one in operators),
        })  # fmt: skip
    head = preset.head(micro_batch, seq, Shards())
    layers.append({
        "layer": preset.layers + 1, "kind": "head", "parameters": preset.head_parameters,
        "forward_flops": sum(one.flops for one in head),
    })  # fmt: skip
    return {
        "model": preset.name, "source": preset.source, "parameters": preset.parameters,
        "micro_batch_size": micro_batch, "seq_length": seq,
        "forward_flops": sum(layer["forward_flops"] for layer in layers), "layers": layers,
    }  # fmt: skip
