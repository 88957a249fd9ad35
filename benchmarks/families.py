"""Which of the installed transformers' decoder-only language models split, shown on tiny copies of each.

    python -m benchmarks.families                 every type
    python -m benchmarks.families mixtral bloom   these; a path to a config.json or a model directory is a name too
    python -m benchmarks.families gemma2 --set sliding_window=4 --set final_logit_softcapping=null
    python -m benchmarks.families mpt --set attn_config.alibi=false
    python -m benchmarks.families --trace         describes each at its real dimensions instead, without memory
    python -m benchmarks.families --tp            shares each out over tp 2 instead of splitting it

Each type is checked as its class makes it, and with what can be switched on; with `--set`, with those settings alone.
`evenflow check` shrinks the config and compares loss and every gradient of the whole with those of its stages, at every
cut. `equal`: at all cuts, in all forms. `refused`: by the construct that is named. `wrong`: split, and different.
`filled`: of the equal or traced, those whose class leaves out what its model needs, with the values that were put in.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from transformers import PretrainedConfig
from transformers.utils import logging as transformers_logging

from benchmarks.settings import configured, parse_setting, said
from benchmarks.tiny_configs import added, build_config, default_config, types, with_quirks
from evenflow.errors import EvenflowError, InputError, NotEqualError, first_line
from evenflow.execute import check_shares, check_split
from evenflow.models import ModelSource, describe_model

_TRACED = (1, 128)


class Verdict(NamedTuple):
    """What became of a family.

    Attributes:
        status: equal, traced, refused or wrong.
        reason: why, or how near.
        filled: the fields that its class leaves out and that had to have values, with them.
    """

    status: str
    reason: str
    filled: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the counts; 1 where a family is wrong, 2 where a name or a setting is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description="which families split")
    parser.add_argument("names", nargs="*", metavar="NAME", help="model types, config.json files or model directories")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of every config")
    parser.add_argument("--trace", action="store_true", help="trace at real dimensions instead")
    parser.add_argument("--tp", action="store_true", help="share out over tp 2 instead")
    parser.add_argument("--processes", type=int, default=2, help="families at a time")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one family")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)
    _quiet()
    taken, left_out = ([], {}) if options.names else types()
    names = list(dict.fromkeys(options.names)) or taken
    try:
        changes = dict(map(parse_setting, options.set))
        for name in names if options.names or changes else ():  # before any of them takes its minutes
            _config(name, changes)
    except InputError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    judge = trace if options.trace else share if options.tp else check
    verdicts = judge_all(judge, names, changes, options.processes, options.limit, quiet=options.json)
    good = "traced" if options.trace else "equal"
    result: dict[str, Any] = {
        good: [name for name in names if verdicts[name].status == good],
        "refused": {name: verdicts[name].reason for name in names if verdicts[name].status == "refused"},
        "wrong": [name for name in names if verdicts[name].status == "wrong"],
        "differences": {name: verdicts[name].reason for name in names if verdicts[name].status == "wrong"},
        "filled": {name: verdicts[name].filled for name in names if verdicts[name].filled},
        "left_out": left_out,
    }
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print(
            f"{len(result[good])} {good} ({len(result['filled'])} of them with values filled in), "
            f"{len(result['refused'])} refused, {len(result['wrong'])} wrong "
            f"of {len(names)}; {len(result['left_out'])} types left out"
        )
        for name, reason in result["left_out"].items():
            print(f"left out  {name}: {reason}")
    return 1 if result["wrong"] else 0


def check(name: str, changes: dict[str, Any]) -> Verdict:
    """Whether a family splits, in all forms; with changes, or as a file says, in that form alone."""
    config = plain = _config(name, changes)
    try:
        worst = check_split(config).worst_error
    except InputError as error:
        if Path(name).exists() or isinstance(error, NotEqualError) or "cannot be tried" not in str(error):
            return _verdict(error, changes)
        config = build_config(name, changes, needed=True)
        try:
            worst = check_split(config).worst_error
        except InputError as again:
            return _verdict(again, changes)
    filled = added(config, plain)
    if Path(name).exists() or changes:
        return Verdict("equal", f"{worst:.0e}", filled)
    tried: list[str] = []
    untried: list[str] = []  # no model with this switch alone
    for quirk, value, changed in with_quirks(name, config, needed=config is not plain):
        if changed is None:
            untried.append(quirk)
            continue
        try:
            worst = max(worst, check_split(changed).worst_error)
        except InputError as error:
            if "cannot be tried" not in str(error):
                return _verdict(error, {quirk: value})
            untried.append(quirk)
        else:
            tried.append(quirk)
    also = f" with {', '.join(tried)}" if tried else ""
    also += f"; not tried: {', '.join(untried)}" if untried else ""
    return Verdict("equal", f"{worst:.0e}{also}", filled)


def share(name: str, changes: dict[str, Any]) -> Verdict:
    """Whether a family can be shared out over tp 2, as its class makes it."""
    config = plain = _config(name, changes)
    try:
        result = check_shares(config, 2)
    except EvenflowError as error:
        if Path(name).exists() or "cannot be tried" not in str(error):
            return _verdict(error, changes)
        config = build_config(name, changes, needed=True)
        try:
            result = check_shares(config, 2)
        except EvenflowError as again:
            return _verdict(again, changes)
    filled = added(config, plain)
    return Verdict("equal", f"{result.worst_error:.0e}, {result.cut} of {result.parameters} parameters cut", filled)


def trace(name: str, changes: dict[str, Any]) -> Verdict:
    """Whether a family is described at its own dimensions."""
    config = plain = _config(name, changes)
    try:
        model = describe_model(ModelSource(name, config, None), *_TRACED)
    except EvenflowError as error:
        if Path(name).exists():
            return _verdict(error, changes)
        config = build_config(name, changes, needed=True)
        if not added(config, plain):
            return _verdict(error, changes)
        try:
            model = describe_model(ModelSource(name, config, None), *_TRACED)
        except EvenflowError as again:
            return _verdict(again, changes)
    flops = sum(layer.forward_flops for layer in model.layers)
    return Verdict(
        "traced",
        f"{model.parameters / 1e9:.2f} G parameters, {flops / 1e12:.2f} TFLOP forward of {_TRACED[1]} tokens",
        added(config, plain),
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
                    verdict = Verdict("refused", "its process died")
            elif time.monotonic() > until:
                verdict = Verdict("refused", f"not done after {limit_s:.0f} s; a larger --limit may do")
            else:
                continue
            process.kill()
            process.join()
            pipe.close()
            del running[pipe]
            verdicts[name] = verdict
            if not quiet:
                filled = f" (filled in: {verdict.filled})" if verdict.filled else ""
                print(f"{verdict.status:8} {name}: {verdict.reason}{filled}", flush=True)
    return verdicts


def _work(judge: Callable[[str, dict[str, Any]], Verdict], name: str, changes: dict[str, Any], pipe: Any) -> None:
    try:
        verdict = judge(name, changes)
    except Exception as error:  # whatever a model's code does, the others go on
        verdict = Verdict("refused", f"{type(error).__name__}: {first_line(error)}")
    pipe.send(verdict)


def _verdict(error: EvenflowError, changes: Mapping[str, Any] = MappingProxyType({})) -> Verdict:
    status = "wrong" if isinstance(error, NotEqualError) else "refused"
    reason = str(error).removesuffix("; --no-check goes on without")  # which would do for `evenflow train`
    return Verdict(status, f"with {said(changes)}: {reason}" if changes else reason)


def _config(name: str, changes: dict[str, Any]) -> PretrainedConfig:
    return configured(name, changes) if Path(name).exists() else build_config(name, changes)


def _quiet() -> None:
    """Warnings of hundreds of model files are not ours."""
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)


__all__ = ["check", "default_config", "judge_all", "main", "trace"]

if __name__ == "__main__":
    sys.exit(main())
