"""A row of published figures as a job, by stated rules for what it leaves out; its measured columns are not read.

What is imputed is named beside the prediction. Dimensions: ffn is 4 x hidden; kv_heads is heads; heads are of 128; the
vocabulary is what the model's printed size leaves for it, else 51200. Layout: micro_batch is 1; an interleaved order
has the fewest stages a rank that its blocks divide into; dp is what devices leave; recompute is none.

What no column says follows from the device, since software and machines came together. Since H100: fused attention,
sequence parallelism, ZeRO 1, and exchanges beside the computation (of replicas, of tp in the forward, and of experts
where a rank has several stages). Before: none of these, but what the row names (FSDP, `+SP`, DeepSpeed), and fused
attention where recompute is not stated and sequences have 2048 tokens or more. FSDP2 takes PyTorch's own loss, and
DeepSpeed exchanges nothing of tp beside products and holds gradients in half precision, and in bf16 their sums in fp32
beside them.

A column that is missing is an empty one. A cell that should be a number and is none (`auto`, `~8`) skips its row, with
the column and the text: what it might mean is not guessed.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evenflow.cost.pinned import Order, Pinned, Redone
from evenflow.errors import InputError
from evenflow.spec.accelerators import find_accelerator
from evenflow.spec.architecture import Architecture, Experts, Latent
from evenflow.spec.presets import PRESETS

_DEFAULT_VOCAB = 51200
_FUSED = 400e12  # devices since H100 are taken to run fused attention
# DeepSpeed's own sizes of its two buckets, 5e8 numbers each, as Pythia's logs print them (wandb.ai/eleutherai/pythia).
_BUCKETS = 2 * 5e8 * 2
# What tells a row's prediction from any other's; a column that is not there beside these is one whose cells are empty.
_NEEDED = ("model", "gpu", "seq", "global_batch")
_NETWORK = re.compile(r"(\d{1,6})x(?:OPA|HDR|NDR|EDR)(\d{1,6})")


COLUMNS = (
    "source", "table", "model", "layers", "hidden", "ffn", "heads", "kv_heads", "vocab", "seq", "gpu", "gpus", "tp",
    "pp", "dp", "cp", "ep", "vpp", "schedule", "micro_batch", "global_batch", "precision", "recompute", "step_time_s",
    "tflops_per_gpu", "mfu", "peak_mem_gib", "flops_kind", "memory_kind", "memory_unit", "measured", "sweep",
    "not_modelled", "notes",
)  # fmt: skip
# Of any count, and of those that work grows with: no published figure comes near.
_MOST, _MOST_LAYERS = 10**7, 10**3


class Unpredictable(Exception):
    """Why a row is skipped."""


def complete(row: Mapping[Any, Any]) -> dict[str, str]:
    """The row with every column, those that are missing empty, and no blanks round what is there."""
    found = {name: text.strip() for name, text in row.items() if name is not None and isinstance(text, str)}
    return dict.fromkeys(COLUMNS, "") | found


def figure(row: Mapping[str, str], name: str) -> float | None:
    """A cell's positive number, None where it is empty.

    Raises:
        Unpredictable: it holds something else.
    """
    text = row.get(name) or ""
    if not text:
        return None
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise Unpredictable(f"{name} {text[:40]!r} is not a number above 0")
    return found


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV, each with every column (`complete`).

    Raises:
        InputError: there is no such file, it is no CSV, a column without which nothing is predicted is missing, or
            there are no rows.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _NEEDED if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{path} has no column {', '.join(missing)}; {', '.join(COLUMNS)} would do")
            rows = [complete(row) for row in reader]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV: {error}") from error
    if not rows:
        raise InputError(f"{path} has no rows; one for each configuration would do")
    return rows


class _Reader:
    def __init__(self, row: dict[str, str]) -> None:
        self.row = row
        self.imputed: list[str] = []

    def given(self, name: str) -> int | None:
        """A cell's whole number, however it is written (`8`, `8.0`, `8e0`); None where it is empty."""
        found = figure(self.row, name)
        most = _MOST_LAYERS if name in ("layers", "pp", "vpp") else _MOST
        if found is not None and (found != int(found) or found > most):
            raise Unpredictable(f"{name} {self.row[name][:40]!r} is not a whole number of at most {most}")
        return None if found is None else int(found)

    def number(self, name: str, otherwise: int | None = None) -> int:
        found = self.given(name)
        if found is not None:
            return found
        if otherwise is None:
            raise Unpredictable(f"{name} is not given")
        self.imputed.append(name)
        return otherwise


def read_job(row: Mapping[str, str]) -> tuple[Pinned, tuple[str, ...]]:
    """The job, and the columns that were imputed.

    Raises:
        Unpredictable: dimensions or the device are not known, the technique is not modelled, or a cell is unreadable.
    """
    row = complete(row)
    if row["not_modelled"]:
        raise Unpredictable(f"not modelled: {row['not_modelled']}")
    reader = _Reader(row)
    architecture = _architecture(reader)
    try:
        device = find_accelerator(row["gpu"])
    except InputError as error:
        raise Unpredictable(str(error)) from None
    if cards := _NETWORK.search(row["gpu"]):  # such as 4xOPA100: cards of a node and their Gbit/s
        share = int(cards[1]) * int(cards[2]) / 8 * 1e9 / device.node_devices
        if not share:
            raise Unpredictable(f"the network of {row['gpu']!r} carries nothing; 8xHDR200, say, would do")
        device = replace(device, network_bytes_per_s=share)
    if limit := re.search(r"(\d+) ?W\b", row["gpu"]):
        device = replace(device, watts=float(limit[1]))
    tp, pp, cp = reader.number("tp", 1), reader.number("pp", 1), reader.number("cp", 1)
    ep = reader.number("ep", 1)
    dp = reader.given("dp") or max(1, reader.number("gpus") // (tp * pp * cp))
    schedule, recompute = row["schedule"].lower(), row["recompute"].lower()
    is_native = "fsdp2" in schedule  # PyTorch's own modules, rather than a trainer's fused ones
    is_recent = device.half_flops > _FUSED
    precision, smallest = row["precision"].lower(), reader.number("micro_batch", 1)
    vpp = _stages(reader, schedule, architecture.layers, pp)
    order = _order(schedule, reader.given("vpp") or 1)
    seq = reader.number("seq")
    if not recompute:
        reader.imputed.append("recompute")
    _check(architecture, tp, pp, vpp, cp, seq)
    return Pinned(
        architecture=architecture, device=device, tp=tp, pp=pp, dp=dp, cp=cp, ep=ep,
        vpp=vpp,
        order=order,
        micro_batch=smallest,
        global_batch=reader.number("global_batch"),
        seq=seq,
        redone=_redone(recompute),
        zero=3 if "fsdp" in schedule or "zero-3" in schedule else 1 if is_recent or "deepspeed" in schedule else 0,
        is_eighth=any(word in precision for word in ("fp8", "fp4")),
        is_flash=is_recent or "fsdp" in schedule or (not recompute and seq >= 2048),
        is_sequence_parallel=is_recent or "+sp" in recompute.replace(" ", ""),
        is_overlapped=is_recent or "fsdp" in schedule,
        is_tp_overlapped=is_recent and not is_native,
        is_gradient_overlapped="deepspeed" not in schedule,
        is_ep_overlapped=is_recent and order == "interleaved-1f1b",
        is_loss_fused=not is_native,
        is_balanced="redis" in schedule,
        gradient_bytes=4 if "deepspeed" not in schedule else 2 if "fp16" in precision else 6,
        bucket_bytes=_BUCKETS if "deepspeed" in schedule else 0.0,
    ), tuple(reader.imputed)  # fmt: skip


def _check(it: Architecture, tp: int, pp: int, vpp: int, cp: int, seq: int) -> None:
    """Refuse what cannot be cut so, which is a slip of the row's."""
    if pp * vpp > it.layers + 2:
        raise Unpredictable(f"pp {pp} with {vpp} stages a rank is more than {it.layers} blocks and two ends")
    for name, value, what, most in (
        ("tp", tp, "heads", it.heads), ("tp", tp, "words of the vocabulary", it.vocab),
        ("cp", cp, "tokens of a sequence", seq),
    ):  # fmt: skip
        if value > most:
            raise Unpredictable(f"{name} {value} is more than the {most} {what}")


def _stages(reader: _Reader, schedule: str, layers: int, pp: int) -> int:
    """Stages of each rank; where an interleaved order does not say, the fewest that blocks divide into."""
    is_virtual = "interleaved" in schedule or schedule.endswith("-i")
    if not is_virtual and not reader.row["vpp"]:
        return 1
    each = layers // pp
    return reader.number("vpp", next((count for count in range(2, each + 1) if each % count == 0), 1))


def _architecture(reader: _Reader) -> Architecture:
    row = reader.row
    known = _preset(row["model"])
    if known is not None and not (row["layers"] and row["hidden"]):
        return known
    if not (row["layers"] and row["hidden"]):
        raise Unpredictable(f"dimensions of {row['model']!r} are not given, nor in a preset")
    hidden = reader.number("hidden")
    heads = reader.number("heads", max(1, hidden // 128))
    kv_heads = reader.number("kv_heads", heads)
    if heads > hidden:
        raise Unpredictable(f"its figures do not go together: {heads} heads of a hidden size of {hidden}")
    is_gated = known.gated if known else kv_heads < heads or "llama" in row["model"].lower()
    experts: Experts | None = known.experts if known else None
    latent: Latent | None = known.latent if known else None
    head_dim = known.head_dim if known and known.hidden == hidden else hidden // heads
    return Architecture(
        row["model"], row["source"], reader.number("layers"), hidden,
        reader.number("ffn", known.ffn if known else 4 * hidden), heads, kv_heads, head_dim,
        reader.number("vocab", known.vocab if known else _vocabulary(reader, hidden)),
        gated=is_gated, biased=known.biased if known else not is_gated, tied=known.tied if known else not is_gated,
        query_norms=bool(known and known.query_norms), window=known.window if known else None,
        experts=experts, latent=latent,
    )  # fmt: skip


def _vocabulary(reader: _Reader, hidden: int) -> int:
    """What a model's printed size leaves for its table, where a rounded size can tell; else the usual one."""
    size = re.search(r"(\d{1,6}(?:\.\d{1,6})?)B\b", reader.row["model"])
    if size is None or (reader.given("ffn") or 4 * hidden) != 4 * hidden:
        return _DEFAULT_VOCAB
    last_digit = 10.0 ** -len(size[1].partition(".")[2]) * 1e9
    left = (float(size[1]) * 1e9 - reader.number("layers") * (12 * hidden * hidden + 13 * hidden)) / hidden
    is_told = last_digit / 2 / hidden < 0.25 * left
    return round(left / 128) * 128 if is_told else _DEFAULT_VOCAB


def _preset(name: str) -> Architecture | None:
    """The preset whose name a row's model begins with, letters and digits alone, or with a version number left out."""
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    for known in sorted(PRESETS.values(), key=lambda preset: -len(preset.name)):
        own = "".join(letter for letter in known.name if letter.isalnum())
        if plain.startswith((own, own.replace("llama31", "llama3"))):
            return known
    return None


def _order(schedule: str, vpp: int) -> Order:
    if "zb-2p" in schedule:
        return "zb-2p"
    if "zb-1p" in schedule:
        return "zb-1p"
    if "v-half" in schedule:
        return "v-half"
    is_virtual = "interleaved" in schedule or schedule.endswith("-i") or vpp > 1
    return "interleaved-1f1b" if is_virtual else "1f1b"


def _redone(recompute: str) -> Redone:
    if recompute.startswith("full"):
        return "full"
    if "(op)" in recompute:
        return "operators"
    return "attention" if "selective" in recompute or "core_attn" in recompute else "none"
