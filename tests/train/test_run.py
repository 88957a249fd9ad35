"""A whole run on a tiny model: the files it promises, what is in them, and that other tools can use them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import evenflow
from evenflow.cost import Costs
from evenflow.files import load_metrics, load_plan, load_profile, load_ranks, load_timelines, save_plan
from evenflow.program import action_kind
from evenflow.runtime import Mesh
from evenflow.search import equal_split, make_plan
from evenflow.spec import Batch
from evenflow.spec.cluster import local_cluster
from evenflow.timeline import waits
from evenflow.train import Job, RunResult, saved_model_losses
from evenflow.train.ranks import _build
from evenflow.train.sampler import microbatch, sample_ids
from evenflow.train.sequences import Sequences
from evenflow.train.store import TokenStore
from tests.conftest import TINY_LLAMA

METRIC_KEYS = {
    "step", "loss", "grad_norm", "lr", "tokens", "tokens_per_s", "step_s", "idle_fraction", "imbalance", "mfu",
    "peak_bytes",
}  # fmt: skip


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Six steps of a tiny Llama on two processes."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(TINY_LLAMA))
    text = folder / "text.txt"
    text.write_text("".join(f"line {n}: {n * n} is the square of {n}\n" for n in range(800)))
    return Job(
        model=str(folder / "model"),
        data=text,
        out=folder / "run",
        steps=6,
        global_batch_size=8,
        micro_batch_size=2,
        seq_length=32,
        processes=2,
        learning_rate=1e-3,
        seed=4,
        check=False,
    )


@pytest.fixture(scope="module")
def run(job: Job) -> RunResult:
    """The run that others are held against, checked as a user's is."""
    return evenflow.train(replace(job, check=True))


def test_the_run_folder_holds_what_was_promised(run: RunResult) -> None:
    names = {path.name for path in run.out.iterdir()}
    assert names >= {
        "plan.json",
        "profile.json",
        "metrics.jsonl",
        "timeline.json",
        "ranks.json",
        "model",
        "report.html",
    }
    assert "model.partial" not in names
    lines = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line.keys() == METRIC_KEYS for line in lines)
    assert lines[-1]["tokens"] == 6 * 8 * 32
    assert all(len(line["peak_bytes"]) == 2 and min(line["peak_bytes"]) > 0 for line in lines)
    assert load_metrics(run.out / "metrics.jsonl") == run.metrics
    assert load_plan(run.out / "plan.json") == run.plan
    ranks = load_ranks(run.out / "ranks.json")
    assert [process.rank for process in ranks] == [0, 1]
    assert all(not Path(f"/proc/{process.pid}").exists() for process in ranks)


def test_the_timeline_has_no_holes(run: RunResult) -> None:
    stored = load_timelines(run.out / "timeline.json")
    assert stored.measured == run.measured
    assert stored.step is not None
    for rank, own in enumerate(run.measured.ranks):
        assert own.busy_s + own.optimizer_s + sum(wait.seconds for wait in waits(run.measured)[rank]) == pytest.approx(
            own.wall_s
        )
        assert all(event.start_s <= event.end_s for event in own.events)
    assert run.predicted.program == run.measured.program
    assert run.comparison.step_s.measured == pytest.approx(run.measured.step_s)


def test_the_first_loss_is_transformers_own_on_the_same_batch(run: RunResult, job: Job) -> None:
    fresh = evenflow.train(replace(job, out=job.out.parent / "one-step", steps=1, processes=1, learning_rate=1e-30))
    model = AutoModelForCausalLM.from_pretrained(fresh.out / "model")
    store = TokenStore.open(run.out / "tokens")
    ids = sample_ids(job.seed, 1, 8, store.sequences(32))
    with torch.no_grad():
        losses = []
        for index in range(4):
            batch = torch.from_numpy(microbatch(Sequences(store, 32, "stream", False), ids, index, 2).ids)
            losses.append(float(model(input_ids=batch, labels=batch).loss))
    assert run.metrics[0].loss == pytest.approx(sum(losses) / 4, rel=1e-6)


def test_the_model_opens_elsewhere_to_the_same_loss(run: RunResult) -> None:
    ours, theirs = saved_model_losses(run.out, 32)
    assert ours == pytest.approx(theirs, rel=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(run.out / "model")
    assert tokenizer.decode(tokenizer("line 7: 49 is")["input_ids"]) == "line 7: 49 is"


def test_layouts_save_bitwise_equal_weights(run: RunResult, job: Job) -> None:
    def weights(out: Path) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for file in (out / "model").glob("*.safetensors"):
            found |= load_file(file)
        return found

    expected = weights(run.out)
    for processes in (1, 3):
        other = evenflow.train(replace(job, out=job.out.parent / f"run-{processes}", processes=processes))
        assert [own.loss for own in other.metrics] == [own.loss for own in run.metrics]
        found = weights(other.out)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_beside_the_config_are_loaded(run: RunResult, job: Job) -> None:
    again = evenflow.train(replace(job, model=str(run.out / "model"), out=job.out.parent / "again", steps=1))
    assert again.metrics[0].loss < run.metrics[0].loss - 0.1
    scratch = evenflow.train(
        replace(job, model=str(run.out / "model"), out=job.out.parent / "scratch", steps=1, from_scratch=True)
    )
    assert scratch.metrics[0].loss == run.metrics[0].loss


@pytest.mark.parametrize("schedule", ["interleaved", "zb-h1", "zb-v", "auto"])
def test_every_kind_of_schedule_trains_to_the_same_bits(run: RunResult, job: Job, schedule: str) -> None:
    own = evenflow.train(replace(job, out=job.out.parent / schedule, schedule=schedule))
    assert own.plan.schedule == schedule
    assert [step.loss for step in own.metrics] == [step.loss for step in run.metrics]
    assert [step.grad_norm for step in own.metrics] == [step.grad_norm for step in run.metrics]
    kinds = {action_kind(action) for rank in own.measured.ranks for action in rank.actions}
    assert ({"I", "W"} <= kinds) == schedule.startswith("zb") or schedule == "auto"
    assert len(own.plan.stages) == (4 if schedule in ("interleaved", "zb-v") else 2)


def test_a_given_plan_is_followed(run: RunResult, job: Job) -> None:
    profile = load_profile(run.out / "profile.json")
    costs: Costs = profile.costs()
    described = evenflow.describe(job.model, 2, 32)
    plan = make_plan(described, local_cluster(2), Batch(8, 2, 32), costs, "gpipe", split=equal_split(6, 2))
    save_plan(plan, job.out.parent / "equal.json")
    followed = evenflow.train(replace(job, out=job.out.parent / "followed", plan=job.out.parent / "equal.json"))
    assert followed.plan.stage_layers == ((0, 1, 2), (3, 4, 5))
    assert followed.plan.schedule == "gpipe"
    assert [own.loss for own in followed.metrics] == [own.loss for own in run.metrics]


def test_a_plan_for_another_device_is_refused(run: RunResult, job: Job) -> None:
    path = job.out.parent / "gpu.json"
    save_plan(replace(run.plan, device="NVIDIA H200"), path)
    with pytest.raises(evenflow.InputError, match=r"plan for NVIDIA H200; the ranks of this machine compute on cpu"):
        evenflow.train(replace(job, out=job.out.parent / "refused", plan=path))


def test_recomputing_changes_no_loss(run: RunResult, job: Job) -> None:
    full = evenflow.train(replace(job, out=job.out.parent / "recomputed", recompute="full"))
    assert load_plan(full.out / "plan.json").recomputed == "full"
    assert [own.loss for own in full.metrics] == [own.loss for own in run.metrics]


def test_a_rank_recomputes_what_its_plan_says(run: RunResult) -> None:
    config = (run.out / "model" / "config.json").read_text()
    payload = {"config": config, "seed": 0, "weights": [], "done_steps": 0}
    mesh = Mesh(run.plan.axes, run.plan.axes.coordinates(0))
    held = (replace(run.plan.stages[0], layers=(0, 1, 2)),)
    for block, attention in (("none", "none"), ("full", "full"), ("none", "selective")):
        modes = ["none", block, attention, *["none"] * (len(run.plan.layers) - 3)]
        layers = [replace(own, recompute=mode) for own, mode in zip(run.plan.layers, modes, strict=True)]
        stage = _build(0, payload, replace(run.plan, layers=tuple(layers), stages=held), mesh, torch.device("cpu"))
        assert ("forward" in vars(stage.blocks[0])) == (block == "full")
        assert ("forward" in vars(stage.blocks[1])) == (attention == "full")
        assert ("forward" in vars(stage.blocks[1].self_attn)) == (attention == "selective")


def test_typical_figures_are_medians(run: RunResult) -> None:
    assert run.typical.step_s == median(own.step_s for own in run.metrics[2:])


def test_progress_hears_everything(job: Job) -> None:
    heard: list[str] = []

    class Listener:
        def said(self, text: str) -> None:
            heard.append(text)

        def tokenised(self, done: int, total: int, tokens: int) -> None:
            heard.append(f"tokenised {done} of {total}")

        def planned(self, plan: evenflow.Plan, model: evenflow.Model) -> None:
            heard.append(f"planned {len(plan.stages)} {model.name}")

        def stepped(self, metrics: object, steps: int) -> None:
            heard.append(f"step of {steps}")

        def saved(self, checkpoint: Path, write_s: float, hash_s: float) -> None:
            assert write_s > hash_s > 0
            heard.append(f"saved {checkpoint.name}")

        def closed(self) -> None:
            heard.append("closed")

    evenflow.train(replace(job, out=job.out.parent / "heard", steps=2, save_every=1), Listener())
    size = job.data.stat().st_size
    assert f"tokenised {size} of {size}" in heard
    assert "planned 2 model" in heard
    assert heard.count("step of 2") == 2
    assert "saved step-00000001" in heard
    assert heard[-1] == "closed"
    assert any(line.startswith("weights: drawn from seed 4") for line in heard)


def test_a_config_file_brings_the_weights_beside_it(run: RunResult, job: Job) -> None:
    again = evenflow.train(
        replace(job, model=str(run.out / "model" / "config.json"), out=job.out.parent / "by-file", steps=1)
    )
    assert again.metrics[0].loss < run.metrics[0].loss - 0.1


def test_weights_that_cannot_be_read_are_refused_not_drawn(run: RunResult, job: Job, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((run.out / "model" / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(evenflow.InputError, match="is a pickle"):
        evenflow.train(replace(job, model=str(tmp_path), out=tmp_path / "run"))


def test_a_run_refused_by_its_ranks_leaves_an_empty_folder_empty(run: RunResult, job: Job, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text((run.out / "model" / "config.json").read_text())
    (model / "model.safetensors").write_bytes(b"\x10" * 64)
    out = tmp_path / "run"
    out.mkdir()
    with pytest.raises(evenflow.InputError, match="not a readable safetensors file"):
        evenflow.train(replace(job, model=str(model), out=out))
    assert list(out.iterdir()) == []


def test_blocks_skipped_at_random_are_refused_though_nothing_is_checked(job: Job, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "opt", "num_hidden_layers": 2, "layerdrop": 0.1}))
    job = replace(job, model=str(tmp_path), out=tmp_path / "run", check=False, processes=2)
    with pytest.raises(evenflow.InputError, match=r"opt skips blocks at random \(layerdrop = 0.1\)"):
        evenflow.train(job)
