"""A file that is wrong by itself is refused by a fresh command before it imports torch, which takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Says at exit which of the libraries that take long it has imported, and the seconds that it has computed.
COMMAND = (
    "import json, sys, time; from evenflow.cli import main; code = main(sys.argv[1:]); "
    "heavy = sorted({'torch', 'transformers', 'tokenizers'} & sys.modules.keys()); "
    "print(json.dumps({'heavy': heavy, 'computed_s': time.process_time()})); sys.exit(code)"
)
COMPUTED_S = 1.0  # of one core, interpreter and all: what else runs on this machine has no part in it
WAITED_S = 30.0


def profile(folder: Path) -> tuple[list[str], str]:
    (folder / "bad-profile.json").write_text('{"format_version": 3}')
    return ["plan", "MODEL", "--profile", "bad-profile.json"], "bad-profile.json"


def cluster(folder: Path) -> tuple[list[str], str]:
    (folder / "bad.toml").write_text('[[nodes]]\ncount = 2\ndevices = -8\ndevice = "A100-80GB"\n')
    return ["plan", "MODEL", "--cluster", "bad.toml"], "bad.toml: nodes.0.devices"


def plan(folder: Path) -> tuple[list[str], str]:
    (folder / "bad-plan.json").write_text(json.dumps({"format_version": 1, "stages": "all"}))
    return ["train", "MODEL", "--data", "text.txt", "--out", "run", "--plan", "bad-plan.json"], "bad-plan.json"


def job(folder: Path) -> tuple[list[str], str]:
    (folder / "job.toml").write_text('data = "text.txt"\nout = "run"\nsteps = "many"\n')
    return ["train", "MODEL", "--config", "job.toml"], "job.toml: steps"


def plan_of_job(folder: Path) -> tuple[list[str], str]:
    (folder / "bad-plan.json").write_text("no plan")
    (folder / "job.toml").write_text('data = "text.txt"\nout = "run"\nplan = "bad-plan.json"\n')
    return ["train", "MODEL", "--config", "job.toml"], "bad-plan.json"


def plan_to_rehearse(folder: Path) -> tuple[list[str], str]:
    (folder / "bad-plan.json").write_text(json.dumps({"format_version": 1, "stages": "all"}))
    return ["rehearse", "bad-plan.json", "--rank", "0"], "bad-plan.json"


def not_there(folder: Path) -> tuple[list[str], str]:
    return ["train", "MODEL", "--data", "text.txt", "--out", "run", "--plan", "nowhere.json"], "nowhere.json"


@pytest.mark.parametrize(
    "bad", [profile, cluster, plan, job, plan_of_job, plan_to_rehearse, not_there], ids=lambda own: own.__name__
)
def test_a_bad_file_is_refused_before_torch_is_imported(
    bad: Callable[[Path], tuple[list[str], str]], make_model: Callable[..., Path], text: Path
) -> None:
    folder, model = text.parent, make_model()
    arguments, says = bad(folder)
    given = [str(model) if own == "MODEL" else own for own in arguments]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *given], cwd=folder, capture_output=True, text=True, timeout=WAITED_S
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"evenflow {arguments[0]}: ")
    assert says in line
    found = json.loads(done.stdout)
    assert found["heavy"] == []
    assert found["computed_s"] < COMPUTED_S
    assert not (folder / "run").exists()
