"""Measures a cost profile of a model on this machine, with as many busy processes as the run will have."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch

from evenflow.cost import MESSAGE_BYTES, TIMED_PARTS, LayerCost, LinkCost, Profile
from evenflow.errors import InputError
from evenflow.files import load_profile, save_profile
from evenflow.launch import Launcher, ThisHost
from evenflow.models import ModelSource
from evenflow.spec import GRADIENT_BYTES, Cluster, Model, this_machine
from evenflow.spec.gpus import visible_gpus


def measure_profile(
    source: ModelSource,
    model: Model,
    cluster: Cluster,
    tick: Callable[[], None] = lambda: None,
    launcher: Launcher | None = None,
) -> Profile:
    """Time `model`'s layers in `cluster.devices` processes, all busy at once.

    Args:
        source: where the model comes from.
        model: its description, at the microbatch shape to time.
        cluster: a local cluster.
        tick: called now and then while the ranks measure; what it raises ends them.
        launcher: where the processes run; by default on this host.
    """
    if not cluster.is_local:
        raise InputError(f"only this machine can be measured, not {cluster.name}; --cluster local would do")
    if cluster.devices % model.tp:
        raise InputError(
            f"{cluster.devices} processes are no whole number of groups of --tp {model.tp}; "
            f"{cluster.devices // model.tp * model.tp or model.tp} would do"
        )
    payload = {
        "model": source.config.to_json_string(use_diff=False),
        "ranks": cluster.devices,
        "threads": cluster.threads,
        "tp": model.tp,
        "gpus": len(visible_gpus()) if cluster.device.is_gpu else 0,
        "has_own_cores": cluster.at_once == cluster.devices,
        "dtype": model.dtype,
        "shape": [model.micro_batch_size, model.seq_length, model.hidden_size],
        "signatures": [layer.signature for layer in model.layers],
        "parameters": len(model.layers) * 16,
        "sum_bytes": _sum_bytes(model, cluster.devices),
    }
    target = "evenflow.measure.ranks:run"
    results: dict[int, dict[str, Any]] = {}
    with (launcher or ThisHost()).running("profile", target, cluster.devices, payload, cluster.threads) as group:
        for item in group.messages():
            tick()
            if item is not None:
                results[item[0]] = item[1]
    return _combine([results[rank] for rank in sorted(results)], model, cluster)


def cached_profile(
    source: ModelSource,
    model: Model,
    cluster: Cluster,
    measuring: Callable[[], None] = lambda: None,
    again: bool = False,
    tick: Callable[[], None] = lambda: None,
    launcher: Launcher | None = None,
) -> Profile:
    """The profile of this model, shape, machine and number of processes: from the cache, else measured.

    Args:
        source: where the model comes from.
        model: its description.
        cluster: a local cluster.
        measuring: called before anything is measured, to tell a waiting person.
        again: measure even where the cache has it, and replace that.
        tick: called now and then while the ranks measure; what it raises ends them.
        launcher: where the processes run; by default on this host.
    """
    if launcher is not None and launcher.ranks is not None:
        measuring()  # always: the cache knows one host, and nothing of the network between several
        return measure_profile(source, model, cluster, tick, launcher)
    name = f"{model.fingerprint}-{cluster.devices}x{cluster.threads}.json"
    path = _cache_folder() / "profiles" / name
    if path.is_file() and not again:
        try:
            profile = load_profile(path)
            profile.check_fits(model, cluster)
            # One without sums is of a version that gave ranks the speeds of whoever reported first.
            whole = cluster.devices == 1 or profile.sum_link is not None
            if whole and profile.torch_version == torch.__version__:
                return profile
        except InputError:
            pass  # another machine's, or another version's: measure again
    measuring()
    profile = measure_profile(source, model, cluster, tick)
    with suppress(OSError, InputError):  # a home that cannot be written to has no cache
        path.parent.mkdir(parents=True, exist_ok=True)
        save_profile(profile, path)
    return profile


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evenflow"


def _combine(results: Sequence[dict[str, Any]], model: Model, cluster: Cluster) -> Profile:
    """The median over ranks, given in order, of each's medians; of ranks that share a GPU only the first has layers."""
    timed = [result for result in results if "layers" in result]

    def middle(values: Sequence[float]) -> float:
        return float(median(values))

    layers = tuple(
        LayerCost(**{part: middle([result["layers"][layer][part] for result in timed]) for part in TIMED_PARTS})
        for layer in range(len(model.layers))
    )
    # A rank without a partner reports a free link; it has measured nothing.
    links = [result["link"] for result in results if result["link"][1] > 0] or [[0.0, 0.0]]
    slowness = middle([link[1] for link in links])
    return Profile(
        machine=this_machine(),
        torch_version=torch.__version__,
        model=model.name,
        fingerprint=model.fingerprint,
        micro_batch_size=model.micro_batch_size,
        seq_length=model.seq_length,
        processes=cluster.devices,
        threads=cluster.threads,
        layers=layers,
        stage_forward_s=middle([result["stage"][0] for result in timed]),
        stage_backward_s=middle([result["stage"][1] for result in timed]),
        link=LinkCost(middle([link[0] for link in links]), 1 / slowness if slowness else 1e12),
        reduce_s=middle([result["reduce_s"] for result in results]) if cluster.devices > 1 else 0.0,
        peak_flops=middle([result["peak_flops"] for result in timed]),
        speeds=_speeds(results) if len(timed) == len(results) == cluster.at_once else None,
        sum_link=_sum_link([LinkCost(*result["adding"]) for result in results]) if cluster.devices > 1 else None,
        process_bytes=int(middle([result["process_bytes"] for result in timed])),
    )


def _sum_bytes(model: Model, processes: int) -> int:
    """A message of gradients, or where that is less as many as an even stage has."""
    whole = GRADIENT_BYTES * sum(layer.parameters for layer in model.layers)
    return min(max(whole // processes, GRADIENT_BYTES), MESSAGE_BYTES)


def _sum_link(found: Sequence[LinkCost]) -> LinkCost:
    return LinkCost(median(own.latency_s for own in found), median(own.bytes_per_s for own in found))


_DIFFER = 1.2  # of the slowest rank's seconds to the fastest's: noise is a tenth


def _speeds(results: Sequence[dict[str, Any]]) -> tuple[float, ...] | None:
    """How fast each rank was beside the median, where one was slower than another by more than noise."""
    seconds = [sum(layer["forward_s"] + layer["backward_s"] for layer in own["layers"]) for own in results]
    if min(seconds) <= 0 or max(seconds) < _DIFFER * min(seconds):
        return None
    return tuple(median(seconds) / own for own in seconds)
