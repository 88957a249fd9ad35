"""Parts that several files share, so that one thing is written the same way everywhere."""

from __future__ import annotations

from math import inf, isinf
from typing import Annotated

from pydantic import Field

from evenflow.cost import LinkCost
from evenflow.files.document import Part

Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Bytes = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class LinkPart(Part):
    """A link; `bytes_per_s` is null where transfers take no time, since JSON has no infinity."""

    latency_s: Seconds
    bytes_per_s: Annotated[float, Field(gt=0)] | None

    @classmethod
    def of(cls, link: LinkCost) -> LinkPart:
        """The part that says what `link` is."""
        rate = None if isinf(link.bytes_per_s) else link.bytes_per_s
        return cls(latency_s=link.latency_s, bytes_per_s=rate)

    def value(self) -> LinkCost:
        """The link that this part says."""
        return LinkCost(self.latency_s, inf if self.bytes_per_s is None else self.bytes_per_s)
