"""The bad day, with real processes and real signals: killed ranks, Ctrl-C, and too little memory."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoModelForCausalLM

from evenflow.files import load_ranks

EVENFLOW = [sys.executable, "-m", "evenflow.cli"]


@pytest.fixture
def start(make_model: Callable[..., Path], text: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start `evenflow train` in a process group of its own; it must be gone at the end."""
    started: list[subprocess.Popen[str]] = []

    def run(*options: object, **popen: Any) -> subprocess.Popen[str]:
        options = {
        "data": text, "out": tmp_path / "run", "steps": 3, "processes": processes,
        "global-batch-size": 8, "micro-batch-size": 1, "seq-length": 32,
    }  # fmt: skip

    command = [*EVENFLOW, "train", str(make_model(**BIG)), "--no-check"]
    done = subprocess.run(
        [*command, *(part for name, value in options.items() for part in (f"--{name}", str(value)))],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    if code:
        last = done.stderr.strip().splitlines()[-1]
        assert "rank 0" in last
        assert "out of memory" in last
        assert "Traceback" not in done.stderr
    else:
        assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
