"""The model as `describe --json` prints it: every layer's figures, and their sums."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from evenflow.files.document import FORMAT_VERSION
from evenflow.spec import Again, Layer, Model, Work


def model_json(model: Model) -> dict[str, Any]:
    """The model's facts, layers and totals; layers' figures are for one microbatch."""
    return {
        "format_version": FORMAT_VERSION,
        "model": model.name,
        "architecture": model.architecture,
        "fingerprint": model.fingerprint,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "tied_embeddings": model.tied_embeddings,
        "micro_batch_size": model.micro_batch_size,
        "seq_length": model.seq_length,
        "tp": model.tp,
        "dtype": model.dtype,
        "parameters": model.parameters,
        "parameter_bytes": sum(layer.parameter_bytes for layer in model.layers),
        "forward_flops": sum(layer.forward_flops for layer in model.layers),
        "backward_flops": sum(layer.backward_flops for layer in model.layers),
        "saved_bytes": sum(layer.saved_bytes for layer in model.layers),
        "layers": [_layer_json(index, layer) for index, layer in enumerate(model.layers)],
    }


def _layer_json(index: int, layer: Layer) -> dict[str, Any]:
    return {
        "layer": index,
        "name": layer.name,
        "kind": layer.kind,
        "signature": layer.signature,
        "parameters": layer.parameters,
        "parameter_bytes": layer.parameter_bytes,
        "forward_flops": layer.forward_flops,
        "backward_flops": layer.backward_flops,
        "weight_flops": layer.weight_flops,
        "saved_bytes": layer.saved_bytes,
        "pending_bytes": layer.pending_bytes,
        "output_bytes": layer.output_bytes,
        "forward_peak_bytes": layer.forward_peak_bytes,
        "backward_peak_bytes": layer.backward_peak_bytes,
        "shared_bytes": layer.shared_bytes,
        "input_peak_bytes": layer.input_peak_bytes,
        "first_backward_peak_bytes": layer.first_backward_peak_bytes,
        "first_input_peak_bytes": layer.first_input_peak_bytes,
        "kept_gradient_bytes": layer.kept_gradient_bytes,
        "weight_bytes": layer.weight_bytes,
        "master_bytes": layer.master_bytes,
        "freed_input_bytes": layer.freed_input_bytes,
        "largest_gradient_bytes": layer.largest_gradient_bytes,
        "forward_combined": [asdict(own) for own in layer.forward_combined],
        "backward_combined": [asdict(own) for own in layer.backward_combined],
        "recomputed": {own.recompute: _again_json(own) for own in layer.recomputed},
        "operators": [asdict(operator) for operator in layer.operators],
        "work": {
            name: None if own is None else _work_json(own)
            for name, own in (
                ("forward", layer.forward_work),
                ("input", layer.input_work),
                ("weight", layer.weight_work),
            )
        },
    }


def _work_json(work: Work) -> dict[str, Any]:
    """Each operator by its kind and dimensions."""
    return {
        "kernels": work.kernels,
        "operators": [{"kind": type(own).__name__.lower(), **asdict(own)} for own in work.operators],
    }


def _again_json(again: Again) -> dict[str, Any]:
    return {
        "flops": again.flops,
        "combined": [asdict(own) for own in again.combined],
        **asdict(again.activations),
    }
