"""A measured profile: what layers and links cost on one machine, and what it may be used for."""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.cost.costs import Costs, LayerCost, Origin
from evenflow.cost.links import LinkCost
from evenflow.errors import InputError
from evenflow.spec import Cluster, Dtype, Machine, Model, this_machine


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What was rehearsed, and on what, where a profile's layers come from ranks of a plan rather than from layers.

    Attributes:
        ran_on: what the ranks ran on here: `cpu`, or a GPU's name.
        device: what the plan's ranks compute on.
        tp: over how many processes the plan shares out every layer.
        dtype: of weights and activations.
        trainer: who the plan is for: what a block runs again under `selective` is its own.
        halves: where the backward's halves come from: a schedule that runs backwards whole has none to measure.
        is_preset: whether the model is known by its dimensions alone.
    """

    ran_on: str
    device: str
    tp: int
    dtype: Dtype
    trainer: str
    halves: Origin
    is_preset: bool


@dataclass(frozen=True, slots=True)
class Profile:
    """Medians of timed layers and transfers.

    Attributes:
        machine: where it was measured.
        torch_version: PyTorch's version.
        model: what the user called the model.
        fingerprint: the traced model's hash (layers and microbatch shape); of a preset, of its dimensions.
        micro_batch_size: sequences in the timed microbatch.
        seq_length: tokens of each sequence.
        processes: how many processes were busy at once.
        threads: compute threads of each.
        layers: seconds of each layer.
        stage_forward_s: what a stage's forward costs beside its layers.
        stage_backward_s: what a stage's backward costs beside its layers.
        link: transfers between two processes.
        reduce_s: combining the gradient norm over all processes.
        peak_flops: floating-point operations a second of a large matrix product on one process.
        cluster: what it says something about: this machine, or the cluster of a plan whose ranks were rehearsed here.
        speeds: how fast each process computed beside the median of all, where that differs by more than noise.
        process_bytes: what a process held beside tensors once all of that had run in it: threads, libraries' working
            space, fragments.
        sum_link: what a turn of a ring took that adds a large tensor up, the making of its message included; None where
            that was not measured.
        link_origin: where transfers and the norm's reduction come from: a rank that was rehearsed alone has none.
        rehearsal: of which plan's ranks, and on what; None where layers were timed one by one.
    """

    machine: Machine
    torch_version: str
    model: str
    fingerprint: str
    micro_batch_size: int
    seq_length: int
    processes: int
    threads: int
    layers: tuple[LayerCost, ...]
    stage_forward_s: float
    stage_backward_s: float
    link: LinkCost
    reduce_s: float
    peak_flops: float
    cluster: str = "local"
    link_origin: Origin = "measured"
    speeds: tuple[float, ...] | None = None
    process_bytes: int = 0
    sum_link: LinkCost | None = None
    rehearsal: Rehearsal | None = None

    def costs(self) -> Costs:
        """The measured costs."""
        return Costs(
            layers=self.layers,
            stage_forward_s=self.stage_forward_s,
            stage_backward_s=self.stage_backward_s,
            link=self.link,
            reduce_s=self.reduce_s,
            peak_flops=self.peak_flops,
            process_bytes=self.process_bytes,
            sum_link=self.sum_link,
            origin={
                "layers": "measured",
                "halves": self.rehearsal.halves if self.rehearsal else "measured",
                "link": self.link_origin,
                "optimizer": "measured",
                "memory": "analytic",
            },
            speeds=self.speeds,
        )

    def check_fits(self, model: Model, cluster: Cluster) -> None:
        """Refuse to be used for another model, shape, machine or number of processes.

        Raises:
            InputError: what differs, with both values.
        """
        if self.rehearsal is not None and self.rehearsal.is_preset:
            raise InputError(
                f"the profile is of the preset {self.model}, which is known by its dimensions alone, and {model.name} "
                f"is a model whose layers are traced; `evenflow plan {self.model} --profile` reads it"
            )
        pairs = [
            (
                "microbatch (micro_batch_size x seq_length)",
                f"{self.micro_batch_size} x {self.seq_length}",
                _shape(model),
            ),
            (
                "model (fingerprint)" if model.tp == 1 else f"model (fingerprint) at tp {model.tp}",
                self.fingerprint,
                model.fingerprint,
            ),
            ("number of layers", len(self.layers), len(model.layers)),
            ("number of processes", self.processes, cluster.devices),
            ("number of threads", self.threads, cluster.threads),
        ]
        if self.cluster != cluster.name:
            raise InputError(
                f"the profile was measured on {self.machine.processor} (cluster {self.cluster}), which says nothing "
                f"about {cluster.name}; without --profile its costs come from FLOPs"
            )
        if cluster.is_local:
            pairs.insert(0, ("machine", self.machine, this_machine()))
        for what, measured, wanted in pairs:
            if measured != wanted:
                raise InputError(
                    f"the profile is for another {what}: it has {measured}, this plan {wanted}; "
                    "`evenflow profile` measures again"
                )


def _shape(model: Model) -> str:
    return f"{model.micro_batch_size} x {model.seq_length}"
