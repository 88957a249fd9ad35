"""Which of the installed transformers' decoder-only language models split, shown on tiny copies of each.

    python -m benchmarks.families                 every type
    python -m benchmarks.families mixtral bloom   these; a path to a config.json or a model directory is a name too
    python -m benchmarks.families llama --set num_key_value_heads=2 --set rope_parameters='{"rope_theta": 5.0}'
    python -m benchmarks.families --trace         describes each at its real dimensions instead, without memory
    python -m benchmarks.families --tp            shares each out over tp 2 instead of splitting it

Each type is checked as its class makes it, and with what can be switched on: `evenflow check` shrinks the config and
compares loss and every gradient of the whole with those of its stages, at every cut. `equal`: at all cuts, in both
forms. `refused`: by the construct that is named. `wrong`: split, and different.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.utils import logging as transformers_logging

from benchmarks.tiny_configs import build_config, default_config, types, with_quirks
from evenflow.errors import EvenflowError, InputError, NotEqualError, first_line
from evenflow.execute import check_shares, check_split
from evenflow.models import ModelSource, describe_model, dropouts, find_model

Verdict = tuple[str, str]  # equal, refused or wrong; why
_TRACED = (1, 128)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the counts; 1 where a family is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description="which families split")
    parser.add_argument("names", nargs="*", metavar="NAME", help="model types, config.json files or model directories")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of every config")
    parser.add_argument("--trace", action="store_true", help="trace at real dimensions instead")
    parser.add_argument("--tp", action="store_true", help="share out over tp 2 instead")
    parser.add_argument("--processes", type=int, default=2, help="families at a time")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for one family")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)
    _quiet()
    taken, left_out = types()
    names = options.names or taken
    changes = dict(_change(text) for text in options.set)
    judge = trace if options.trace else share if options.tp else check
    verdicts = judge_all(judge, names, changes, options.processes, options.limit, quiet=options.json)
    result: dict[str, Any] = {
        "equal": [name for name in names if verdicts[name][0] == "equal"],
        "refused": {name: verdicts[name][1] for name in names if verdicts[name][0] == "refused"},
        "wrong": [name for name in names if verdicts[name][0] == "wrong"],
        "differences": {name: verdicts[name][1] for name in names if verdicts[name][0] == "wrong"},
        "left_out": {} if options.names else left_out,
    }
    if options.trace:
        result["traced"] = result.pop("equal")
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        good = "traced" if options.trace else "equal"
        print(
            f"{len(result[good])} {good}, {len(result['refused'])} refused, {len(result['wrong'])} wrong "
            f"of {len(names)}; {len(result['left_out'])} types left out"
        )
        for name, reason in result["left_out"].items():
            print(f"left out  {name}: {reason}")
    return 1 if result["wrong"] else 0


def check(name: str, changes: dict[str, Any]) -> Verdict:
    """Whether a family splits, in both forms."""
    config = _config(name, changes)
    try:
        worst = check_split(config).worst_error
    except InputError as error:
        if Path(name).exists() or changes or isinstance(error, NotEqualError) or "cannot be tried" not in str(error):
            return _verdict(error)
        config = build_config(name, changes, needed=True)
        try:
            worst = check_split(config).worst_error
        except InputError as again:
            return _verdict(again)
    if Path(name).exists():
        return "equal", f"{worst:.0e}"
    tried: list[str] = []
    for quirk, changed in with_quirks(config):
        if quirk in changes:
            continue
        try:
            worst = max(worst, check_split(changed).worst_error)
        except InputError as error:
            if "cannot be tried" in str(error):  # no model with this switch alone
                continue
            status, reason = _verdict(error)
            return status, f"with {quirk} = {getattr(changed.get_text_config(), quirk)!r}: {reason}"
        tried.append(quirk)
    return "equal", f"{worst:.0e}{' with ' + ', '.join(tried) if tried else ''}"


def share(name: str, changes: dict[str, Any]) -> Verdict:
    """Whether a family can be shared out over tp 2, as its class makes it but without dropout."""
    config = _config(name, changes)
    if not Path(name).exists():
        try:
            config = build_config(name, changes, needed=True)
        except EvenflowError as error:
            return _verdict(error)
    for field in dropouts(config):
        setattr(config, field, 0.0)
    try:
        result = check_shares(config, 2)
    except EvenflowError as error:
        return _verdict(error)
    return "equal", f"{result.worst_error:.0e}, {result.cut} of {result.parameters} parameters cut"


def trace(name: str, changes: dict[str, Any]) -> Verdict:
    """Whether a family is described at its own dimensions."""
    config = _config(name, changes)
    try:
        model = describe_model(ModelSource(name, config, None), *_TRACED)
    except EvenflowError as error:
        if Path(name).exists() or changes:
            return _verdict(error)
        try:
            model = describe_model(ModelSource(name, build_config(name, changes, needed=True), None), *_TRACED)
        except EvenflowError:
            return _verdict(error)
    flops = sum(layer.forward_flops for layer in model.layers)
    return (
        "equal",
        f"{model.parameters / 1e9:.2f} G parameters, {flops / 1e12:.2f} TFLOP forward of {_TRACED[1]} tokens",
    )


def judge_all(
    judge: Callable[[str, dict[str, Any]], Verdict],
    names: Sequence[str],
    changes: dict[str, Any],
    processes: int,
    limit_s: float,
    quiet: bool = False,
) -> dict[str, Verdict]:
    """Each name in a process of its own, some at a time, and none for longer than the limit."""
    fork = multiprocessing.get_context("fork")
    waiting = list(reversed(names))
    running: dict[Connection, tuple[str, Any, float]] = {}
    verdicts: dict[str, Verdict] = {}
    while waiting or running:
        while waiting and len(running) < processes:
            name = waiting.pop()
            ours, theirs = fork.Pipe(duplex=False)
            process = fork.Process(target=_work, args=(judge, name, changes, theirs))
            process.start()
            theirs.close()
            running[ours] = name, process, time.monotonic() + limit_s
        ready = wait(list(running), timeout=1.0)
        for pipe, (name, process, until) in list(running.items()):
            if pipe in ready:
                try:
                    verdict = pipe.recv()
                except EOFError:
                    verdict = "refused", "its process died"
            elif time.monotonic() > until:
                verdict = "refused", f"not done after {limit_s:.0f} s"
            else:
                continue
            process.kill()
            process.join()
            pipe.close()
            del running[pipe]
            verdicts[name] = verdict
            if not quiet:
                print(f"{verdict[0]:8} {name}: {verdict[1]}", flush=True)
    return verdicts


def _work(judge: Callable[[str, dict[str, Any]], Verdict], name: str, changes: dict[str, Any], pipe: Any) -> None:
    try:
        verdict = judge(name, changes)
    except Exception as error:  # whatever a model's code does, the others go on
        verdict = "refused", f"{type(error).__name__}: {first_line(error)}"
    pipe.send(verdict)


def _verdict(error: EvenflowError) -> Verdict:
    return ("wrong" if isinstance(error, NotEqualError) else "refused"), str(error)


def _config(name: str, changes: dict[str, Any]) -> PretrainedConfig:
    if not Path(name).exists():
        return build_config(name, changes)
    config = find_model(name).config
    for field, value in changes.items():
        setattr(config.get_text_config(), field, value)
    return config


def _change(text: str) -> tuple[str, Any]:
    field, _, value = text.partition("=")
    try:
        return field, json.loads(value)
    except json.JSONDecodeError:
        return field, value


def _quiet() -> None:
    """Warnings of hundreds of model files are not ours."""
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)


__all__ = ["check", "default_config", "judge_all", "main", "trace"]

if __name__ == "__main__":
    sys.exit(main())
