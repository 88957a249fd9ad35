"""profile.json: measured costs, kept so that they are measured once for each machine, model and shape."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from evenflow.cost import TIMED_PARTS, LayerCost, Origin, Profile, Rehearsal
from evenflow.errors import InputError
from evenflow.files.document import Document, Part, read_document, refused_as, write_json
from evenflow.files.kinds import PROFILE, Kind
from evenflow.files.parts import MOST_LAYERS, MOST_SECONDS, Bytes, Count, LinkPart, Rate, Seconds, Speed, no_time
from evenflow.spec import Dtype, Machine

# A plan adds up what its layers take, and that are still seconds as a file has them.
LayerSeconds = Annotated[float, Field(ge=0, le=MOST_SECONDS / (8 * MOST_LAYERS))]


class MachinePart(Part):
    """Where it was measured."""

    processor: str
    cores: Count
    memory_bytes: Bytes
    system: str


class LayerPart(Part):
    """Seconds of one layer."""

    forward_s: LayerSeconds
    backward_s: LayerSeconds
    input_s: LayerSeconds
    weight_s: LayerSeconds
    norm_s: LayerSeconds
    optimizer_s: LayerSeconds
    recompute_s: LayerSeconds
    selective_s: LayerSeconds


class RehearsalPart(Part):
    """Whose ranks were rehearsed, and on what."""

    ran_on: str
    device: str
    tp: Count
    dtype: Dtype
    trainer: str
    halves: Origin
    is_preset: bool

    @classmethod
    def of(cls, rehearsal: Rehearsal) -> RehearsalPart:
        """The part that says what `rehearsal` is."""
        return cls(**{name: getattr(rehearsal, name) for name in Rehearsal.__slots__})


class ProfileDocument(Document):
    """The whole file."""

    kind: ClassVar[Kind] = PROFILE

    model: str
    fingerprint: str
    micro_batch_size: Count
    seq_length: Count
    machine: MachinePart
    torch_version: str
    processes: Count
    threads: Count
    layers: Annotated[list[LayerPart], Field(min_length=1, max_length=MOST_LAYERS)]
    stage_forward_s: LayerSeconds
    stage_backward_s: LayerSeconds
    link: LinkPart
    reduce_s: Seconds
    peak_flops: Rate
    cluster: str = "local"
    link_origin: Origin = "measured"
    speeds: list[Speed] | None = None
    process_bytes: Bytes = 0
    sum_link: LinkPart | None = None
    rehearsal: RehearsalPart | None = None

    @classmethod
    def of(cls, profile: Profile) -> ProfileDocument:
        """The file that says what `profile` is."""
        machine = profile.machine
        return cls(
            model=profile.model,
            fingerprint=profile.fingerprint,
            micro_batch_size=profile.micro_batch_size,
            seq_length=profile.seq_length,
            machine=MachinePart(**{name: getattr(machine, name) for name in Machine.__slots__}),
            torch_version=profile.torch_version,
            processes=profile.processes,
            threads=profile.threads,
            layers=[LayerPart(**{name: getattr(layer, name) for name in TIMED_PARTS}) for layer in profile.layers],
            stage_forward_s=profile.stage_forward_s,
            stage_backward_s=profile.stage_backward_s,
            link=LinkPart.of(profile.link),
            reduce_s=profile.reduce_s,
            peak_flops=profile.peak_flops,
            cluster=profile.cluster,
            link_origin=profile.link_origin,
            speeds=None if profile.speeds is None else list(profile.speeds),
            process_bytes=profile.process_bytes,
            sum_link=None if profile.sum_link is None else LinkPart.of(profile.sum_link),
            rehearsal=None if profile.rehearsal is None else RehearsalPart.of(profile.rehearsal),
        )

    def value(self) -> Profile:
        """The profile that this file says."""
        return Profile(
            machine=Machine(**self.machine.model_dump()),
            torch_version=self.torch_version,
            model=self.model,
            fingerprint=self.fingerprint,
            micro_batch_size=self.micro_batch_size,
            seq_length=self.seq_length,
            processes=self.processes,
            threads=self.threads,
            layers=tuple(LayerCost(**layer.model_dump()) for layer in self.layers),
            stage_forward_s=self.stage_forward_s,
            stage_backward_s=self.stage_backward_s,
            link=self.link.value(),
            reduce_s=self.reduce_s,
            peak_flops=self.peak_flops,
            cluster=self.cluster,
            link_origin=self.link_origin,
            speeds=None if self.speeds is None else tuple(self.speeds),
            process_bytes=self.process_bytes,
            sum_link=None if self.sum_link is None else self.sum_link.value(),
            rehearsal=None if self.rehearsal is None else Rehearsal(**self.rehearsal.model_dump()),
        )


def profile_json(profile: Profile) -> dict[str, Any]:
    """The profile as `profile --json` prints it and profile.json holds it.

    Raises:
        InputError: a figure is beyond what the file holds.
    """
    with refused_as(f"the profile of {profile.model}"):
        return ProfileDocument.of(profile).model_dump()


def save_profile(profile: Profile, path: Path) -> None:
    """Write profile.json, atomically."""
    write_json(path, profile_json(profile))


def load_profile(path: Path) -> Profile:
    """Read profile.json.

    Raises:
        InputError: the file is not a profile.
    """
    document = read_document(path, ProfileDocument)
    mistake = no_time("layers", document.layers)
    if mistake is not None:
        raise InputError(f"{path}: {mistake}")
    if document.speeds is not None and len(document.speeds) != document.processes:
        raise InputError(
            f"{path}: speeds: there are {len(document.speeds)} of {document.processes} processes; one of each would do"
        )
    return document.value()
