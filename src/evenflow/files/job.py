"""job.toml: a training job, each key also a flag of `evenflow train`; this schema is the one source of both."""

from __future__ import annotations

import difflib
import json
import textwrap
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from evenflow.errors import InputError
from evenflow.files.document import FORMAT_VERSION, Part, mistake_of, read_text
from evenflow.files.kinds import JOB, refuse_other, refuse_other_text
from evenflow.files.parts import MOST_BYTES, MOST_COUNT, Count
from evenflow.program import AUTO, SCHEDULES
from evenflow.spec import DEFAULT_GLOBAL_BATCH_SIZE, DEFAULT_SEQ_LENGTH, Dtype, RecomputeWish
from evenflow.units import parse_bytes

_MOST_SEED = 2**63 - 1
_WIDTH = 100  # of a comment


def _is_size(value: str | int) -> str | int:
    try:
        parse_bytes(str(value))
    except InputError as error:
        raise ValueError(str(error)) from None
    return value


def _has_letters(value: str) -> str:
    if not value.strip() or "\0" in value:
        raise ValueError("should be a path, not empty")
    return value


PathText = Annotated[str, AfterValidator(_has_letters)]
SizeText = Annotated[
    str | Annotated[int, Field(ge=1, le=MOST_BYTES)],
    AfterValidator(_is_size),
]


Steps = Annotated[int, Field(ge=0, le=MOST_COUNT)]
Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class JobPart(Part):
    """A job; a key without a value is None, which means what its description says."""

    format_version: Annotated[
        Literal[6], Field(description="of this file", json_schema_extra={"group": "what is trained"})
    ] = FORMAT_VERSION
    model: Annotated[
        PathText | None,
        Field(description="a Hugging Face model directory, its config.json, or a hub id; needed"),
    ] = None
    data: Annotated[
        PathText | None,
        Field(description="plain text, JSON lines, parquet or a dataset on disk: a file or a folder; needed"),
    ] = None
    out: Annotated[PathText | None, Field(description="a new folder for the run, or with resume the run's; needed")] = (
        None
    )
    from_scratch: Annotated[bool, Field(description="draw weights even where some lie beside the config")] = False

    steps: Annotated[
        Count, Field(description="optimizer updates of the whole run", json_schema_extra={"group": "how much"})
    ] = 100
    global_batch_size: Annotated[
        Count | None, Field(description=f"sequences of a step (default {DEFAULT_GLOBAL_BATCH_SIZE}, or the plan's)")
    ] = None
    micro_batch_size: Annotated[
        Count | None,
        Field(
            description="sequences of a microbatch (default: as many as leave each rank four microbatches, or the "
            "plan's)"
        ),
    ] = None
    seq_length: Annotated[
        Count | None,
        Field(
            description=f"tokens of a sequence (default {DEFAULT_SEQ_LENGTH} if the model reads as many, or the plan's)"
        ),
    ] = None
    seed: Annotated[
        int, Field(ge=0, le=_MOST_SEED, description="of weights, where they are drawn, and of the order of samples")
    ] = 0

    lr: Annotated[
        float,
        Field(gt=0, description="learning rate at its peak", json_schema_extra={"group": "optimizer"}),
    ] = 3e-4
    lr_schedule: Annotated[
        Literal["cosine", "linear", "wsd"],
        Field(description="how the rate falls after the warm-up; wsd stays at its peak until it falls at the end"),
    ] = "cosine"
    warm_up: Annotated[
        Steps | None, Field(description="steps until the rate's peak (default a tenth of them, at most 100)")
    ] = None
    decay: Annotated[
        Steps | None, Field(description="steps in which wsd falls at the end (default a tenth of them)")
    ] = None
    lr_end: Annotated[Share, Field(description="the last rate, as a share of the peak")] = 0.1
    beta1: Annotated[Beta, Field(description="how much AdamW keeps of its first moment")] = 0.9
    beta2: Annotated[Beta, Field(description="how much AdamW keeps of its second moment")] = 0.95
    epsilon: Annotated[float, Field(gt=0, le=1, description="what AdamW adds to its divisor")] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, le=1000, description="decay of weights with two or more dimensions")] = (
        0.1
    )
    undecayed: Annotated[
        str, Field(description="patterns of parameters not to decay, such as '*embed*,*.gate.*' (default none)")
    ] = ""
    clip_norm: Annotated[float, Field(ge=0, le=1e9, description="norm to clip gradients at; 0 for never")] = 1.0
    z_loss: Annotated[
        float,
        Field(ge=0, le=1, description="weight of the squared log of the softmax's divisor in the loss; 0 for none"),
    ] = 0.0
    dtype: Annotated[
        Dtype | None,
        Field(
            description="type of weights, activations and messages: fp32, or bf16 with master weights, gradients and "
            "moments in fp32 (default fp32, or the plan's)"
        ),
    ] = None

    processes: Annotated[
        Count | None,
        Field(
            description="of the whole job, pp x tp x dp (default: the GPUs, else the cores, 8 at most)",
            json_schema_extra={"group": "layout"},
        ),
    ] = None
    pp: Annotated[
        Count | None, Field(description="pipeline ranks (default: what the other axes leave of processes)")
    ] = None
    tp: Annotated[Count | None, Field(description="processes that share each stage's tensors (default 1)")] = None
    dp: Annotated[Count | None, Field(description="data-parallel replicas (default 1)")] = None
    zero: Annotated[
        Literal[0, 1] | None,
        Field(description="1: replicas share out the optimizer's state and the update (default 0)"),
    ] = None
    threads: Annotated[
        Count | None, Field(description="compute threads of each process (default: an equal slice of the cores)")
    ] = None
    plan: Annotated[PathText | None, Field(description="follow this plan.json (default: profile and plan)")] = None
    schedule: Annotated[str | None, Field(description=f"{', '.join(SCHEDULES)} or {AUTO} (default 1f1b)")] = None
    recompute: Annotated[
        RecomputeWish | None,
        Field(
            description="what blocks run again in their backward, to keep less for it: selective (their attention), "
            "full (all of their forward), or auto (as little as fits the memory) (default none)"
        ),
    ] = None
    stages_per_rank: Annotated[
        Count | None,
        Field(
            description="stages of each rank, for schedules that run several (default: as many as the schedule asks "
            "for)"
        ),
    ] = None
    memory_limit: Annotated[
        SizeText | None, Field(description="memory that a rank may use, such as 70GiB (default: a device's)")
    ] = None
    check: Annotated[bool, Field(description="prove first, on a small copy, that the split model equals the whole")] = (
        True
    )

    data_format: Annotated[
        Literal["auto", "text", "jsonl", "parquet", "dataset"],
        Field(description="how data is written; auto goes by the files' names", json_schema_extra={"group": "data"}),
    ] = "auto"
    text_key: Annotated[str, Field(description="a record's document, all of which is learned")] = "text"
    prompt_key: Annotated[str, Field(description="what a record has before its answer, which is read only")] = "prompt"
    answer_key: Annotated[str, Field(description="a record's answer, which alone is learned")] = "answer"
    messages_key: Annotated[
        str, Field(description="a record's conversation, of which the assistant's part is learned")
    ] = "messages"
    packing: Annotated[
        Literal["stream", "whole", "padded"] | None,
        Field(
            description="stream: documents one after another, cut where a sequence ends; whole: uncut, and padding "
            "where none fits; padded: each alone, padded to the longest of its microbatch (default: whole where parts "
            "of them are not learned)"
        ),
    ] = None
    separate_documents: Annotated[
        bool | None,
        Field(description="documents in one sequence do not see each other (default: with packing whole)"),
    ] = None

    eval_every: Annotated[
        Count | None,
        Field(
            description="evaluate after every so many steps and the last one (default: never)",
            json_schema_extra={"group": "evaluation"},
        ),
    ] = None
    eval_share: Annotated[
        float | None,
        Field(gt=0, lt=1, description="of the sequences, held out of training for that (default 0.05, if asked for)"),
    ] = None
    eval_data: Annotated[
        PathText | None, Field(description="evaluate on this instead, a file or a folder as data is")
    ] = None
    eval_micro_batch_size: Annotated[
        Count | None, Field(description="sequences of a microbatch of an evaluation (default: as in training)")
    ] = None

    resume: Annotated[
        bool,
        Field(
            description="go on with the run in out, in this or another layout",
            json_schema_extra={"group": "stopping and going on"},
        ),
    ] = False
    stop_at: Annotated[
        Count | None, Field(description="save and stop after this step; the learning rate still spans steps")
    ] = None
    restarts: Annotated[
        Steps,
        Field(
            description="how often to start again from the newest checkpoint when a process is lost, counted anew "
            "from each new checkpoint; 0 for never"
        ),
    ] = 3
    save_every: Annotated[
        Count | None, Field(description="save after every so many steps, while the run goes on (default: at its end)")
    ] = None
    keep_last: Annotated[Count, Field(description="how many of the newest checkpoints are kept")] = 2
    keep_every: Annotated[
        Count | None, Field(description="keep also the checkpoints after every so many steps (default: none)")
    ] = None
    stop_on_nan: Annotated[
        bool, Field(description="end the run, without saving, when its loss or gradient is not a number")
    ] = True

    tensorboard: Annotated[
        bool,
        Field(
            description="write metrics for TensorBoard too, into the run's folder",
            json_schema_extra={"group": "seeing"},
        ),
    ] = False
    wandb: Annotated[
        PathText | None, Field(description="send metrics to this project of Weights & Biases (default: to none)")
    ] = None


_AXES = frozenset(("pp", "tp", "dp"))
_PATHS = ("data", "out", "plan", "eval_data")
_RENAMED = {"lr": "learning_rate"}
_NOT_A_SETTING = ("format_version",)


def load_job(path: Path) -> JobPart:
    """Read a job file: those keys that it has.

    Raises:
        InputError: it cannot be read, is not TOML or of another kind, or has a key that is unknown, of a wrong type or
            out of range.
    """
    text = read_text(path, "TOML")
    try:
        data = tomllib.loads(text)
    except ValueError as error:  # also a whole number that is too long to read
        refuse_other_text(text, JOB, str(path))
        raise InputError(f"{path}: is not TOML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{path}: is not a job: it nests too deeply") from None
    if not data.keys() <= JobPart.model_fields.keys():
        refuse_other(data, JOB, str(path))
    return check_job(data, {key: f"{path}: {key}" for key in (*JobPart.model_fields, *data)})


def check_job(data: Mapping[str, Any], names: Mapping[str, str]) -> JobPart:
    """Some keys of a job as the schema has them.

    Args:
        data: value by key.
        names: what to call each key in an error.

    Raises:
        InputError: a key is unknown (the nearest is named), or its value of a wrong type or out of range.
    """
    for key in data:
        if key not in JobPart.model_fields:
            raise InputError(f"{names[key]} is not a key of a job; {nearest(key, JobPart.model_fields)}")
    try:
        return JobPart.model_validate(dict(data))
    except ValidationError as error:
        key, said = mistake_of(error)
        raise InputError(f"{names[key.partition('.')[0]]}: {said}") from None


def nearest(key: str, known: Mapping[str, Any]) -> str:
    """Advice for a key that is not known: the one most like it, or where to find all."""
    near = difflib.get_close_matches(key.replace("-", "_").lower(), known, n=1, cutoff=0.5)
    return f"{near[0]} is the nearest" if near else "`evenflow train --print-config` lists all"


def merge_jobs(file: JobPart, flags: JobPart) -> JobPart:
    """Both together; a flag wins over the file."""
    merged = {key: getattr(file, key) for key in file.model_fields_set}
    if "processes" in flags.model_fields_set:  # the axes are what it is made of: what the file says of pp would clash
        merged.pop("pp", None)
    elif _AXES & flags.model_fields_set:
        merged.pop("processes", None)
    return JobPart.model_validate(merged | {key: getattr(flags, key) for key in flags.model_fields_set})


def job_settings(part: JobPart) -> dict[str, Any]:
    """A job's settings by the names of `evenflow.train.Job`, paths and sizes as values.

    Raises:
        InputError: a key that every job needs is not there.
    """
    for key in ("model", "data", "out"):
        if getattr(part, key) is None:
            flag = "MODEL" if key == "model" else f"--{key}"
            raise InputError(f"{flag} is missing; as an argument, or as `{key}` in the file of --config, it would do")
    settings = {_RENAMED.get(key, key): getattr(part, key) for key in JobPart.model_fields if key not in _NOT_A_SETTING}
    for key in _PATHS:
        settings[key] = None if settings[key] is None else Path(settings[key]).expanduser()
    if part.memory_limit is not None:
        settings["memory_limit"] = parse_bytes(str(part.memory_limit))
    return settings


def check_settings(settings: Mapping[str, Any]) -> None:
    """Hold the settings of an `evenflow.train.Job` to the schema of the file.

    Raises:
        InputError: one is of a wrong type or out of range, named as its flag.
    """
    keys = {name: key for key, name in _RENAMED.items()}
    data = {
        keys.get(name, name): str(value) if isinstance(value, Path) else value
        for name, value in settings.items()
        if value is not None and keys.get(name, name) in JobPart.model_fields
    }
    check_job(data, {key: "MODEL" if key == "model" else f"--{key.replace('_', '-')}" for key in data})


def job_text(part: JobPart) -> str:
    """A job as TOML, all keys with what they mean; those without a value are comments; it reads back."""
    lines = ["# A job of evenflow: evenflow train --config FILE. Flags win over what stands here."]
    for key, field in JobPart.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and "group" in extra:
            lines += ["", f"# {'-' * 8} {extra['group']}"]
        lines += ["", *textwrap.wrap(field.description or "", _WIDTH, initial_indent="# ", subsequent_indent="# ")]
        value = getattr(part, key)
        lines.append(f"# {key} =" if value is None else f"{key} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def job_schema() -> dict[str, Any]:
    """The JSON schema of a job file, for editors."""
    schema = JobPart.model_json_schema()
    schema["title"] = "A job of evenflow"
    for key in schema["properties"].values():
        key.pop("group", None)
    return schema


def _toml(value: object) -> str:
    """A scalar as TOML writes it: its basic strings are those of JSON, with DEL escaped too."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
