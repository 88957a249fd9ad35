"""A profile holds what was timed: plausible seconds for every layer, link and update, and who measured them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import evenflow
from evenflow.cost import TIMED_PARTS
from evenflow.launch import ForkServer, ThisHost
from evenflow.measure import cached_profile, measure_profile
from evenflow.measure.layers import Repeats, rank_clock, time_layers
from evenflow.models import describe_model, find_model
from evenflow.plan import Axes
from evenflow.runtime import Mesh
from evenflow.spec.cluster import local_cluster
from evenflow.spec.machine import this_machine


@pytest.fixture(scope="module")
def cold_server() -> Iterator[ForkServer]:
    """A fork server as a user has it: what its ranks import they hold themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("EVENFLOW_TESTS_MODELS")
        server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def cold(cold_server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks are forked from that."""
    monkeypatch.setattr("evenflow.launch.client._shared", cold_server)


@pytest.mark.usefixtures("measured_at_length", "cold")
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.full), 3])
def test_a_profile_of_this_machine(make_model: Callable[..., Path], processes: int) -> None:
    profile = evenflow.profile(make_model(), processes, micro_batch_size=2, seq_length=64)
    assert (profile.processes, profile.micro_batch_size, profile.seq_length) == (processes, 2, 64)
    assert profile.machine == this_machine()
    assert profile.torch_version == torch.__version__
    assert len(profile.layers) == 6
    assert len(set(profile.layers[1:5])) == 1, "equal blocks are timed once"
    assert all(layer.forward_s > 0 and layer.backward_s > 0 for layer in profile.layers[1:])
    assert all(layer.norm_s > 0 and layer.optimizer_s > 0 for layer in profile.layers)
    assert profile.link.bytes_per_s > 0
    assert (profile.reduce_s > 0) == (processes > 1)
    assert (profile.sum_link is not None) == (processes > 1)
    assert profile.sum_link is None or 0 < profile.sum_link.bytes_per_s < 1e11
    assert profile.peak_flops > 1e8
    # Threads, libraries' working space and imports; of this tiny model's tensors there would be less than one MiB.
    assert 8 * 2**20 < profile.process_bytes < 256 * 2**20


# Not at length, nor alone: the one takes tens of times as long as the other.
def test_more_work_takes_longer(make_model: Callable[..., Path]) -> None:
    small = evenflow.profile(make_model(), 1, seq_length=16)
    large = evenflow.profile(make_model(hidden_size=256, intermediate_size=1024, vocab_size=4096), 1, seq_length=128)
    assert large.layers[1].backward_s > 2 * small.layers[1].backward_s
    assert large.layers[-1].backward_s > 2 * small.layers[-1].backward_s


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No profile is there yet; the model is that of other tests, which takes seconds to trace."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("empty_cache")
def test_a_cached_profile_is_measured_once_for_one_shape(make_model: Callable[..., Path]) -> None:
    source = find_model(str(make_model()))
    measured: list[str] = []

    def profile_of(seq_length: int, again: bool = False) -> evenflow.Profile:
        model = describe_model(source, 1, seq_length)
        return cached_profile(source, model, local_cluster(1), lambda: measured.append(str(seq_length)), again)

    first = profile_of(16)
    assert profile_of(16) == first
    assert measured == ["16"]
    assert profile_of(32) != first
    assert measured == ["16", "32"]


@pytest.mark.usefixtures("empty_cache")
def test_a_profile_of_a_version_that_mixed_up_ranks_is_measured_again(make_model: Callable[..., Path]) -> None:
    source = find_model(str(make_model()))
    model, measured = describe_model(source, 1, 16), []

    def profile_of() -> evenflow.Profile:
        return cached_profile(source, model, local_cluster(2), lambda: measured.append(1))

    profile_of()
    cached = next((Path(os.environ["XDG_CACHE_HOME"]) / "evenflow" / "profiles").glob(f"{model.fingerprint}-2x*.json"))
    content = json.loads(cached.read_text())
    cached.write_text(json.dumps({**content, "sum_link": None}))
    assert profile_of().sum_link is not None
    assert len(measured) == 2


def test_what_the_caller_raises_ends_the_measuring(make_model: Callable[..., Path]) -> None:
    source = find_model(str(make_model()))

    def stop() -> None:
        raise evenflow.StoppedError("enough", 2)

    with pytest.raises(evenflow.StoppedError, match="enough"):
        measure_profile(source, describe_model(source, 1, 16), local_cluster(2), stop)


def test_ranks_that_share_cores_read_the_processors_time() -> None:
    own, shared = rank_clock(1, has_own_cores=True), rank_clock(1, has_own_cores=False)
    began_own, began_shared = own(), shared()
    time.sleep(0.2)
    assert own() - began_own >= 0.2
    assert shared() - began_shared < 0.1


class _Told(ThisHost):
    """Ranks that are not started: what they would send is given, in the order in which it comes."""

    def __init__(self, *messages: tuple[int, dict[str, Any]]) -> None:
        self._messages = messages

    @contextmanager
    def running(self, *_: Any, **__: Any) -> Iterator[Any]:
        yield SimpleNamespace(messages=lambda: iter(self._messages))


def test_speeds_are_each_ranks_own_whoever_reports_first(make_model: Callable[..., Path]) -> None:
    source = find_model(str(make_model()))
    model = describe_model(source, 1, 16)

    def report(seconds: float) -> dict[str, Any]:
        return {
            "layers": [dict.fromkeys(TIMED_PARTS, seconds)] * len(model.layers), "stage": [0.0, 0.0],
            "peak_flops": 1e9, "link": [1e-5, 1e-9], "adding": [1e-5, 1e9], "reduce_s": 1e-4, "process_bytes": 0,
        }  # fmt: skip

    cluster = replace(local_cluster(2, 1), at_once=2)
    told = _Told((1, report(2.0)), (0, report(1.0)))
    profile = measure_profile(source, model, cluster, launcher=told)
    assert profile.speeds == pytest.approx((1.5, 0.75))
    assert profile.sum_link is not None
    assert profile.sum_link.bytes_per_s == 1e9


class _Disturbed:
    """A clock by which every pass takes a second, and every thirteenth of them 27."""

    def __init__(self) -> None:
        self.now = 0.0
        self.readings = 0

    def __call__(self) -> float:
        self.readings += 1
        self.now += 1.0 if self.readings % 13 else 27.0
        return self.now


def test_seconds_count_disturbances_as_a_step_adds_them_up(make_model: Callable[..., Path]) -> None:
    source = find_model(str(make_model()))
    signatures = [layer.signature for layer in describe_model(source, 1, 8).layers]
    shape = (1, 8, source.config.hidden_size)

    def stage_s(clock: Callable[[], float]) -> float:
        repeats = Repeats(least=10, seconds=0.0)
        return time_layers(
            source.config, signatures, shape, repeats, Mesh(Axes(), Axes().coordinates(0)), clock, lambda: None
        )[1]

    calm = iter(range(10**6))
    assert stage_s(lambda: float(next(calm))) == 1.0
    assert 2.5 < stage_s(_Disturbed()) < 3.5  # the median pass takes 1, the mean one 3
