"""A job file and its flags: one schema, one line for each mistake, and a printed job that reads back to the same."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.cli import main
from evenflow.errors import InputError
from evenflow.files import JobPart, check_job, job_schema, job_settings, job_text, load_job, load_metrics
from evenflow.train import Job


@pytest.fixture
def refuse(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Print the job of a file that must be refused; returns the one line."""

    def run(text: str, *flags: str) -> str:
        file = tmp_path / "job.toml"
        file.write_text(text)
        capfd.readouterr()
        assert main(["train", "--config", str(file), *flags, "--print-config"]) == 2
        captured = capfd.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err.replace(str(file), "job.toml").strip()

    return run


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stepps = 3", "job.toml: stepps is not a key of a job; steps is the nearest"),
        (
            "global-batch-size = 3",
            "job.toml: global-batch-size is not a key of a job; global_batch_size is the nearest",
        ),
        ("zzzzz = 3", "zzzzz is not a key of a job; `evenflow train --print-config` lists all"),
        ("[optimizer]\nlr = 1", "optimizer is not a key of a job"),
        ("steps = 'ten'", 'job.toml: steps: should be a valid integer, not "ten"'),
        ("steps = 0", "job.toml: steps: should be greater than or equal to 1, not 0"),
        ("steps = true", "job.toml: steps: should be a valid integer, not true"),
        ("steps = 2026-11-25", 'job.toml: steps: should be a valid integer, not "2026-11-25"'),
        ("lr = 0.0", "job.toml: lr: should be greater than 0, not 0.0"),
        ("lr = nan", "job.toml: lr: should be a finite number"),
        ("out = ''", "job.toml: out: should be a path, not empty"),
        ("memory_limit = 'much'", "job.toml: memory_limit: 'much' is not a memory size; 70GiB, "),
        ("recompute = 'some'", "job.toml: recompute: should be 'none', 'selective', 'full' or 'auto', not \"some\""),
        ("format_version = 99", "job.toml: format_version: should be 6, not 99"),
        ("steps = 1\nsteps = 2", "job.toml: is not TOML: Cannot overwrite a value"),
        ("steps = ", "job.toml: is not TOML: Invalid value"),
        ("seed = " + "9" * 5000, "job.toml: is not TOML: Exceeds the limit"),
    ],
)
def test_a_wrong_job_file_is_one_line(refuse: Callable[..., str], text: str, says: str) -> None:
    assert says in refuse(text)


def test_a_wrong_flag_is_named_as_a_flag(refuse: Callable[..., str]) -> None:
    assert "--steps: should be greater than or equal to 1, not 0" in refuse("steps = 5", "--steps", "0")


def test_no_file_and_binary_files(
    refuse: Callable[..., str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", str(tmp_path / "no.toml")]) == 2
    assert "no.toml: there is no such file" in capfd.readouterr().err
    (tmp_path / "job.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not TOML: it is not UTF-8"):
        load_job(tmp_path / "job.toml")


TEXTS = st.text(min_size=1).filter(lambda text: text.strip() and "\0" not in text and text.isprintable())
JOBS = st.fixed_dictionaries(
    {},
    optional={
        "model": TEXTS,
        "data": TEXTS,
        "out": TEXTS,
        "steps": st.integers(1, 10**9),
        "lr": st.floats(1e-300, 1e300),
        "seed": st.integers(0, 2**63 - 1),
        "check": st.booleans(),
        "memory_limit": st.sampled_from(["70GiB", 1024]),
        "processes": st.integers(1, 9),
        "plan": TEXTS,
    },
)


@given(JOBS)
@settings(max_examples=60, deadline=None)
def test_a_printed_job_reads_back_to_the_same(job: dict[str, object]) -> None:
    part = check_job(job, {key: key for key in job})
    again = check_job(tomllib.loads(job_text(part)), {})
    assert again == part


def test_flags_win_over_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "job.toml"
    file.write_text("model = 'm'\nsteps = 7\nlr = 1e-2\npp = 3\ncheck = false\nresume = true\n")
    assert main(["train", "other", "--config", str(file), "--steps", "9", "--processes", "2", "--print-config"]) == 0
    printed = capfd.readouterr().out
    (tmp_path / "again.toml").write_text(printed)
    part = load_job(tmp_path / "again.toml")
    assert (part.model, part.steps, part.lr, part.processes, part.pp) == ("other", 9, 0.01, 2, None)
    assert (part.check, part.resume) == (False, True)
    assert main(["train", "--config", str(file), "--check", "--no-resume", "--print-config"]) == 0
    found = tomllib.loads(capfd.readouterr().out)
    assert (found["check"], found["resume"], found["pp"]) == (True, False, 3)


def test_the_schema_of_a_job_is_json_schema(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--print-schema"]) == 0
    schema = json.loads(capfd.readouterr().out)
    assert schema == job_schema()
    assert schema["additionalProperties"] is False
    assert schema["properties"].keys() == JobPart.model_fields.keys()
    assert all(key["description"] for key in schema["properties"].values())
    assert schema["properties"]["lr"]["exclusiveMinimum"] == 0


def test_every_key_is_a_flag(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capfd.readouterr().out
    for key in JobPart.model_fields:
        if key not in ("format_version", "model"):
            assert f"--{key.replace('_', '-')}" in text


def test_file_and_api_have_the_same_defaults() -> None:
    part = JobPart(model="m", data="d", out="o")
    settings = job_settings(part)
    job = Job(**settings)
    for item in fields(Job):
        if item.name in settings and item.default is not MISSING:
            assert settings[item.name] == item.default, item.name
    assert {item.name for item in fields(Job)} - settings.keys() == {"measure_again"}
    assert job.data == Path("d")


def test_a_job_file_trains(make_model: Callable[..., Path], text: Path, tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text(
        f"model = '{make_model()}'\ndata = '{text}'\nout = '{tmp_path / 'run'}'\nsteps = 3\n"
        "global_batch_size = 4\nmicro_batch_size = 2\nseq_length = 32\nprocesses = 1\ncheck = false\n"
    )
    assert main(["train", "--config", str(file), "--steps", "2", "--json"]) == 0
    assert [own.step for own in load_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
