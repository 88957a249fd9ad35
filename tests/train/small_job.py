"""A job of a tiny model on some lines of text, and the same job by a plan that nothing is timed for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import evenflow
from evenflow.files import save_plan
from evenflow.train import Job
from tests.conftest import TINY_LLAMA


def small_job(folder: Path, **changes: Any) -> Job:
    """A tiny Llama's, whose run is `folder`/run."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(TINY_LLAMA))
    (folder / "text.txt").write_text("".join(f"{n} times {n} is {n * n}\n" for n in range(900)))
    asked: dict[str, Any] = {
        "model": str(folder / "model"), "data": folder / "text.txt", "out": folder / "run", "global_batch_size": 8,
        "micro_batch_size": 2, "seq_length": 32, "learning_rate": 1e-3, "check": False,
    }  # fmt: skip
    return Job(**{**asked, **changes})


def planned(job: Job, **settings: Any) -> Job:
    """The job by a plan with these axes."""
    path = job.out.parent / f"{'-'.join(map(str, settings.values()))}.json"
    save_plan(evenflow.plan(job.model, global_batch_size=8, micro_batch_size=2, seq_length=32, **settings), path)
    return replace(job, plan=path)
