"""Megatron's layout: read back, and by megatron-core's own class where that is installed (the extra `targets`)."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evenflow.errors import ImpossibleError
from evenflow.export import export_plan
from evenflow.export.megatron import layout_text, read_layout, read_megatron
from evenflow.plan import Plan
from evenflow.spec.presets import PRESETS
from tests.export.plans import TIED, UNTIED, plan_of, preset_plan


def _arguments(plan: Plan) -> dict[str, str]:
    """Each argument with its value."""
    text = export_plan(plan, "megatron").files["megatron_args.sh"]
    words = shlex.split(text.partition("EVENFLOW_ARGS=(\n")[2].partition("\n)")[0])
    pairs = zip(words, [*words[1:], "--"], strict=True)
    return {word: "" if value.startswith("--") else value for word, value in pairs if word.startswith("--")}


def _shapes() -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(1, 9), min_size=1, max_size=24).filter(lambda counts: sum(counts) > 2)


def _split(counts: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    ends = [sum(counts[: index + 1]) for index in range(len(counts))]
    return tuple(tuple(range(end - count, end)) for end, count in zip(ends, counts, strict=True))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_shapes())
def test_a_layout_reads_back_with_every_layer_once(counts: list[int]) -> None:
    split = _split(counts)
    assert read_layout(layout_text(split, sum(counts))) == split


@pytest.fixture(scope="module")
def layout_class() -> Any:
    pytest.importorskip("megatron.core", reason="megatron-core is not installed; pip install '.[targets]'")
    from megatron.core.transformer import pipeline_parallel_layer_layout

    return pipeline_parallel_layer_layout.PipelineParallelLayerLayout


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "plan",
    [
        plan_of(),
        plan_of(blocks=9, ranks=3),
        plan_of("interleaved", blocks=14),
        plan_of("interleaved", ranks=2, blocks=13, stages_per_rank=3),
        plan_of(ranks=1, blocks=3),
        plan_of(blocks=4, split=[[0], [1, 2], [3, 4], [5]]),
        preset_plan(TIED, "megatron"),
        preset_plan(UNTIED, "megatron"),
    ],
    ids=["even", "uneven", "interleaved", "three a rank", "one rank", "a rank for embedding and head", TIED, UNTIED],
)
def test_megatron_cores_own_class_reads_the_plans_split(layout_class: Any, plan: Plan) -> None:
    arguments = _arguments(plan)
    layout = layout_class(
        arguments["--pipeline-model-parallel-layout"], int(arguments["--pipeline-model-parallel-size"])
    )
    layout.validate_layer_layout(int(arguments["--num-layers"]), None)
    last = len(plan.layers) - 1
    found: dict[int, list[str]] = {}
    for rank, chunks in enumerate(layout.layout):
        for chunk, kinds in enumerate(chunks):
            found[chunk * plan.axes.pp + rank] = [kind.name for kind in kinds]
    for number, stage in enumerate(plan.stages):
        kinds = {0: "embedding", last: "loss"}
        assert found[number] == [kinds.get(layer, "decoder") for layer in stage.layers]
        assert stage.rank == number % plan.axes.pp


def test_the_arguments_say_what_the_plan_says() -> None:
    plan = replace(plan_of(tp=8, dp=2, recompute=("full",) * 8), zero=1)
    arguments = _arguments(plan)
    assert arguments["--tensor-model-parallel-size"] == "8"
    assert arguments["--global-batch-size"] == str(2 * 8 * 2)
    assert arguments["--micro-batch-size"] == "2"
    assert arguments["--seq-length"] == "128"
    assert arguments["--num-layers"] == "8"
    assert "--use-distributed-optimizer" in arguments
    assert "--untie-embeddings-and-output-weights" in arguments
    assert arguments["--recompute-method"] == "uniform"
    tied = _arguments(replace(plan_of(), tied_bytes=1000))
    assert "--untie-embeddings-and-output-weights" not in tied
    assert "--use-distributed-optimizer" not in tied
    assert "--recompute-granularity" not in tied


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_is_tied_as_it_is(name: str) -> None:
    """Else another model is trained: Megatron ties what nobody unties."""
    is_tied = PRESETS[name].tied
    assert is_tied == (name in ("gpt3-175b", "gpt-1t", "bloom-176b"))
    if name in (TIED, UNTIED, "bloom-176b"):
        words = _arguments(preset_plan(name, "megatron"))
        assert ("--untie-embeddings-and-output-weights" in words) != is_tied


def test_a_plan_for_megatron_asks_for_what_it_counts_on() -> None:
    plan = plan_of(tp=2, dp=2)
    made_for_it = _arguments(replace(plan, trainer="megatron"))
    added = set(made_for_it) - set(_arguments(plan))
    assert added == {"--bf16", "--sequence-parallel", "--tp-comm-overlap", "--overlap-grad-reduce"}
    assert any("--for megatron" in note for note in export_plan(plan, "megatron").notes)
    assert not any("--for" in note for note in export_plan(replace(plan, trainer="megatron"), "megatron").notes)


def test_bf16_is_asked_for() -> None:
    assert "--bf16" in _arguments(replace(plan_of(), dtype="bf16"))
    assert "--bf16" not in _arguments(plan_of())


def test_blocks_recomputed_from_the_beginning_of_each_stage() -> None:
    ranks, blocks = 2, 6
    assert [list(own) for own in plan_of(ranks=ranks, blocks=blocks).stage_layers] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    same = plan_of(ranks=ranks, blocks=blocks, recompute=("full", "full", "none", "full", "full", "none"))
    assert _arguments(same)["--recompute-num-layers"] == "2"
    assert _arguments(same)["--recompute-method"] == "block"
    other = plan_of(ranks=ranks, blocks=blocks, recompute=("full", "full", "none", "full", "none", "none"))
    with pytest.raises(ImpossibleError, match="the same number of blocks from the beginning of each stage"):
        export_plan(other, "megatron")


def test_what_megatron_cannot_run_is_refused() -> None:
    with pytest.raises(ImpossibleError, match="cannot run the schedule zb-h1; a plan under 1f1b or interleaved"):
        export_plan(plan_of("zb-h1"), "megatron")
    with pytest.raises(ImpossibleError, match=r"groups of 4 \(pp\), and the plan has 6; 8 would do, .*batch of 16"):
        export_plan(plan_of("interleaved", microbatches=6), "megatron")


def test_the_file_is_bash_that_gives_the_same_words(tmp_path: Path) -> None:
    export = export_plan(plan_of(), "megatron")
    path = tmp_path / "megatron_args.sh"
    path.write_text(export.files["megatron_args.sh"])
    shown = subprocess.run(
        ["bash", "-c", f'set -eu; source {path}; printf "%s\\n" "${{EVENFLOW_ARGS[@]}}"'],
        capture_output=True,
        text=True,
        check=True,
    )
    words = shown.stdout.splitlines()
    layout = words[words.index("--pipeline-model-parallel-layout") + 1]
    assert read_layout(layout) == plan_of().stage_layers
    assert read_megatron(export.files)[0] == plan_of().stage_layers


@pytest.mark.parametrize(
    ("trainer", "axes", "seq_length", "would"),
    [("megatron", {"tp": 4}, 130, 128), ("megatron", {"tp": 2, "cp": 2}, 132, 128), ("evenflow", {"cp": 4}, 132, 128)],
)
def test_sequences_that_megatron_cannot_cut_are_refused(
    trainer: str, axes: dict[str, int], seq_length: int, would: int
) -> None:
    plan = replace(plan_of(**axes), trainer=trainer, seq_length=seq_length)
    with pytest.raises(ImpossibleError, match=f"have {seq_length} tokens; --seq-length {would} would do"):
        export_plan(plan, "megatron")
    export_plan(replace(plan, seq_length=would), "megatron")


def test_without_sequence_parallelism_any_length_does() -> None:
    export_plan(replace(plan_of(tp=4), seq_length=131), "megatron")
