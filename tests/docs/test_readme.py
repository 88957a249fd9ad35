"""The README's commands are run too: those of seconds in CI, the demo and what trains on its model by `make parity`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from evenflow.cli import COMMANDS
from evenflow.cli.demo import DEMO_CONFIG
from tests.conftest import TINY_LLAMA
from tests.docs.readme import README, Shown, readme_blocks, readme_commands
from tests.docs.running import Ended, parse_command, run_command

NOT_RUN = {
    "make demo": "builds .venv; what it runs then is the first command of the list",
    "torchrun --nnodes 2": "needs two hosts; tests/hosts runs it on two network namespaces",
}
STANDS_FOR = {"MODEL": "./my-model", "PATH": "notes.jsonl", "RUN": "runs/start"}
IN_SECONDS = ("Plan for machines that you do not have", "Wrong input")


def _section(name: str) -> list[Shown]:
    found = [own for own in readme_commands() if own.section == name]
    assert found, name
    return found


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the commands read, of the demo's model its configuration alone; `evenflow` is found there."""
    for name in ("docs", "src"):
        (tmp_path / name).symlink_to(README.parent / name)
    (tmp_path / "lab.toml").write_text(readme_blocks("toml")[0])
    model = tmp_path / "runs" / "demo" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(DEMO_CONFIG))
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "evenflow"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m evenflow "$@"\n')
    program.chmod(0o755)
    path = [str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(shown: Shown, capfd: pytest.CaptureFixture[str]) -> Ended:
    words = [STANDS_FOR.get(word, word) for word in shown.command.split(" ")]
    return run_command(" ".join(words), capfd)


def _works(section: str, capfd: pytest.CaptureFixture[str]) -> None:
    for shown in _section(section):
        if not shown.command.startswith(tuple(NOT_RUN)):
            ended = _run(shown, capfd)
            assert ended.code == 0, f"{shown.command}\n{ended.err[-2000:]}"
            assert not shown.said or ended.out.strip() == shown.said, shown.command


@pytest.mark.slow
def test_planning_for_machines_that_are_not_here(clone: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _works("Plan for machines that you do not have", capfd)
    assert json.loads((clone / "plan.json").read_text())["model"] == "gpt3-175b"


@pytest.mark.slow
def test_wrong_input_is_refused_in_the_words_of_the_readme(clone: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command("evenflow plan runs/demo/model --out plan.json", capfd).code == 0
    plan = json.loads((clone / "plan.json").read_text())
    plan["stages"][0]["forward_s"] = -1
    (clone / "edited.json").write_text(json.dumps(plan))
    codes = []
    for shown in _section("Wrong input"):
        ended = _run(shown, capfd)
        assert ended.err == " ".join(shown.said.split()) + "\n"
        assert ended.out == ""
        codes.append(ended.code)
    assert codes == [2, 2, 2, 4, 2]


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_the_demo_and_everything_after_it(clone: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Section by section, in one folder; minutes."""
    shutil.rmtree(clone / "runs" / "demo")
    _works("Commands", capfd)
    _make_own_model(clone, capfd)
    sections = dict.fromkeys(own.section for own in readme_commands() if own.section not in ("Commands", *IN_SECONDS))
    for section in sections:
        if section == "A job file":  # an example of its own, with the folder of the one before
            shutil.rmtree(clone / "runs" / "tuned")
        _works(section, capfd)
    (python,) = readme_blocks("python")
    exec(compile(python, "README.md", "exec"), {"__name__": "__main__"})


def _make_own_model(clone: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`my-model` with weights and tokenizer, small enough to be trained in seconds, and notes."""
    (clone / "tiny").mkdir()
    (clone / "tiny" / "config.json").write_text(json.dumps({**TINY_LLAMA, "vocab_size": 1000}))
    ended = run_command("evenflow train tiny --data docs --out runs/tiny --steps 1 --seq-length 64", capfd)
    assert ended.code == 0, ended.err[-2000:]
    (clone / "runs" / "tiny" / "model").rename(clone / "my-model")
    lines = [f'{{"text": "Q: what is {own} and {own}? A: {2 * own}"}}\n' for own in range(1, 2000)]
    (clone / "notes.jsonl").write_text("".join(lines))


def test_what_is_not_run_is_parsed() -> None:
    left = [own.command for own in readme_commands() if own.command.startswith(tuple(NOT_RUN))]
    assert len(left) == 3
    for command in left:
        parse_command(command)


def test_each_command_has_an_example() -> None:
    shown = [own.command for own in readme_commands()]
    missing = [name for name in COMMANDS if not any(f"evenflow {name}" in own for own in shown)]
    assert missing == ["launch"]  # shown within a sentence, and run on its page
