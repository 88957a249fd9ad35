"""Why: the planner compares stages by these figures alone, so sums, peaks and refusals are done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evenflow.cost import (
    LinkCost,
    MemoryModel,
    Profile,
    RankCost,
    StageCost,
    analytic_costs,
    rank_costs,
    stage_costs,
)
from evenflow.errors import InputError
from evenflow.program import Program, build_program, evaluation_program, peak_bytes, peak_forms, rank_memory, ranks_text
from evenflow.spec import parse_cluster, this_machine
from evenflow.spec.cluster import local_cluster
from tests.property.cases import cluster_of, costs_of, model_of

COSTS = costs_of(
    [1.0, 2.0, 3.0],
    [4.0, 5.0, 6.0],
    input_half=[1.0, 2.0, 3.0],
    norm=[0.1, 0.2, 0.3],
    optimizer=[1.0, 2.0, 4.0],
    stage_s=(0.5, 0.25),
)


def test_a_stage_costs_its_layers_and_itself():
    """What a stage's backward costs beside its layers falls into the half that others wait for."""
    assert stage_costs(COSTS, [(0,), (1, 2)]) == (StageCost(1.5, 4.25, 1.25, 3.0), StageCost(5.5, 11.25, 5.25, 6.0))


def test_a_rank_updates_the_layers_of_all_its_stages():
    assert rank_costs(COSTS, [(0,), (1,), (2,)], [0, 1, 0]) == (
        RankCost(pytest.approx(0.4), 5.0),
        RankCost(0.2, 2.0),
    )
    with pytest.raises(ValueError, match="zip"):
        rank_costs(COSTS, [(0,), (1, 2)], [0, 1, 2])


def test_a_transfer_takes_latency_and_bytes():
    assert LinkCost(0.5, 100.0).seconds(50) == 1.0
    assert LinkCost(0.5, 100.0).seconds(0) == 0.5


def test_analytic_costs_are_flops_over_what_a_device_reaches():
    costs = analytic_costs(model_of(3, parameter_bytes=[0, 400, 800]), cluster_of(4))
    assert [own.forward_s for own in costs.layers] == pytest.approx([1000 / 0.5e9] * 3)
    assert [own.backward_s for own in costs.layers] == pytest.approx([2000 / 0.5e9] * 3)
    assert [own.weight_s for own in costs.layers] == pytest.approx([1000 / 0.5e9] * 3)
    assert [own.input_s + own.weight_s for own in costs.layers] == pytest.approx(
        [own.backward_s for own in costs.layers]
    )
    assert costs.layers[2].optimizer_s == pytest.approx(2 * costs.layers[1].optimizer_s)
    assert costs.layers[0].norm_s == 0
    assert costs.reduce_s == pytest.approx(6e-6)
    assert analytic_costs(model_of(3), cluster_of(1)).reduce_s == 0
    assert set(costs.origin) == {"layers", "halves", "link", "optimizer", "memory"}
    assert "measured" not in costs.origin.values()


def test_recomputing_adds_a_forward_to_a_backward_and_to_its_input_half():
    """W is made from what I queued, so it takes what it took."""
    costs = costs_of([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], recompute=[0.0, 2.5, 0.0])
    assert costs.under("none") == costs
    mixed = costs_of([1.0] * 4, [2.0] * 4, recompute=[0.0, 2.5, 2.5, 0.0], selective=[0.0, 0.5, 0.5, 0.0])
    assert [own.backward_s for own in mixed.under(("full", "full", "selective", "none")).layers] == [2.0, 4.5, 2.5, 2.0]
    assert [own.input_s for own in mixed.under("selective").layers] == [1.0, 1.5, 1.5, 1.0]
    assert stage_costs(costs.under("full"), [(0, 1, 2)]) == (StageCost(6.0, 17.5, 10.0, 7.5),)
    # Without a measurement it is the block's FLOPs once more; embedding and head are never recomputed.
    analytic = analytic_costs(model_of(3, recomputed_bytes=(1, 1), selective_bytes=2), cluster_of(2))
    assert [own.recompute_s for own in analytic.layers] == pytest.approx([0, 1000 / 0.5e9, 0])
    assert [own.selective_s for own in analytic.layers] == pytest.approx([0, 400 / 0.5e9, 0])


def test_memory_of_a_recomputed_stage_by_hand():
    """Blocks save their inputs of 10; whichever is at work holds 70 in passing, above what the others saved."""
    model = model_of(
        4,
        saved_bytes=[8, 60, 60, 50],
        passing_bytes=[9, 40, 40, 60],
        output_bytes=10,
        recomputed_bytes=(10, 70),
    )
    full = MemoryModel(model.under("full"))
    assert MemoryModel(model).stage([0, 1, 2]).saved_bytes == 128
    assert full.stage([0, 1, 2]).saved_bytes == 28
    assert full.stage([1, 2]).saved_bytes == 10  # beside the stage's input
    # Last block first: 70; then the gradient between and 70, less what the last block saved.
    assert full.stage([1, 2]).backward_peak_bytes == 70
    assert full.stage([3]) == MemoryModel(model).stage([3])


MODEL = model_of(
    4,
    parameter_bytes=[40, 20, 24, 80],
    saved_bytes=[8, 30, 34, 50],
    pending_bytes=[3, 16, 20, 25],
    passing_bytes=[9, 40, 5, 60],
    output_bytes=10,
)


def test_memory_of_a_stage_by_hand():
    """Forward: 9, then 8 and the layer's own input and 40, then 38+10+5.

    Backward frees as it goes: 5, then the gradient between and 40 less 34, then 10+9-64. The half for the input frees
    less, as 20 and then 16 stay pending: 5, 10+40-14, 10+9-28.
    """
    first = MemoryModel(MODEL).stage([0, 1, 2])
    assert (first.parameter_bytes, first.state_bytes) == (84, 336)
    assert (first.input_bytes, first.output_bytes, first.saved_bytes) == (0, 10, 72)
    assert first.pending_bytes == 39
    assert (first.forward_peak_bytes, first.backward_peak_bytes, first.input_peak_bytes) == (58, 16, 36)
    last = MemoryModel(MODEL).stage([3])
    assert (last.input_bytes, last.output_bytes, last.saved_bytes) == (10, 0, 40)
    assert (last.forward_peak_bytes, last.backward_peak_bytes) == (60, 60)


def test_a_forward_peak_counts_the_received_input_once():
    """RECV_F holds the stage's input (10 bytes); what layer 1 saved holds it too, and it is the same tensor.

    When layer 2 computes, layer 1 has saved 30 bytes, of which 10 were there before the forward began, and its output
    is there as layer 2's input.
    """
    middle = MemoryModel(model_of(4, saved_bytes=[0, 30, 30, 0], passing_bytes=[0, 30, 30, 0], output_bytes=10))
    assert middle.stage([1, 2]).saved_bytes == 50
    assert middle.stage([1, 2]).forward_peak_bytes == 20 + 10 + 30


def test_a_stage_without_layers_holds_nothing():
    assert set(vars_of(MemoryModel(MODEL).stage([]))) == {0}


def vars_of(value):
    return [getattr(value, name) for name in value.__slots__]


def test_the_account_of_a_rank_by_hand():
    """Rank 1 of 2: between steps 240 bytes and a buffer of 10 for its input; saved 40, gradient of its input 10.

    F holds 60 in passing. The step's first B holds 140: it makes the parameters' gradients, 80, which stay until STEP.
    """
    program = build_program("1f1b", 2, 1)
    memory = MemoryModel(MODEL).stages([(0, 1, 2), (3,)])
    # RECV_F0, F0, B0, SEND_B0, RELEASE_B0, NORM, STEP
    held = rank_memory(program, memory, 1)
    assert (held.after_bytes - 240).tolist() == [10, 50, 100, 100, 90, 90, 10]
    assert (held.peak_bytes - 240).tolist() == [10, 70, 190, 100, 100, 90, 90]
    assert peak_bytes(program, memory, 1) == 430


def test_the_account_of_halves_by_hand():
    """As above; between I and W 25 bytes are pending. The first I holds 80 in passing and leaves gradients of 20."""
    program = build_program("zb-h1", 2, 1)
    memory = MemoryModel(MODEL).stages([(0, 1, 2), (3,)])
    # RECV_F0, F0, I0, SEND_B0, W0, RELEASE_B0, NORM, STEP
    held = rank_memory(program, memory, 1)
    assert ranks_text(program.ranks).splitlines()[1].startswith("1RECV_F0 1F0 1I0 1SEND_B0 1W0 1RELEASE_B0 NORM")
    assert (held.after_bytes - 240).tolist() == [10, 50, 65, 65, 100, 90, 90, 10]
    assert (held.peak_bytes - 240).tolist() == [10, 70, 130, 65, 100, 100, 90, 90]


def test_the_account_of_an_evaluation_by_hand():
    """Nothing is kept but buffers: F gives its input's back, and the output goes when it has been sent."""
    program = evaluation_program((0, 1), 1)
    memory = MemoryModel(MODEL).stages([(0, 1, 2), (3,)])
    # F0, SEND_F0, RELEASE_F0 on rank 0; RECV_F0, F0 on rank 1
    first, last = (rank_memory(program, memory, rank) for rank in (0, 1))
    assert (first.after_bytes - 252).tolist() == [10, 10, 0]
    assert (first.peak_bytes - 252).tolist() == [58, 10, 10]
    assert (last.after_bytes - 240).tolist() == [10, 10]
    assert (last.peak_bytes - 240).tolist() == [10, 70]


def test_a_tensor_handed_over_on_one_rank_is_held_once():
    """Stages of layer 0 and 1 on a rank (V, stages 1 and 2 of 4 on rank 1): no room is made for what is there."""
    program = build_program("zb-v", 2, 1)
    memory = MemoryModel(MODEL).stages([(0,), (1,), (2,), (3,)])
    held = rank_memory(program, memory, 1)
    start = 3 * (20 + 24) + 20  # with a buffer for stage 1's input and one for the gradient of stage 2's output
    tokens = ranks_text(program.ranks).splitlines()[1].split()
    after = dict(zip(tokens, (held.after_bytes - start).tolist(), strict=True))
    # Layer 1 saves 20 beside its input, layer 2 24; each boundary is 10.
    assert after["1RECV_F0"] == 0
    assert after["1F0"] == 20 + 10
    assert after["2F0"] == after["1F0"] + 24 + 10
    assert after["STEP"] == 0


def test_the_half_for_the_input_has_a_peak_of_its_own():
    """It frees less as it goes than a whole backward, as what W needs stays: here 90 bytes in passing, not 60."""
    memory = MemoryModel(MODEL).stages([(0, 1, 2), (3,)])
    memory = [memory[0], replace(memory[1], input_peak_bytes=90, first_input_peak_bytes=95)]
    program = build_program("zb-h1", 2, 2)
    held = rank_memory(program, memory, 1)
    tokens = ranks_text(program.ranks).splitlines()[1].split()
    passing = dict(zip(tokens[1:], (held.peak_bytes[1:] - held.after_bytes[:-1]).tolist(), strict=True))
    assert (passing["1I0"], passing["1I1"]) == (95, 90)
    whole = build_program("1f1b", 2, 2)
    held = rank_memory(whole, memory, 1)
    tokens = ranks_text(whole.ranks).splitlines()[1].split()
    passing = dict(zip(tokens[1:], (held.peak_bytes[1:] - held.after_bytes[:-1]).tolist(), strict=True))
    assert (passing["1B0"], passing["1B1"]) == (140, 60)


def test_a_rank_without_actions_holds_all_but_gradients():
    program = Program((0, 1), 0, ((), ()))
    assert [peak_bytes(program, MemoryModel(MODEL).stages([(0, 1, 2), (3,)]), rank) for rank in (0, 1)] == [252, 240]


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "zb-h1", "zb-h2", "zb-1p"])
def test_the_forms_of_a_peak_come_to_the_peak_for_any_stage(schedule):
    """The planner asks every run of layers what it would hold, from a few forms instead of a whole program."""
    program = build_program(schedule, 3, 5)
    for layers in ([(0,), (1,), (2, 3)], [(0, 1), (2,), (3,)], [(0,), (1, 2), (3,)]):
        memory = MemoryModel(MODEL).stages(layers)
        for stage in range(3):
            forms = peak_forms(program, stage)
            assert max(form.bytes(memory[stage]) for form in forms) == peak_bytes(program, memory, stage)


def _profile(model, cluster):
    return Profile(
        machine=this_machine(),
        torch_version="2.13.0",
        model=model.name,
        fingerprint=model.fingerprint,
        micro_batch_size=model.micro_batch_size,
        seq_length=model.seq_length,
        processes=cluster.devices,
        threads=cluster.threads,
        layers=COSTS.layers,
        stage_forward_s=0.5,
        stage_backward_s=0.25,
        link=COSTS.link,
        reduce_s=0.125,
        peak_flops=1e9,
    )


def test_a_profile_is_costs_that_say_they_were_measured():
    model = model_of(3)
    costs = _profile(model, local_cluster(2)).costs()
    assert costs.layers == COSTS.layers
    assert (costs.stage_forward_s, costs.stage_backward_s, costs.reduce_s, costs.peak_flops) == (
        0.5,
        0.25,
        0.125,
        1e9,
    )
    assert {costs.origin[group] for group in ("layers", "link", "optimizer")} == {"measured"}


def test_a_profile_is_used_only_for_what_was_measured():
    model, cluster = model_of(3), local_cluster(2)
    profile = _profile(model, cluster)
    profile.check_fits(model, cluster)
    profile.check_fits(replace(model, name="another name"), cluster)
    another_machine = replace(profile, machine=replace(profile.machine, cores=profile.machine.cores + 1))
    for own, other_model, other_cluster, what in [
        (profile, replace(model, seq_length=32), cluster, r"microbatch \(.*\): it has 1 x 16, this plan 1 x 32"),
        (profile, replace(model, vocab_size=7), cluster, "model"),
        (profile, model, local_cluster(3), "number of processes: it has 2, this plan 3"),
        (profile, model, local_cluster(2, cluster.threads + 1), "number of threads"),
        (another_machine, model, cluster, "machine"),
    ]:
        with pytest.raises(InputError, match=f"the profile is for another {what}"):
            own.check_fits(other_model, other_cluster)
    with pytest.raises(InputError, match="says nothing about A100-80GB"):
        replace(profile, processes=1, threads=1).check_fits(model, parse_cluster("A100-80GB"))
