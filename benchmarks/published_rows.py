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
"""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

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
_COLUMNS = (
    "source", "table", "model", "layers", "hidden", "ffn", "heads", "kv_heads", "vocab", "seq", "gpu", "gpus", "tp",
    "pp", "dp", "cp", "ep", "vpp", "schedule", "micro_batch", "global_batch", "precision", "recompute", "step_time_s",
    "tflops_per_gpu", "mfu", "peak_mem_gib", "flops_kind", "memory_kind", "memory_unit", "measured", "sweep",
    "not_modelled", "notes",
)  # fmt: skip
_MOST = {"layers": 4096}  # pipeline ranks are worked out one by one, and there are no more of them
_MOST_OF_ALL = 10**12
_NETWORK = re.compile(r"(\d+)x(?:OPA|HDR|NDR|EDR)(\d+)")


class Unpredictable(Exception):
    """Why a row is skipped."""


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV, with every column that predictions and errors ask for.

    Raises:
        InputError: there is no such file, it is no CSV, a column without which nothing is predicted is missing, or
            there are no rows.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="", restkey="")
            names = set(reader.fieldnames or ())
            missing = [name for name in _NEEDED if name not in names]
            if missing:
                raise InputError(f"{path} has no column {', '.join(missing)}; {', '.join(_COLUMNS)} would do")
            rows = [dict.fromkeys(_COLUMNS, "") | {name: row[name].strip() for name in _COLUMNS if name in row}
                    for row in reader]  # fmt: skip
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

    def number(self, name: str, otherwise: int | None = None) -> int:
        text = self.row.get(name, "")
        if text:
            return self._whole(name, text)
        if otherwise is None:
            raise Unpredictable(f"{name} is not given")
        self.imputed.append(name)
        return otherwise

    def _whole(self, name: str, text: str) -> int:
        most = _MOST.get(name, _MOST_OF_ALL)
        try:
            found = float(text)
        except ValueError:
            found = 0.0
        if not (found.is_integer() and 1 <= found <= most):
            raise Unpredictable(f"{name} is {text!r}; a whole number from 1 to {most} would do")
        return int(found)


def read_job(row: dict[str, str]) -> tuple[Pinned, tuple[str, ...]]:
    """The job, and the columns that were imputed.

    Raises:
        Unpredictable: dimensions or the device are not known, or the technique is not modelled.
    """
    if row.get("not_modelled"):
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
    dp = reader.number("dp") if row["dp"] else max(1, reader.number("gpus") // (tp * pp * cp))
    schedule, recompute = row["schedule"].lower(), row["recompute"].lower()
    is_native = "fsdp2" in schedule  # PyTorch's own modules, rather than a trainer's fused ones
    is_recent = device.half_flops > _FUSED
    precision, smallest = row["precision"].lower(), reader.number("micro_batch", 1)
    seq = reader.number("seq")
    if not recompute:
        reader.imputed.append("recompute")
    _check(architecture, tp, pp, cp, seq)
    return Pinned(
        architecture=architecture, device=device, tp=tp, pp=pp, dp=dp, cp=cp, ep=ep,
        vpp=_stages(reader, schedule, architecture.layers, pp),
        order=_order(schedule, row["vpp"]),
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
        is_ep_overlapped=is_recent and _order(schedule, row["vpp"]) == "interleaved-1f1b",
        is_loss_fused=not is_native,
        is_balanced="redis" in schedule,
        gradient_bytes=4 if "deepspeed" not in schedule else 2 if "fp16" in precision else 6,
        bucket_bytes=_BUCKETS if "deepspeed" in schedule else 0.0,
    ), tuple(reader.imputed)  # fmt: skip


def _check(it: Architecture, tp: int, pp: int, cp: int, seq: int) -> None:
    """Refuse what cannot be cut so, which is a slip of the row's."""
    for name, value, what, most in (
        ("pp", pp, "layers", it.layers), ("tp", tp, "heads", it.heads), ("tp", tp, "words of the vocabulary", it.vocab),
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
        raise Unpredictable(f"{heads} heads are more than a hidden size of {hidden} has numbers")
    is_gated = known.gated if known else kv_heads < heads or "llama" in row["model"].lower()
    experts: Experts | None = known.experts if known else None
    latent: Latent | None = known.latent if known else None
    head_dim = known.head_dim if known and known.hidden == hidden else hidden // heads
    return Architecture(
        row["model"], row["source"], reader.number("layers"), hidden,
        reader.number("ffn", known.ffn if known else 4 * hidden), heads, kv_heads, head_dim,
        reader.number("vocab", known.vocab if known else _vocabulary(row, hidden)),
        gated=is_gated, biased=known.biased if known else not is_gated, tied=known.tied if known else not is_gated,
        query_norms=bool(known and known.query_norms), window=known.window if known else None,
        experts=experts, latent=latent,
    )  # fmt: skip


def _vocabulary(row: dict[str, str], hidden: int) -> int:
    """What a model's printed size leaves for its table, where a rounded size can tell; else the usual one."""
    size = re.search(r"(\d{1,6}(?:\.\d{1,6})?)B\b", row["model"])
    if size is None or (row["ffn"] and int(float(row["ffn"])) != 4 * hidden):
        return _DEFAULT_VOCAB
    last_digit = 10.0 ** -len(size[1].partition(".")[2]) * 1e9
    left = (float(size[1]) * 1e9 - int(float(row["layers"])) * (12 * hidden * hidden + 13 * hidden)) / hidden
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


def _order(schedule: str, vpp: str) -> Order:
    if "zb-2p" in schedule:
        return "zb-2p"
    if "zb-1p" in schedule:
        return "zb-1p"
    if "v-half" in schedule:
        return "v-half"
    is_virtual = "interleaved" in schedule or schedule.endswith("-i") or (vpp.isdecimal() and int(vpp) > 1)
    return "interleaved-1f1b" if is_virtual else "1f1b"


def _redone(recompute: str) -> Redone:
    if recompute.startswith("full"):
        return "full"
    if "(op)" in recompute:
        return "operators"
    return "attention" if "selective" in recompute or "core_attn" in recompute else "none"
