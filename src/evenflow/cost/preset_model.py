"""A preset's layers as the values that plans are made from: a `Model` and its `Costs`, from a layout's figures."""

from __future__ import annotations

from evenflow.cost.costs import Costs, LayerCost
from evenflow.cost.pinned import link_origin
from evenflow.cost.preset import HALF, LayerFigures, PresetCosts, Shape, StepFigures
from evenflow.spec import Activations, Again, Layer, LayerKind, Model, Operator


def preset_model(costs: PresetCosts, shape: Shape, dp: int, zero: int) -> Model:
    """The model as one process of a layout has it, nothing recomputed."""
    figures, step = costs.figures(shape), costs.step_figures(shape, dp, zero)
    it = costs.architecture
    job = costs.job(shape)
    flops = job.flops(is_hardware=False)
    layers = tuple(_layer(number, figures, step, costs, shape) for number in range(figures.layers))
    return Model(
        name=it.name,
        architecture="preset",
        vocab_size=it.vocab,
        hidden_size=it.hidden,
        tied_embeddings=it.tied,
        micro_batch_size=shape.micro_batch,
        seq_length=costs.seq,
        layers=layers,
        tied_bytes=_tied(costs, shape),
        tp=shape.tp,
        whole_flops=int(flops),
        dtype="bf16",
    )


def preset_costs(costs: PresetCosts, shape: Shape, pp: int, dp: int, zero: int, norm_s: float) -> Costs:
    """Seconds of each layer, nothing recomputed, and of transfers between `pp` ranks."""
    rank_devices = shape.tp * shape.cp * dp
    link, network = costs.links(pp, rank_devices)
    figures, step = costs.figures(shape), costs.step_figures(shape, dp, zero)
    copies = dp * shape.cp
    layers = []
    for number in range(figures.layers):
        inputs = figures.input_s[:, number]
        weight = float(figures.weight_s[number])
        layers.append(
            LayerCost(
                forward_s=float(figures.forward_s[number]),
                backward_s=float(inputs[0]) + weight,
                input_s=float(inputs[0]),
                weight_s=weight,
                norm_s=0.0,
                optimizer_s=float(step.optimizer_s[number]),
                recompute_s=float(inputs[2] - inputs[0]),
                selective_s=float(inputs[1] - inputs[0]),
                reduce_s=float(step.reduce_s[number]),
            )
        )
    return Costs(
        layers=tuple(layers),
        stage_forward_s=0.0,
        stage_backward_s=0.0,
        link=link,
        reduce_s=norm_s,
        peak_flops=costs.device.half_flops,
        origin={
            "layers": costs.origins["layers"],
            "halves": costs.origins["halves"],
            "link": link_origin(costs.device, pp, rank_devices),
            "optimizer": costs.origins["optimizer"],
            "memory": "analytic",
        },
        replicas=copies,
        shares=copies if zero else 1,
        network=network,
    )


def _layer(number: int, figures: LayerFigures, step: StepFigures, costs: PresetCosts, shape: Shape) -> Layer:
    it = costs.architecture
    last = figures.layers - 1
    kind: LayerKind = "embedding" if number == 0 else "head" if number == last else "block"
    name = {"embedding": "embedding", "head": "head", "block": f"blocks.{number - 1}"}[kind]
    if kind == "block":
        flops = sum(own.flops for own in it.block(number - 1, shape.micro_batch, costs.seq, costs.job(shape).shards))
        parameters = it.block_parameters(number - 1)
    else:
        flops = 0
        if kind == "head":
            flops = sum(own.flops for own in it.head(shape.micro_batch, costs.seq, costs.job(shape).shards))
        parameters = it.embedding_parameters if kind == "embedding" else it.head_parameters
    own = [_activations(number, way, figures) for way in range(3)]
    plain = {name: getattr(own[0], name) for name in Activations.__slots__}
    # The copy of a tied table counts with the stage that needs it: `MemoryModel.stage`.
    copied, copied_state = (_tied(costs, shape), step.tied_state_bytes) if kind == "head" else (0, 0.0)
    held = _held(figures, number) - copied
    again = (Again("selective", 0, (), own[1]), Again("full", 0, (), own[2]))
    return Layer(
        name=name,
        kind=kind,
        signature=f"{kind} {float(figures.forward_s[number]):.9g} {float(figures.dense[number]):.0f}",
        parameters=parameters,
        parameter_bytes=held,
        operators=(Operator(kind, flops, 2 * flops),),
        weight_flops=flops,
        output_bytes=0 if kind == "head" else int(figures.hidden_bytes),
        state_bytes=int(step.state_bytes[number]) - int(copied_state),
        master_bytes=2 * held,
        recomputed=again if kind == "block" else (),
        **plain,
    )


def _tied(costs: PresetCosts, shape: Shape) -> int:
    """Bytes of the table that head and embedding share, on one rank."""
    return int(HALF * costs.tied_parameters(shape))


def _held(figures: LayerFigures, number: int) -> int:
    return int(HALF * (figures.dense[number] + figures.experts[number]))


def _activations(number: int, way: int, figures: LayerFigures) -> Activations:
    passing = int(figures.passing_bytes[way, number])
    gradients = 2 * _held(figures, number)  # in fp32
    return Activations(
        saved_bytes=int(figures.saved_bytes[way, number]),
        shared_bytes=0,
        pending_bytes=int(figures.pending_bytes[number]),
        forward_peak_bytes=0,
        backward_peak_bytes=passing,
        input_peak_bytes=passing,
        first_backward_peak_bytes=passing + gradients,
        first_input_peak_bytes=passing,
        kept_gradient_bytes=0,
    )
