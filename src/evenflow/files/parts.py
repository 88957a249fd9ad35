"""Parts that several files share, so that one thing is written the same way everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, isinf
from typing import Annotated, Protocol

from pydantic import Field

from evenflow.cost import LinkCost, Network
from evenflow.files.document import Part
from evenflow.spec.batch import MOST_MICROBATCHES

# Bounds of the numbers in our files: far beyond what is real, and so near that what readers make of them (sums over a
# step, products and quotients of a few) stays within a float (1.8e308) and an int64 (9.2e18), in seconds of work.
MOST_COUNT = 10**9  # processes, steps, tokens of a sequence
MOST_TOKENS = 2**62  # trained on in a whole run
MOST_LAYERS = 1024  # a search looks at every run of layers: half a million
MOST_SECONDS = 1e9  # of one action: thirty years
LEAST_STEP_S = 1e-12  # figures are divided by a step's seconds: a picosecond
MOST_BYTES = 2**60  # of anything alone: an exbibyte
MOST_STEP_BYTES = 2**59  # all bytes of a plan's stages, for each microbatch of a step: half an exbibyte
MOST_FIGURE = 1e60  # what was computed, such as a loss: fp32 ends at 3.4e38
MOST_MOMENT_S = 1e12  # of any clock
LEAST_RATE, MOST_RATE = 1.0, 1e30  # bytes or operations a second

Count = Annotated[int, Field(ge=1, le=MOST_COUNT)]
Index = Annotated[int, Field(ge=0, le=MOST_COUNT)]
Tokens = Annotated[int, Field(ge=0, le=MOST_TOKENS)]
Microbatches = Annotated[int, Field(ge=1, le=MOST_MICROBATCHES)]
Bytes = Annotated[int, Field(ge=0, le=MOST_BYTES)]
SignedBytes = Annotated[int, Field(ge=-MOST_BYTES, le=MOST_BYTES)]
Seconds = Annotated[float, Field(ge=0, le=MOST_SECONDS)]
Moment = Annotated[float, Field(ge=-MOST_MOMENT_S, le=MOST_MOMENT_S)]
Rate = Annotated[float, Field(ge=LEAST_RATE, le=MOST_RATE)]
Figure = Annotated[float, Field(ge=-MOST_FIGURE, le=MOST_FIGURE)]
Amount = Annotated[float, Field(ge=0, le=MOST_FIGURE)]
Speed = Annotated[float, Field(ge=1e-3, le=1e3)]  # of a rank, beside the others
StepSeconds = Annotated[float, Field(ge=LEAST_STEP_S, le=MOST_FIGURE)]


class _Timed(Protocol):
    @property
    def forward_s(self) -> float:
        """Seconds of one forward."""


def no_time(key: str, parts: Iterable[_Timed]) -> str | None:
    """What is wrong with layers or stages whose forwards take no time, by which shares of a step are divided."""
    seconds = sum(part.forward_s for part in parts)
    if seconds >= LEAST_STEP_S:
        return None
    return f"{key}: all forward_s together are {seconds:g} s; {LEAST_STEP_S:g} or more would do"


class LinkPart(Part):
    """A link; `bytes_per_s` is null where transfers take no time, since JSON has no infinity."""

    latency_s: Seconds
    bytes_per_s: Rate | None

    @classmethod
    def of(cls, link: LinkCost) -> LinkPart:
        """The part that says what `link` is."""
        rate = None if isinf(link.bytes_per_s) else link.bytes_per_s
        return cls(latency_s=link.latency_s, bytes_per_s=rate)

    def value(self) -> LinkCost:
        """The link that this part says."""
        return LinkCost(self.latency_s, inf if self.bytes_per_s is None else self.bytes_per_s)


class NetworkPart(Part):
    """What joins nodes, and how many devices each has."""

    link: LinkPart
    node_devices: Count

    @classmethod
    def of(cls, network: Network) -> NetworkPart:
        """The part that says what `network` is."""
        return cls(link=LinkPart.of(network.link), node_devices=network.node_devices)

    def value(self, rank_devices: int) -> Network:
        """The network that this part says, where each pipeline rank has so many devices."""
        return Network(self.link.value(), self.node_devices, rank_devices)
