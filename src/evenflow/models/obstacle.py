"""What in a model's code keeps it from being split, named as its code names it."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PretrainedConfig

from evenflow.models.probe import Seen


def find_obstacle(
    name: str, seen: Seen, owners: Mapping[str, int], tied: Mapping[str, str], config: PretrainedConfig
) -> str | None:
    """Why the model `name` cannot be cut between any two layers; None where it can.

    Args:
        name: the model's class.
        seen: what its forward showed.
        owners: the layer of every name of every parameter.
        tied: other names of tied weights.
        config: its configuration.
    """
    blocks = len(seen.order)
    last = len(seen.returned) + 1
    if seen.order != tuple(range(blocks)):
        calls = ", ".join(str(number) for number in seen.order[:12])
        return f"{name} does not run its blocks once each and in order, but {calls}{', ...' if blocks > 12 else ''}"
    for layer, names in enumerate(seen.passed_on, start=1):
        if names:
            return (
                f"{name} hands {', '.join(names)}, made by a block before it, to layer {layer} beside the hidden states"
            )
    held: dict[str, set[int]] = {}
    for parameter, layer in owners.items():
        held.setdefault(tied.get(parameter, parameter), set()).add(layer)
    for parameter, layers in seen.used.items():
        if len(held[parameter]) > 1 and held[parameter] != {0, last}:
            places = sorted(held[parameter])
            return f"{name} has one weight {parameter} in its layers {_list(places)}, whose gradients would be apart"
        strangers = sorted(set(layers) - held[parameter])
        if strangers:
            return _bypass(name, seen, parameter, min(held[parameter]), strangers, last, config)
    return None


def _bypass(
    name: str, seen: Seen, parameter: str, owner: int, strangers: list[int], last: int, config: PretrainedConfig
) -> str:
    """How what `parameter` made reaches other layers."""
    to = strangers[0]
    routes = getattr(config.get_text_config(), "output_router_logits", False)
    if routes and last in strangers and owner < last:
        return (
            f"{name} adds a load-balancing loss over the routers of all its blocks (output_router_logits = true), "
            "which no stage has all of; output_router_logits = false in its config would do"
        )
    handed = seen.beside[to - 1] if 0 < to < last else ()
    what = f"as {', '.join(handed)}" if handed else "directly"
    return (
        f"{name} hands what {parameter} of layer {owner} makes to layer{'s' if len(strangers) > 1 else ''} "
        f"{_list(strangers)} beside the hidden states, {what}"
    )


def _list(layers: list[int]) -> str:
    return ", ".join(str(layer) for layer in layers[:6]) + (", ..." if len(layers) > 6 else "")
