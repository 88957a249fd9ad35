"""Why: a slip of the hand in a job, plan, profile or cluster file is refused at once, by the key, in one line.

Each edit goes through the command line. What a reader lets through must be harmless: the command works, with finite
figures, or says that nothing fits.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from evenflow.cli import main
from evenflow.files import plan_json, profile_json
from evenflow.models import ModelSource, describe_model, find_model
from evenflow.spec import Model, this_machine
from evenflow.train import planning
from evenflow.train import run as train_run
from tests.conftest import TINY_LLAMA
from tests.files.mutations import Mutation, mutated, mutations
from tests.files.samples import sample_plan, sample_profile

REFUSED_S = 1.0
EXAMPLES = 60
PLAN = plan_json(sample_plan(2, 2, 2))
CLUSTER: dict[str, Any] = {
    "name": "lab",
    "nodes": [{"count": 1, "devices": 2, "device": "fast", "memory": "40GiB"}, {"devices": 2, "device": "fast"}],
    "links": {"node_gbytes_per_s": 100.0, "network_gbytes_per_s": 1.25},
    "devices": {"fast": {"like": "A100-80GB", "half_tflops": 400, "memory": "40GiB", "memory_gbytes_per_s": 1500.0}},
}


class Accepted(Exception):
    """A job has passed all that is asked before its text is read."""


@dataclass
class Answer:
    """What the command line made of a file."""

    code: int
    out: str
    err: str
    seconds: float


@dataclass
class Reader:
    """A kind of file, and the command that reads it.

    Attributes:
        file: where each edit is written.
        data: the good file.
        command: the command line.
        values: keys whose value is what a message names, since it is a name itself.
        follows: how a message begins of what follows from several keys, each right by itself.
    """

    file: Path
    data: dict[str, Any]
    command: list[str]
    values: tuple[str, ...] = ()
    follows: str = "^$"

    @property
    def as_toml(self) -> bool:
        return self.file.suffix == ".toml"

    def run(self) -> Answer:
        out, err = io.StringIO(), io.StringIO()
        began = time.process_time()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = main(self.command)
            except Accepted:
                code = 0
        return Answer(code, out.getvalue(), err.getvalue(), time.process_time() - began)

    def read(self, mutation: Mutation) -> Answer:
        """The answer to one edit; one that took long is asked for again, since this machine may have been busy."""
        self.file.write_text(mutated(self.data, mutation, self.as_toml))
        answer = self.run()
        return answer if answer.seconds < REFUSED_S else self.run()


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} in the output")


def names_it(said: str, mutation: Mutation, reader: Reader) -> bool:
    """Whether a refusal says where: a line, the key or what it is in, its value where that is a name."""
    if re.search(rf"\bline \d+|{reader.follows}", said):
        return True
    words = said.replace("-", "_")
    path = [part for part in mutation.path if isinstance(part, str)]
    if mutation.kind == "misspell" and re.search(rf"\b{mutation.key[:-1]}\b", words):
        return True
    if any(key.rstrip("s") in words for key in path):
        return True
    return bool(set(path) & set(reader.values)) and str(mutation.value)[:40] in said


def check(reader: Reader, mutation: Mutation) -> None:
    answer = reader.read(mutation)
    assert answer.code in (0, 2, 4), answer
    if answer.code == 0:
        if "--json" in reader.command:
            json.loads(answer.out, parse_constant=no_constant)
        return
    said = answer.err.removesuffix("\n")
    assert answer.out == ""
    assert said.isprintable(), said  # one line, and nothing that a terminal would obey
    assert len(said) < 1200
    assert "Traceback" not in said
    assert answer.seconds < REFUSED_S, (answer.seconds, said)
    assert answer.code == 4 or names_it(said, mutation, reader), (mutation, said)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(TINY_LLAMA))
    return folder


@pytest.fixture(scope="module", autouse=True)
def described(model: Path) -> Iterator[None]:
    """The same small model each time: tracing it is half a second, which no edit of these files changes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "describe_model", cache_of(planning.describe_model))
        patch.setattr(train_run, "describe_model", cache_of(train_run.describe_model))
        yield


def cache_of(describe: Callable[..., Model]) -> Callable[..., Model]:
    found: dict[tuple[object, ...], Model] = {}

    def cached(source: ModelSource, *shape: object) -> Model:
        key = (json.dumps(source.config.to_dict(), default=str), *shape)
        if key not in found:
            found[key] = describe(source, *shape)
        return found[key]

    return cached


def plan_of(model: Path, *more: str) -> list[str]:
    shape = ["--global-batch-size", "8", "--micro-batch-size", "2", "--seq-length", "32"]
    return ["plan", str(model), *shape, "--json", *more]


@pytest.fixture(scope="module")
def readers(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Reader]]:
    """The four kinds of file, each good as it is."""
    folder = tmp_path_factory.mktemp("files")
    text = folder / "text.txt"
    text.write_text("some text\n" * 200)
    described = describe_model(find_model(str(model)), 2, 32, 1, "fp32")
    profile = profile_json(replace(sample_profile(described), processes=2, threads=1, machine=this_machine()))
    job = {
        "format_version": 6, "model": str(model), "data": str(text), "out": str(folder / "run"), "steps": 20,
        "global_batch_size": 8, "micro_batch_size": 2, "seq_length": 32, "lr": 1e-3, "lr_schedule": "wsd",
        "warm_up": 2, "decay": 3, "beta1": 0.9, "clip_norm": 1.0, "dtype": "fp32", "processes": 2, "pp": 2, "dp": 1,
        "zero": 0, "threads": 1, "schedule": "1f1b", "recompute": "none", "memory_limit": "1GiB", "check": False,
        "packing": "stream", "eval_every": 5, "eval_share": 0.1, "stop_at": 10, "restarts": 2, "save_every": 5,
        "keep_last": 1, "resume": False,
    }  # fmt: skip
    files = {kind: folder / f"{kind}.json" for kind in ("plan", "profile")}
    files |= {kind: folder / f"{kind}.toml" for kind in ("job", "cluster")}
    cluster = plan_of(model, "--cluster", str(files["cluster"]))
    timed = plan_of(model, "--pp", "2", "--profile", str(files["profile"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # an edited path is mostly a relative one
        patch.setattr(train_run, "prepare_text", accept)
        yield {
            "plan": Reader(
                files["plan"], PLAN, ["simulate", str(files["plan"]), "--json"], (), r"its program: rank \d+: "
            ),
            "profile": Reader(files["profile"], profile, timed),
            "cluster": Reader(files["cluster"], CLUSTER, cluster, (), r"\d+ stages need at least"),
            "job": Reader(files["job"], job, ["train", "--config", str(files["job"])], ("model", "data", "out")),
        }


def accept(*_: object) -> None:
    raise Accepted


@pytest.mark.parametrize("kind", ["job", "plan", "profile", "cluster"])
def test_any_slip_is_refused_within_a_second_by_its_key(readers: dict[str, Reader], kind: str) -> None:
    reader = readers[kind]
    whole = reader.read(Mutation("none", ()))  # and what it needs is imported before seconds are counted
    assert whole.code == 0, whole.err

    @settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True)
    @given(mutation=mutations(reader.data, null=not reader.as_toml))
    def each(mutation: Mutation) -> None:
        check(reader, mutation)

    each()
