"""What a profile of rehearsed ranks is used for: plans of its preset, device and shape, which a search is kept to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from evenflow.cost import Profile
from evenflow.cost.measured_preset import dimensions_hash
from evenflow.errors import InputError
from evenflow.search.layouts.assemble import PRESET_DTYPE
from evenflow.search.layouts.layout import Pins
from evenflow.spec import Cluster
from evenflow.spec.architecture import Architecture
from evenflow.spec.trainers import Trainer

MEASURED_AXES = ("tp", "cp", "ep", "micro_batch_size")  # a layer's seconds hang on these: see `cost.preset.Shape`
_LEAST_S = 1e-12  # of a block: others are counted in blocks


def check_profile(
    profile: Profile, architecture: Architecture, cluster: Cluster, seq_length: int, trainer: Trainer
) -> None:
    """Refuse a profile of anything else than this preset, as this trainer's ranks on such devices have it.

    Raises:
        InputError: what differs, with both values, and what would do.
    """
    own = profile.rehearsal
    if own is None or not own.is_preset:
        raise InputError(
            f"the profile is of {profile.model} as traced, and {architecture.name} is a preset, known by its "
            "dimensions alone; one that `evenflow rehearse --all --out` writes from a plan of the preset would do"
        )
    here = [group.accelerator.name for group in cluster.groups]
    for what, has, wanted, would in (
        ("preset", profile.model, architecture.name, f"a plan of {profile.model}"),
        ("preset (its dimensions)", profile.fingerprint, dimensions_hash(architecture), "a new rehearsal"),
        ("number of layers", len(profile.layers), architecture.layers + 2, "a new rehearsal"),
        ("sequence length", profile.seq_length, seq_length, f"--seq-length {profile.seq_length}"),
        ("type", own.dtype, PRESET_DTYPE, f"a plan in {PRESET_DTYPE}"),
        ("trainer", own.trainer, trainer.name, f"--for {own.trainer}"),
        ("device", own.device, ", ".join(dict.fromkeys(here)), f"a cluster of {own.device} alone"),
    ):
        if has != wanted:
            raise InputError(
                f"the profile is for another {what}: it has {has}, this plan {wanted}; {would} would do, or the "
                "profile of a plan as this one is"
            )
    for number, layer in enumerate(profile.layers[1:-1], 1):
        seconds = layer.forward_s + layer.input_s + layer.weight_s
        if seconds < _LEAST_S:
            raise InputError(
                f"the profile's layers.{number}, a block, takes {seconds:g} s; {_LEAST_S:g} or more would do, as a new "
                "rehearsal has it"
            )


def profiled_pins(profile: Profile, pins: Pins) -> Pins:
    """The axes that a search is to keep to: those that the user fixed, and those that the profile was rehearsed at.

    Raises:
        InputError: the user fixed one that the profile has not.
    """
    assert profile.rehearsal is not None
    measured = {"tp": profile.rehearsal.tp, "cp": 1, "ep": 1, "micro_batch_size": profile.micro_batch_size}
    for name, has in measured.items():
        if (asked := getattr(pins, name)) not in (None, has):
            flag = f"--{name.replace('_', '-')}"
            other = f"no --profile: {name} is not rehearsed" if name in ("cp", "ep") else f"a profile of {flag} {asked}"
            raise InputError(
                f"{flag} {asked}: the profile's layers were timed at {has}, which says nothing of others; {flag} {has} "
                f"would do, or {other}"
            )
    return replace(pins, tp=measured["tp"], cp=1, ep=1, micro_batch_size=profile.micro_batch_size)


def profile_notes(profile: Profile | None) -> Iterator[str]:
    """What a reader of the plan should know of its seconds."""
    if profile is None or (own := profile.rehearsal) is None:
        return
    yield (
        f"seconds of layers and updates are those of ranks rehearsed on {own.ran_on} in {own.dtype}, with evenflow's "
        f"own trainer, at tp {own.tp} and microbatches of {profile.micro_batch_size} x {profile.seq_length}, to which "
        "the search was kept; exchanges, transfers and memory are worked out"
    )
