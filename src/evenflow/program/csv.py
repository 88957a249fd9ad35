"""A compute order as CSV, a row for each rank, as PyTorch's `_load_csv` reads it and `_dump_csv` writes it.

PyTorch pads its rows with empty cells to show when a rank idles, and writes a forward and a backward that
it overlaps as one cell, `(0F3;1B2)OVERLAP_F_B`. Reading drops the first and takes the second apart: our
ranks run one action at a time.
"""

from __future__ import annotations

import csv
import io
import re

from evenflow.errors import ProgramError
from evenflow.program.actions import Compute, Order
from evenflow.program.text import action_text, parse_compute

_OVERLAPPED = re.compile(r"\(([^()]*)\)OVERLAP_F_B")


def order_csv(order: Order) -> str:
    """The order's rows."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([action_text(action) for action in actions] for actions in order)
    return out.getvalue()


def parse_order_csv(text: str) -> Order:
    """Read what `order_csv` or PyTorch wrote; the row of a rank without actions is empty.

    Raises:
        ProgramError: a cell is not a compute action (its row and column are named), or this is no CSV.
    """
    try:
        rows = list(csv.reader(io.StringIO(text)))
    except csv.Error as error:  # a cell of more than 131072 characters, say
        raise ProgramError(f"it is not CSV: {error}") from None
    order: list[tuple[Compute, ...]] = []
    for row, cells in enumerate(rows, 1):
        actions: list[Compute] = []
        for column, cell in enumerate(cells, 1):
            match = _OVERLAPPED.fullmatch(cell.strip())
            for token in match[1].split(";") if match else [cell]:
                if token.strip():
                    actions.append(parse_compute(token.strip(), f"row {row}, column {column}"))
        order.append(tuple(actions))
    return tuple(order)
