"""A small plan, its timelines and a run's metrics, with figures that a reader of a test can work out."""

from __future__ import annotations

from dataclasses import replace

from evenflow.cost import Costs, LayerCost, LinkCost, Profile
from evenflow.files import StepMetrics
from evenflow.plan import Plan
from evenflow.search import equal_split, make_plan, plan_timeline
from evenflow.spec import Batch, Cluster, Device, Layer, LayerKind, Machine, Model, Operator
from evenflow.timeline import RankTimeline, Timeline

MIB = 2**20


def sample_model(blocks: int = 8, name: str = "tiny-llama") -> Model:
    """Embedding, equal blocks, head."""

    def layer(own_name: str, kind: LayerKind, parameters: int, flops: int) -> Layer:
        operators = (Operator("mm", flops, 2 * flops),)
        return Layer(
            own_name, kind, kind, parameters, 4 * parameters, operators, flops, MIB, MIB // 2, MIB // 4, MIB, 2 * MIB
        )

    return Model(
        name=name,
        architecture="LlamaForCausalLM",
        vocab_size=32000,
        hidden_size=256,
        tied_embeddings=False,
        micro_batch_size=2,
        seq_length=128,
        layers=(
            layer("model.embed_tokens", "embedding", 8_000_000, 0),
            *(layer(f"model.layers.{index}", "block", 1_500_000, 400_000_000) for index in range(blocks)),
            layer("lm_head", "head", 8_000_000, 2_000_000_000),
        ),
    )


def sample_costs(model: Model) -> Costs:
    """Blocks take 10 and 20 ms, the head twice that, the embedding next to nothing."""
    of_kind = {
        "embedding": LayerCost(0.0005, 0.0003, 0.0003, 0.0, 0.001, 0.012),
        "block": LayerCost(0.010, 0.020, 0.012, 0.008, 0.0004, 0.003),
        "head": LayerCost(0.020, 0.040, 0.020, 0.020, 0.001, 0.012),
    }
    return Costs(
        layers=tuple(of_kind[layer.kind] for layer in model.layers),
        stage_forward_s=0.0002,
        stage_backward_s=0.0003,
        link=LinkCost(1e-4, 2e9),
        reduce_s=0.0003,
        peak_flops=6.4e10,
        origin={"layers": "measured", "link": "measured", "optimizer": "assumed", "memory": "analytic"},
    )


def sample_plan(ranks: int = 4, microbatches: int = 8, blocks: int = 8, name: str = "tiny-llama") -> Plan:
    """A plan of equal block counts: what the planner would find may change, this does not."""
    model = sample_model(blocks, name)
    device = Device("cpu", 8 * 2**30, 64e9, 0.5, 2e9, 1e-4, "made up")
    cluster = Cluster("local", device, ranks, 1, ranks, is_local=True)
    split = equal_split(len(model.layers), ranks)
    return make_plan(model, cluster, Batch(2 * microbatches, 2, 128), sample_costs(model), split=split)


def sample_timelines(plan: Plan) -> tuple[Timeline, Timeline]:
    """The predicted step and a 'measured' one: a tenth slower, by another clock, with more memory."""
    predicted = plan_timeline(plan)

    def moved(seconds: float) -> float:
        return 1234.5 + 1.1 * seconds

    ranks = tuple(
        RankTimeline(
            begin_s=moved(rank.begin_s),
            end_s=moved(rank.end_s),
            actions=rank.actions,
            starts=tuple(map(moved, rank.starts)),
            ends=tuple(map(moved, rank.ends)),
            peak_bytes=rank.peak_bytes + 5 * MIB,
            memory=(),
        )
        for rank in predicted.ranks
    )
    return predicted, replace(predicted, origin="measured", ranks=ranks)


def sample_profile(model: Model) -> Profile:
    """A profile with the sample's costs."""
    costs = sample_costs(model)
    return Profile(
        machine=Machine("AMD EPYC 9999", 4, 16 * 2**30, "Linux x86_64"),
        torch_version="2.13.0",
        model=model.name,
        fingerprint=model.fingerprint,
        micro_batch_size=model.micro_batch_size,
        seq_length=model.seq_length,
        processes=4,
        threads=1,
        layers=costs.layers,
        stage_forward_s=costs.stage_forward_s,
        stage_backward_s=costs.stage_backward_s,
        link=costs.link,
        reduce_s=costs.reduce_s,
        peak_flops=costs.peak_flops,
    )


def sample_metrics(steps: int, first: int = 1) -> tuple[StepMetrics, ...]:
    """A run's steps."""
    return tuple(
        StepMetrics(
            step=step,
            loss=10 / step,
            grad_norm=1.5,
            lr=1e-4,
            tokens=step * 2048,
            tokens_per_s=1700.0 + step,
            step_s=1.2,
            idle_fraction=0.3,
            imbalance=1.1,
            mfu=0.41,
            peak_bytes=(100 * MIB, 90 * MIB),
        )
        for step in range(first, first + steps)
    )
