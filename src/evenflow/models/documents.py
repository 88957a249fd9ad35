"""Whether documents that lie one after another in a sequence keep from seeing each other in a model's own code.

transformers makes its attention mask from positions that start again with each document. What mixes tokens by other
means (convolutions, recurrent states, masks of a model's own making) need not heed them. No list says which models do:
one forward and backward of a small model shows whether anything of a document leads to the loss of the next.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from evenflow.models.microbatch import NOT_LEARNED
from evenflow.models.stage import Stage

_CUT, _SEQ = 9, 21  # tokens of the first document, and of both
_SEED = 5
_GRADIENT = 1e-6  # what leads back to the other document, over what leads back to its own
_LOSS = 1e-4  # how far a document may come from what it does alone: kernels differ by length


def find_leak(stage: Stage) -> str | None:
    """How a document gets to see the one before it; None where it does not.

    Args:
        stage: a whole model with weights, small enough to be run.
    """
    model = stage.model
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"{type(model).__name__} takes no position ids"
    generator = torch.Generator().manual_seed(_SEED)
    ids = torch.randint(1, model.config.get_text_config().vocab_size, (1, _SEQ), generator=generator)
    positions = torch.cat([torch.arange(_CUT), torch.arange(_SEQ - _CUT)])[None]
    labels = ids.clone()
    labels[:, : _CUT + 1] = NOT_LEARNED
    embedded: list[Tensor] = []
    outputs: list[Tensor] = []
    handles = [model.get_input_embeddings().register_forward_hook(lambda *call: _leaf(call[-1], embedded))]
    for block, returned in zip(stage.blocks, stage.anatomy.returned, strict=True):
        handles.append(block.register_forward_hook(lambda *call, of=returned: outputs.append(of.hidden(call[-1]))))
    try:
        loss = model(input_ids=ids, labels=labels, position_ids=positions, use_cache=False).loss
    finally:
        for handle in handles:
            handle.remove()
    if _leads_back(loss, embedded):
        return _first_block(stage, outputs, embedded)
    with torch.no_grad():
        own = {"input_ids": ids[:, _CUT:], "labels": ids[:, _CUT:], "position_ids": positions[:, _CUT:]}
        alone = model(**own, use_cache=False).loss
    if not torch.isclose(alone, loss, rtol=_LOSS, atol=0.0):
        return f"{type(model).__name__} finds positions of its own, whatever position ids it is given"
    return None


def _leaf(output: Tensor, embedded: list[Tensor]) -> Any:
    """Cut the graph off where tokens are embedded; the copy may be changed in place."""
    embedded.append(output.detach().requires_grad_())
    return embedded[-1].clone()


def _leads_back(result: Tensor, embedded: list[Tensor]) -> bool:
    """Whether what the first document's tokens are has to do with a result of the second one."""
    gradients = torch.autograd.grad(result, embedded, retain_graph=True, allow_unused=True, materialize_grads=True)
    first = sum(float(own[:, :_CUT].norm()) for own in gradients)
    second = sum(float(own[:, _CUT:].norm()) for own in gradients)
    return first > _GRADIENT * second


def _first_block(stage: Stage, outputs: list[Tensor], embedded: list[Tensor]) -> str:
    for layer, output in enumerate(outputs, start=1):
        hidden = stage.anatomy.layout.travelling(output, 1)
        if _leads_back(hidden[:, _CUT:].square().sum(), embedded):
            return f"{type(stage.blocks[layer - 1]).__name__} of layer {layer} reads across the borders of documents"
    return f"{type(stage.model).__name__} reads across the borders of documents"
