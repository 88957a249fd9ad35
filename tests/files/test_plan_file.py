"""Why: scripts read plan.json and people edit it: its keys must hold and mistakes must be named."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from evenflow.cost import LinkCost, Network
from evenflow.errors import InputError
from evenflow.files import load_plan, plan_json, save_plan
from tests.files.samples import sample_plan


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_plan_comes_back_exactly(tmp_path, ranks):
    plan = sample_plan(ranks)
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan


def test_a_plan_with_every_field_unlike_its_default_comes_back(tmp_path):
    plan = sample_plan()
    odd = replace(
        plan,
        model='Ünï "quoted" </script>',
        axes=replace(plan.axes, tp=2, dp=3, cp=4, ep=5),
        link=LinkCost(0.1 + 0.2, inf),
        reduce_s=1e-300,
        threads=7,
        notes=("one", "line\nbreak"),
        device="NVIDIA H200",
        network=Network(LinkCost(1e-5, 5e10), node_devices=8, rank_devices=2 * 3 * 4),
    )
    save_plan(odd, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == odd


def test_a_file_from_before_edges_differed_is_read_as_it_was(tmp_path):
    plan = sample_plan()
    data = plan_json(plan)
    assert data.pop("network") is None
    (tmp_path / "plan.json").write_text(json.dumps(data))
    assert load_plan(tmp_path / "plan.json") == plan
    assert set(plan.links.between) == set()


def test_the_promised_keys():
    data = plan_json(sample_plan())
    assert list(data)[:12] == [
        "format_version",
        "model",
        "axes",
        "schedule",
        "micro_batch_size",
        "microbatches",
        "stages",
        "ranks",
        "predicted",
        "bound",
        "search",
        "costs",
    ]
    assert data["format_version"] == 6
    assert list(data["axes"]) == ["pp", "tp", "dp", "cp", "ep"]
    assert set(data["stages"][0]) >= {"rank", "layers", "forward_s", "backward_s", "parameter_bytes"}
    assert set(data["ranks"][0]) >= {"rank", "stages", "busy_s", "peak_bytes"}
    assert list(data["predicted"]) == ["step_s", "idle_fraction", "imbalance", "mfu", "tokens_per_s"]
    assert list(data["bound"]) == ["step_s", "gap"]
    assert list(data["search"]) == ["considered", "seconds"]
    assert data["costs"]["layers"] == "measured"


def test_the_file_holds_what_is_printed(tmp_path):
    plan = sample_plan()
    save_plan(plan, tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    assert json.loads(text) == plan_json(plan)
    assert max(map(len, text.splitlines())) < 400


def _set(*path_and_value):
    *path, last, value = path_and_value

    def change(data):
        for key in path:
            data = data[key]
        data[last] = value

    return change


def _drop(*path):
    def change(data):
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return change


def _longer(data):
    data["layers"].append(data["layers"][0])


def _swapped(data):
    for here, there in ((1, 2), (2, 1)):
        data["stages"][here]["rank"] = there
        data["ranks"][there]["stages"] = [here]


def _all(*path_and_value):
    group, key, value = path_and_value

    def change(data):
        for part in data[group]:
            part[key] = value

    return change


def _with_order(lines):
    def change(data):
        data["schedule"], data["order"] = "auto", lines

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("format_version", 1), "format_version: is 1; this evenflow reads 6"),
        (_set("format_version", True), "format_version: is true; this evenflow reads 6"),
        (_drop("format_version"), "format_version: is missing; this evenflow reads 6"),
        (_drop("schedule"), "schedule: is missing"),
        (_drop("stages", 2, "forward_s"), "stages.2.forward_s: is missing"),
        (_set("color", "red"), "color: is not a key that belongs here"),
        (_set("stages", 3, "speed", 1), "stages.3.speed: is not a key that belongs here"),
        (_set("stages", 3, "layers", "abc"), 'stages.3.layers: should be a valid list, not "abc"'),
        (_set("microbatches", "8"), 'microbatches: should be a valid integer, not "8"'),
        (_set("microbatches", 8.5), "microbatches: should be a valid integer, not 8.5"),
        (_set("microbatches", True), "microbatches: should be a valid integer, not true"),
        (_set("microbatches", 0), "microbatches: should be greater than or equal to 1, not 0"),
        (_set("ranks", 0, "busy_s", -1.0), "ranks.0.busy_s: should be greater than or equal to 0, not -1.0"),
        (_set("costs", "layers", "guessed"), "costs.layers: should be 'measured', 'analytic' or 'assumed'"),
        (_set("schedule", "2f2b"), "schedule: '2f2b' is not known; 1f1b, gpipe"),
        (_set("stages", 1, "layers", []), "stages.1.layers: "),
        (_set("stages", 0, "layers", [0, 2]), "stages.0.layers: has layer 2 where 1 would follow"),
        (_set("stages", 0, "layers", [1, 2]), "stages.0.layers: has layer 1 where 0 would follow"),
        (_set("stages", 1, "layers", [2, 3, 4]), "stages.1.layers: has layer 2 where 3 would follow"),
        (_longer, "stages.3.layers: ends at layer 9, but layers has 11 layers"),
        (_set("stages", 1, "rank", 4), "stages.1.rank: is 4; ranks go from 0 to 3"),
        (
            _set("stages", 1, "rank", 0),
            "ranks.0.stages: is [0], but by their own rank the stages here are [0, 1]",
        ),
        (_set("ranks", 1, "rank", 2), "ranks.1.rank: is 2; ranks stand in order, so 1 would be right"),
        (_set("axes", "pp", 3), "axes.pp: is 3, but ranks has 4"),
        (_swapped, "schedule: 1F1B needs its stages in one placement, not on the ranks [0, 2, 1, 3]"),
        (_set("schedule", "zb-v"), "schedule: ZB-V runs 2 stages on each rank: 8 stages on 4 ranks, not 4"),
        (_set("schedule", "auto"), "order: auto needs each rank's order"),
        (_set("order", ["0F0"]), "order: 1f1b needs none; null would do"),
        (_with_order(["0F0 0B0", "1F0 1X0", "2F0", "3F0"]), "order: rank 1: '1X0' is not a compute action"),
        (_with_order(["0F0", "1F0", "2F0", "3F0"]), "order: rank 0: NORM: 0F0 is still held"),
        (_with_order(["0F0 0B0"]), "order: has 1 ranks; there are 4"),
        (_set("memory_limit", 10 * 2**20), "its program: rank 0: 0B1: the rank holds"),
        (
            _with_order(["9" * 20 + "F0", "1F0", "2F0", "3F0"]),
            "order: rank 0: '99999999999999999999F0' is not a compute",
        ),
        (_all("stages", "forward_s", 0), "stages: all forward_s together are 0 s; 1e-12 or more would do"),
        (_all("layers", "forward_s", 0), "layers: all forward_s together are 0 s; 1e-12 or more would do"),
        (_set("bound", "step_s", 0), "bound.step_s: should be greater than or equal to 1e-12, not 0"),
        (_set("stage_forward_s", -1.0), "stage_forward_s: should be greater than or equal to 0, not -1.0"),
        (_set("predicted", "mfu", 1e308), "predicted.mfu: should be less than or equal to 1e+60, not 1e+308"),
        (
            _set("stages", 0, "saved_bytes", 10**30),
            "stages.0.saved_bytes: should be less than or equal to 11529215046068469",
        ),
        (
            _all("layers", "saved_bytes", 2**59),
            "layers: all bytes together, for each of 8 microbatches, are 4.61e+19; ",
        ),
        (_set("microbatches", 10**9), "microbatches: should be less than or equal to 100000, not 1000000000"),
        (
            _set("seq_length", 10**39),
            "seq_length: should be less than or equal to 1000000000, not 1" + "0" * 39,
        ),
        (_set("at_once", 5), "at_once: is 5; there are 4 ranks, and no more can compute at once"),
        (_set("costs", {"a\nb\x1b": "no"}), "costs.\"a\\nb\\u001b\": should be 'measured'"),
    ],
)
def test_a_mistake_is_one_line_with_its_key(tmp_path, change, said):
    data = plan_json(sample_plan())
    change(data)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError) as caught:
        load_plan(path)
    assert str(caught.value).startswith(f"{path}: {said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not JSON: line 1"),
        ("{", "is not JSON: line 1"),
        ('{\n"model": }', "is not JSON: line 2"),
        ("[]", "should be one JSON object"),
        ('{"format_version": NaN}', "format_version: is NaN; this evenflow reads"),
        ('{"model": "a", "model": "b"}', "model: is there twice"),
        ("[" * 100_000, "is not a file of ours: it nests too deeply"),
    ],
)
def test_what_is_not_a_json_object_is_refused(tmp_path, text, said):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_plan(path)
    assert str(caught.value).startswith(f"{path}: {said}")
    assert "\n" not in str(caught.value)


def test_a_number_of_thousands_of_digits_is_refused_by_its_key(tmp_path):
    path = tmp_path / "plan.json"
    text = json.dumps(plan_json(sample_plan()))
    path.write_text(text.replace('"seq_length": 128', '"seq_length": ' + "9" * 5000))
    with pytest.raises(InputError, match=r"plan\.json: seq_length: should be a valid integer, not one of 5000 digits$"):
        load_plan(path)


def test_more_microbatches_than_a_program_holds(tmp_path):
    path = tmp_path / "plan.json"
    data = plan_json(sample_plan(16, 16, 16))
    data["microbatches"] = 100_000
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"microbatches: 100000 microbatches through 16 stages are .*; 65536 or fewer"):
        load_plan(path)


def test_a_plan_beyond_the_bounds_is_refused_in_one_line(tmp_path):
    plan = sample_plan()
    odd = replace(plan, predicted=replace(plan.predicted, mfu=inf))
    with pytest.raises(InputError, match=r"^the plan of tiny-llama: mfu: should be a finite number"):
        save_plan(odd, tmp_path / "plan.json")
    assert not list(tmp_path.iterdir())


def test_infinite_by_overflow_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_json(sample_plan())).replace('"reduce_s": 0.0003', '"reduce_s": 1e999'))
    with pytest.raises(InputError, match=r"reduce_s: should be a finite number"):
        load_plan(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        load_plan(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_plan(tmp_path)
    with Path("/dev/zero").open("rb") as endless, pytest.raises(InputError, match="it has more than 512 MiB"):
        load_plan(Path(f"/proc/self/fd/{endless.fileno()}"))
    (tmp_path / "image").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        load_plan(tmp_path / "image")
