"""The guard of the Python API: what `import evenflow` promises, no more and no less, and quickly."""

from __future__ import annotations

import subprocess
import sys
import types

import evenflow

PROMISED = {
    "functions": {"check", "compare", "describe", "parse_cluster", "plan", "profile", "simulate", "train"},
    "values": {
        "Batch", "Cluster", "Comparison", "Costs", "Device", "Event", "Layer", "Machine", "Model", "Operator",
        "Plan", "Profile", "Program", "Timeline",
    },
    "errors": {
        "EvenflowError", "FaultError", "ImpossibleError", "InputError", "PeerLostError", "ProgramError",
        "StoppedError",
    },
}  # fmt: skip


def test_the_api_is_what_was_promised() -> None:
    assert set(evenflow.__all__) == set().union(*PROMISED.values()) | {"__version__"}
    assert all(isinstance(getattr(evenflow, name), types.FunctionType) for name in PROMISED["functions"])
    assert all(isinstance(getattr(evenflow, name), type) for name in PROMISED["values"] | PROMISED["errors"])
    assert all(issubclass(getattr(evenflow, name), evenflow.EvenflowError) for name in PROMISED["errors"])


def test_everything_in_it_is_documented() -> None:
    for name in PROMISED["functions"] | PROMISED["values"] | PROMISED["errors"]:
        assert getattr(evenflow, name).__doc__, name


def test_importing_rooms_leaves_the_functions_in_place() -> None:
    script = (
        "import evenflow, evenflow.plan, evenflow.simulate, evenflow.train\n"
        "from evenflow.train import Job\n"
        "assert all(callable(f) for f in (evenflow.plan, evenflow.simulate, evenflow.train))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_importing_it_imports_no_torch() -> None:
    script = "import sys, evenflow; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
