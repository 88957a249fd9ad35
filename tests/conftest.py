"""What tests share: tiny models, a little text, one fork server for all ranks of a session, turns between workers."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from evenflow.launch import ForkServer, shared_server

TINY_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 384,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}


BRIEF = Path(__file__).with_name("brief")
BRIEF_S = 0.5
TURNS = "EVENFLOW_TESTS_TURNS"  # the folder whose locks the workers of one `pytest -n` take turns by

# Files that take more than twenty seconds, the longest first. Each runs whole on one worker: one that began last would
# leave the other worker without work for as long as it takes.
LONGEST = (
    "faults/test_faults.py", "parity/test_whole.py", "benchmarks/test_peers.py", "faults/test_lost_ranks.py",
    "docs/test_commands.py", "execute/test_predicted_memory.py", "launch/test_scripts.py", "models/test_functions.py",
    "rehearse/test_rehearse.py", "hosts/test_two_hosts.py", "search/test_planner.py", "faults/test_two_runs.py",
    "parity/test_tensor_parallel.py", "models/test_shards.py", "faults/test_signals.py", "export/test_torch_script.py",
    "faults/test_soak.py", "train/test_tensor_parallel.py", "measure/test_measure.py", "train/test_axes.py",
    "faults/test_real_disks.py", "faults/test_torchrun_restarts.py", "faults/test_disks.py",
    "parity/test_transports.py",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Only `make gpu` computes on GPUs: what other tests say of cores holds for ranks on processors."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"  # of tests that compute by themselves: else workers' threads wait for cores
        os.environ["OMP_WAIT_POLICY"] = "passive"  # and those of ranks that have several leave a core while they wait
    if _hands_out(config):
        os.environ[TURNS] = tempfile.mkdtemp(prefix="evenflow-turns-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if _hands_out(config):
        shutil.rmtree(os.environ.pop(TURNS, ""), ignore_errors=True)


def _hands_out(config: pytest.Config) -> bool:
    """Whether this is the process of `pytest -n` that runs no test itself; its workers inherit its environment."""
    return bool(getattr(config.option, "numprocesses", None)) and "PYTEST_XDIST_WORKER" not in os.environ


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Workers take up files in the order of collection; each test stays in its file's order."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        turns = {Path(__file__).parent / name: turn for turn, name in enumerate(LONGEST)}
        items.sort(key=lambda item: turns.get(item.path, len(turns)))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    """A test marked `alone` runs while no other worker's does. First of all hooks, so that waiting is in no timeout."""
    with ExitStack() as held:
        if "PYTEST_XDIST_WORKER" in os.environ and (folder := os.environ.get(TURNS)):
            alone = item.get_closest_marker("alone") is not None
            # Whoever waits for the room holds the door: those inside could go in again before one who wants it alone.
            with _locked(Path(folder) / "door", fcntl.LOCK_EX):
                held.enter_context(_locked(Path(folder) / "room", fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        return (yield)


@contextmanager
def _locked(file: Path, kind: int) -> Iterator[None]:
    with file.open("a") as own:
        fcntl.flock(own, kind)
        try:
            yield
        finally:
            fcntl.flock(own, fcntl.LOCK_UN)  # a process that the test forked may still have the file open


@pytest.fixture(scope="session")
def server() -> ForkServer:
    """The process that forks ranks; it ends with the session."""
    return shared_server()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Profiles measured by tests are brief ones (`tests/brief`) and stay out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "measure-s").write_text(str(BRIEF_S))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("EVENFLOW_TESTS_MEASURE_S", str(folder / "measure-s"))
        patch.setenv("EVENFLOW_TESTS_MODELS", json.dumps([TINY_LLAMA, {**TINY_LLAMA, "num_hidden_layers": 6}]))
        patch.syspath_prepend(BRIEF)  # the fork server is given this path
        patch.setenv("PYTHONPATH", str(BRIEF), prepend=os.pathsep)  # and other processes this one
        yield


@pytest.fixture
def measured_at_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For what has to hold of seconds: layers are timed as long as for a user, and no brief profile is in the cache."""
    file = Path(os.environ["EVENFLOW_TESTS_MEASURE_S"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file.write_text("")
    yield
    file.write_text(str(BRIEF_S))


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Make a model directory with a config.json: tiny Llama with some settings changed."""

    def make(**changes: Any) -> Path:
        folder = tmp_path / "tiny-llama"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**TINY_LLAMA, **changes}))
        return folder

    return make


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text file of some thousand tokens."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {number}: {number * number} is the square of {number}\n" for number in range(800)))
    return path
