"""A job's keys as options of `train`: made from the job file's schema, so that file and flags never differ."""

from __future__ import annotations

import argparse
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from evenflow.cli.options import path
from evenflow.files import JobPart, check_job, load_job, merge_jobs

_POSITIONAL = "model"
_NO_FLAG = ("format_version", _POSITIONAL)
_METAVARS = {"data": "PATH", "out": "RUN", "plan": "PLAN", "schedule": "NAME", "memory_limit": "X", "seq_length": "S"}
_TYPE_METAVARS = {int: "N", float: "X", str: "NAME"}


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """MODEL, --config, and a flag for each key; a flag that is not given leaves nothing behind."""
    parser.add_argument(
        _POSITIONAL, nargs="?", default=argparse.SUPPRESS, metavar="MODEL", help=_field_help(_POSITIONAL)
    )
    parser.add_argument("--config", type=path, metavar="JOB", help="a job.toml, whose keys are these flags; flags win")
    parser.add_argument("--print-config", action="store_true", help="print the job as TOML and leave")
    parser.add_argument("--print-schema", action="store_true", help="print the job file's JSON schema and leave")
    group: Any = parser
    for key, field in JobPart.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and "group" in extra:
            group = parser.add_argument_group(str(extra["group"]))
        if key in _NO_FLAG:
            continue
        flag = f"--{key.replace('_', '-')}"
        kinds = _kinds(field.annotation)
        if bool in kinds:
            group.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=_field_help(key)
            )
            continue
        choices = _choices(field.annotation)
        plain = next(kind for kind in (str, float, int) if kind in kinds) if not choices else str
        group.add_argument(
            flag,
            type=_READERS[plain],
            default=argparse.SUPPRESS,
            choices=choices or None,
            metavar=None if choices else _METAVARS.get(key, _TYPE_METAVARS[plain]),
            help=_field_help(key),
        )


def read_job_options(arguments: argparse.Namespace) -> JobPart:
    """The job of the file and the flags together.

    Raises:
        InputError: either has a value that a job does not have.
    """
    given = {key: value for key, value in vars(arguments).items() if key in JobPart.model_fields}
    names = {key: "MODEL" if key == _POSITIONAL else f"--{key.replace('_', '-')}" for key in given}
    flags = check_job(given, names)
    return merge_jobs(load_job(arguments.config), flags) if arguments.config else flags


def _field_help(key: str) -> str:
    field = JobPart.model_fields[key]
    text = (field.description or "").replace("; needed", "").replace("%", "%%")
    value = field.default
    if value is None or isinstance(value, bool):
        return text
    return f"{text} (default {value:g})" if isinstance(value, float) else f"{text} (default {value})"


def _kinds(annotation: Any) -> set[type]:
    """The plain types that a value may have."""
    if isinstance(annotation, type):
        return {annotation}
    if get_origin(annotation) in (Union, UnionType):
        return {kind for part in get_args(annotation) for kind in _kinds(part)}
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    return _kinds(get_args(annotation)[0])  # Annotated


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [value for value in get_args(annotation) if isinstance(value, str)]
    return [choice for part in get_args(annotation) for choice in _choices(part)] if get_args(annotation) else []


def _whole(text: str) -> int:
    try:
        return int(text[:40])
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number") from None


_READERS: dict[type, Any] = {int: _whole, float: _number, str: str}
