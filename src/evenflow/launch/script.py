"""Writes the bash script that starts a job's plan: torchrun on the nodes at hand, or as a batch job of Slurm.

What both share: they go to where `evenflow launch` ran, since a job's paths are taken from there; go on from the newest
checkpoint where there is one; and give the run as long to save as its plan needs, in place of torchrun's 30 seconds.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from evenflow.errors import InputError
from evenflow.launch.spread import Spread

TARGETS = ("torchrun", "slurm")

_TIME = re.compile(r"(?:(?P<days>\d{1,3})-)?(?P<hours>\d{1,3}):(?P<minutes>\d{2}):(?P<seconds>\d{2})")
_MOST_SIGNAL_S = 65535  # sbatch --signal
_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Start:
    """A job to be started.

    Attributes:
        job: its file, absolute.
        out: its RUN, as the job says it.
        folder: where its paths are taken from, absolute.
        python: the interpreter that has evenflow, on every node.
        spread: nodes and processes.
        restarts: how often torchrun starts workers that it lost again.
    """

    job: Path
    out: Path
    folder: Path
    python: Path
    spread: Spread
    restarts: int = 3


def torchrun_script(start: Start) -> str:
    """A script to be run on every node; with several, each is told the first one's name."""
    spread = start.spread
    if spread.nodes == 1:
        return _joined(
            f"# evenflow launch --to torchrun: {_processes(spread)}.",
            _settings(start),
            _RESUME,
            _command("exec", start, "--standalone"),
        )
    usage = f'head=${{1:?"usage: $0 HOST, the same on each of {spread.nodes} nodes, HOST being the first of them"}}'
    rendezvous = '--rdzv-backend c10d --rdzv-endpoint "$head:${2:-29500}" --rdzv-id evenflow'
    return _joined(
        f"# evenflow launch --to torchrun: {_processes(spread)}. Run it on each node: ./SCRIPT HOST [PORT]",
        usage,
        _settings(start),
        _RESUME,
        _command("exec", start, f"--nnodes {spread.nodes} {rendezvous}"),
    )


def slurm_script(start: Start, time: str) -> str:
    """A script for `sbatch`; its options on the command line win over those here.

    Args:
        start: the job.
        time: the limit, as [DAYS-]HOURS:MINUTES:SECONDS.

    Raises:
        InputError: the limit is not understood, or too short to save anything.
    """
    spread = start.spread
    limit, margin = _seconds(time), spread.stop_s
    if margin > min(limit // 2, _MOST_SIGNAL_S):
        raise InputError(
            f"--time {time}: stopping and saving this plan may take {margin} s, and a run should last longer than "
            f"that; {_clock(4 * margin)} would do"
        )
    options = [
        f"--job-name={_NAME.sub('-', start.out.name) or 'evenflow'}",
        f"--nodes={spread.nodes}",
        "--ntasks-per-node=1",
        *([f"--gpus-per-node={spread.per_node}"] if spread.is_gpu else []),
        f"--cpus-per-task={spread.per_node * spread.threads}",
        f"--time={time}",
        f"--signal=B:TERM@{margin}",
        "--requeue",
        "--open-mode=append",
        "--output=%x-%j.log",
    ]
    rendezvous = '--rdzv-backend c10d --rdzv-endpoint "$head:$port" --rdzv-id "$SLURM_JOB_ID-$starts"'
    srun = 'srun --wait=120 --cpus-per-task="$SLURM_CPUS_PER_TASK"'
    return _joined(
        "\n".join(f"#SBATCH {option}" for option in options),
        f"# evenflow launch --to slurm: {_processes(spread)}. Start it with sbatch, and --partition or --account",
        _settings(start),
        _SLURM_TRAP,
        _SLURM_BEGIN,
        _RESUME,
        _SLURM_START,
        _command(srun, start, f"--nnodes {spread.nodes} {rendezvous}") + " &\n" + _SLURM_END,
    )


def _settings(start: Start) -> str:
    """Where everything is, and how long torchrun leaves the ranks to save."""
    patience = start.spread.stop_s - 60
    return "\n".join(
        [
            "set -euo pipefail",
            f"cd {shlex.quote(str(start.folder))}",
            f"job={shlex.quote(str(start.job))}",
            f"out={shlex.quote(str(start.out))}",
            f"python=${{EVENFLOW_PYTHON:-{shlex.quote(str(start.python))}}}",
            f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={patience}  # torchrun would end ranks that save after 30 s",
        ]
    )


_RESUME = """\
# What has saved its state goes on from there; what was started and saved nothing begins anew, its files set aside.
resume=()
if (cd "$out/checkpoints" 2>/dev/null && compgen -G 'step-*' >/dev/null); then
    resume=(--resume)
elif [[ -e $out && ${starts:-0} -gt 0 ]]; then
    mv "$out" "$out.unsaved-$starts"
fi"""

_SLURM_BEGIN = """\
starts=${SLURM_RESTART_COUNT:-0}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts%%$'\\n'*}
port=$((29500 + SLURM_JOB_ID % 1000))"""

_SLURM_TRAP = """\
# Slurm tells this script alone that time is nearly up; srun hands it on, and the run saves and stops.
stopping=no handed_on=no step=
trap 'stopping=yes; echo "time is nearly up: saving, to go on later"; hand_on' TERM
hand_on() {
    if [[ -n $step ]]; then
        handed_on=yes
        kill -TERM "$step" || true
    fi
}"""

_SLURM_START = """\
if [[ $stopping == yes ]]; then  # before there was anything to save
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi"""

_SLURM_END = """\
step=$!
if [[ $stopping == yes && $handed_on == no ]]; then  # asked when there was nothing yet to hand it on to
    hand_on
fi
code=0
wait "$step" || code=$?
while [[ $stopping == yes ]] && kill -0 "$step" 2>/dev/null; do
    code=0
    wait "$step" || code=$?
done
if [[ $stopping == yes && $code -ne 0 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code\""""


def _command(before: str, start: Start, nodes: str) -> str:
    options = f"{nodes} --nproc-per-node {start.spread.per_node} --max-restarts {start.restarts}"
    return (
        f'{before} "$python" -m torch.distributed.run \\\n    {options} \\\n'
        '    -m evenflow train --config "$job" "${resume[@]}"'
    )


def _joined(*parts: str) -> str:
    return "#!/usr/bin/env bash\n" + "\n\n".join(parts) + "\n"


def _processes(spread: Spread) -> str:
    nodes = "1 node" if spread.nodes == 1 else f"{spread.nodes} nodes"
    return f"{spread.nodes * spread.per_node} processes on {nodes}, one a device"


def _seconds(time: str) -> int:
    found = _TIME.fullmatch(time)
    if found is None:
        raise InputError(f"--time {time!r} is not understood; 24:00:00 or 7-00:00:00 would be")
    parts = {name: int(text or 0) for name, text in found.groupdict().items()}
    return ((parts["days"] * 24 + parts["hours"]) * 60 + parts["minutes"]) * 60 + parts["seconds"]


def _clock(seconds: int) -> str:
    return f"{seconds // 3600:02}:{seconds % 3600 // 60:02}:{seconds % 60:02}"
