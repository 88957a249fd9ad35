"""On a GPU (`make gpu`): split equals whole, ranks share one device, and what is measured there is sane."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from evenflow.cli import main
from evenflow.files import load_plan
from evenflow.runtime import CudaClock, CudaMemoryMeter, InMemoryNetwork, StagedTransport, use_device
from evenflow.spec.gpus import visible_gpus
from evenflow.units import format_bytes
from tests.parity.conftest import SplitRun
from tests.parity.test_whole import WIDE, cut, place_stages, whole_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here, or not run by `make gpu`"),
]
# What torch's allocator holds for cuBLAS beside tensors; no plan knows of it.
WORKSPACE_BYTES = 72 * 2**20


@pytest.fixture(scope="module", autouse=True)
def _device() -> Iterator[None]:
    use_device(torch.device("cuda", 0), deterministic=True)
    yield
    torch.use_deterministic_algorithms(False)


@cache
def _whole(microbatches: int) -> tuple[float, dict]:
    return whole_model(WIDE, 3, microbatches, (2, 16), "cuda")


def _check(run: SplitRun, microbatches: int) -> None:
    loss, gradients = _whole(microbatches)
    assert run.losses[0] == pytest.approx(loss, rel=1e-6)
    assert run.gradients.keys() == gradients.keys()
    for name, expected in gradients.items():
        error = torch.linalg.vector_norm(run.gradients[name].cpu() - expected) / torch.linalg.vector_norm(expected)
        assert error <= 1e-6, name


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1", "zb-v", "auto"])
def test_equals_transformers_where_ranks_share_a_gpu(
    run_split: Callable[..., SplitRun], schedule: str, ranks: int
) -> None:
    if ranks == 1 and schedule != "1f1b":
        pytest.skip("one rank has one order")
    placed = place_stages(schedule, "own", ranks)
    run = run_split(WIDE, cut(8, len(placed)), placed, microbatches=5, schedule=schedule, gpus=1)
    _check(run, 5)
    assert all(made > 0 for made in run.host_buffers) == (ranks > 1), "several ranks on a GPU are staged"


def test_schedules_give_the_same_weights(run_split: Callable[..., SplitRun]) -> None:
    first, *others = (
        run_split(WIDE, cut(8, len(placed)), placed, microbatches=5, steps=5, schedule=schedule, gpus=1)
        for schedule, placed in (
            (schedule, place_stages(schedule, "own", ranks))
            for schedule, ranks in (("1f1b", 1), ("1f1b", 2), ("zb-h1", 2), ("zb-v", 4))
        )
    )
    for other in others:
        assert other.losses == first.losses
        assert all(torch.equal(other.weights[name], own) for name, own in first.weights.items())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs two GPUs, and they are not here")
@pytest.mark.parametrize("schedule", ["1f1b", "zb-v", "interleaved"])
def test_equals_transformers_over_nccl(run_split: Callable[..., SplitRun], schedule: str) -> None:
    ranks = min(torch.cuda.device_count(), 4)
    placed = place_stages(schedule, "own", ranks)
    run = run_split(WIDE, cut(8, len(placed)), placed, microbatches=5, schedule=schedule, gpus=ranks, transport="nccl")
    _check(run, 5)


def test_train_on_the_gpu_stops_and_goes_on(
    make_model: Callable[..., Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """End to end with two ranks on one GPU or two; the model is large enough that its state is most of its memory."""
    model, out = make_model(hidden_size=512, intermediate_size=2048, num_hidden_layers=8), tmp_path / "run"
    shape = ["--global-batch-size", "8", "--micro-batch-size", "2", "--seq-length", "64", "--processes", "2"]
    command = ["train", str(model), "--data", str(text), "--out", str(out), "--steps", "6", *shape]
    assert main([*command, "--stop-at", "3"]) == 0
    assert main([*command, "--resume"]) == 0
    plan = load_plan(out / "plan.json")
    assert plan.device == visible_gpus()[0].name
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["loss"] < lines[0]["loss"]
    for rank, peak in enumerate(max(own) for own in zip(*(line["peak_bytes"] for line in lines), strict=True)):
        predicted = plan.ranks[rank].peak_bytes
        with capsys.disabled():
            print(f"\nrank {rank}: {format_bytes(peak)} allocated at the peak, {format_bytes(predicted)} predicted")
        assert 0.5 * predicted < peak <= 1.05 * predicted + WORKSPACE_BYTES
    assert (out / "model" / "config.json").is_file()


def test_spans_of_the_stream_lie_within_those_of_the_host() -> None:
    clock, left = CudaClock(), torch.randn(2048, 2048, device="cuda")
    left @ left  # cuBLAS starts
    torch.cuda.synchronize()
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(4):
            clock.mark()
            _product = left @ left
            clock.mark()
        moments = clock.read()
        ended = time.perf_counter()
        assert moments == sorted(moments)
        assert began - 1e-3 <= moments[0] <= moments[-1] <= ended
        assert moments[-1] > moments[0]


def test_the_meter_counts_this_process_alone() -> None:
    device = torch.device("cuda", 0)
    kept = torch.zeros(2**20, device=device)
    meter = CudaMemoryMeter(device)
    passing = torch.zeros(2**21, device=device)
    del passing
    assert meter.peak_bytes() == 2**23
    assert meter.reserved_bytes() >= 2**23 + kept.nbytes
    meter.mark()
    assert meter.peak_bytes() == 0


def test_staged_tensors_are_made_before_they_are_read() -> None:
    """A send right after the kernels that make the tensor, and one that is overwritten at once after it."""
    device, network = torch.device("cuda", 0), InMemoryNetwork(2, timeout_s=5)
    sender, receiver = (StagedTransport(network.transport(rank), device) for rank in (0, 1))
    left = torch.randn(1024, 1024, device=device)
    for _ in range(20):
        tensor = (left @ left) @ left
        expected = tensor.clone()
        send = sender.send(tensor, 1, 0)
        tensor.zero_()
        buffer = torch.empty_like(expected)
        receive = receiver.receive(buffer, 0, 0)
        receive.wait()
        send.wait()
        assert torch.equal(buffer, expected)
    assert (sender.buffers.made, receiver.buffers.made) == (1, 1)
