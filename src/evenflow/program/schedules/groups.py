"""Groups of microbatches that go through a rank's stages together."""

from __future__ import annotations


def groups_of(microbatches: int, ranks: int) -> tuple[range, ...]:
    """As many groups as have at least a microbatch for each rank, as equal as they can be, larger ones first."""
    count = max(microbatches // ranks, 1)
    size, more = divmod(microbatches, count)
    groups: list[range] = []
    first = 0
    for number in range(count):
        end = first + size + (number < more)
        groups.append(range(first, end))
        first = end
    return tuple(groups)
