"""A row of published figures as a job, by stated rules for what it leaves out; its measured columns are not read.

The rules, each named where it was used: ffn is 4 x hidden (8/3 where kv_heads < heads); kv_heads is heads; vocab is
51200; micro_batch is 1; vpp is 2 for interleaved orders; recompute is none,
and attention then fused from 2048 tokens on (always since H100); dp is what global batch and devices leave.
"""

from __future__ import annotations

import re
from dataclasses import replace

from evenflow.cost.pinned import Order, Pinned, Redone
from evenflow.errors import InputError
from evenflow.spec.accelerators import find_accelerator
from evenflow.spec.architecture import Architecture, Experts, Latent
from evenflow.spec.presets import PRESETS

_DEFAULT_VOCAB = 51200
_FUSED = 400e12  # devices since H100 are taken to run fused attention
_NETWORK = re.compile(r"(\d+)x(?:OPA|HDR|NDR|EDR)(\d+)")


class Unpredictable(Exception):
    """Why a row is skipped."""


class _Reader:
    def __init__(self, row: dict[str, str]) -> None:
        self.row = row
        self.imputed: list[str] = []

    def number(self, name: str, otherwise: int | None = None) -> int:
        text = self.row.get(name, "")
        if text:
            return int(float(text))
        if otherwise is None:
            raise Unpredictable(f"{name} is not given")
        self.imputed.append(name)
        return otherwise


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
        device = replace(device, network_bytes_per_s=share)
    tp, pp, cp = reader.number("tp", 1), reader.number("pp", 1), reader.number("cp", 1)
    dp = reader.number("dp", max(1, reader.number("gpus") // (tp * pp * cp))) if not row["dp"] else int(row["dp"])
    schedule, recompute = row["schedule"].lower(), row["recompute"].lower()
    is_virtual = "interleaved" in schedule or schedule.endswith("-i")
    vpp = reader.number("vpp", 2 if is_virtual else 1) if is_virtual or row["vpp"] else 1
    micro_batch = reader.number("micro_batch", 1)
    if not recompute:
        reader.imputed.append("recompute")
    return Pinned(
        architecture=architecture,
        device=device,
        tp=tp, pp=pp, dp=dp, cp=cp,
        ep=reader.number("ep", 1),
        vpp=vpp,
        order=_order(schedule),
        micro_batch=micro_batch,
        global_batch=reader.number("global_batch"),
        seq=reader.number("seq"),
        redone=_redone(recompute),
        zero=3 if "fsdp" in schedule or "zero-3" in schedule else 1,
        is_eighth=any(word in row["precision"].lower() for word in ("fp8", "fp4")),
        is_flash=device.half_flops > _FUSED or (not recompute and reader.number("seq") >= 2048),
        is_sequence_parallel="no sp" not in recompute,
    ), tuple(reader.imputed)  # fmt: skip


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
    is_gated = known is not None or kv_heads < heads or "llama" in row["model"].lower()
    experts: Experts | None = known.experts if known else None
    latent: Latent | None = known.latent if known else None
    head_dim = known.head_dim if known and known.hidden == hidden else hidden // heads
    return Architecture(
        row["model"], row["source"], reader.number("layers"), hidden,
        reader.number("ffn", known.ffn if known else 4 * hidden), heads, kv_heads, head_dim,
        reader.number("vocab", known.vocab if known else _DEFAULT_VOCAB),
        gated=is_gated, biased=not is_gated, tied=not is_gated,
        query_norms=bool(known and known.query_norms), window=known.window if known else None,
        experts=experts, latent=latent,
    )  # fmt: skip


def _preset(name: str) -> Architecture | None:
    """The preset whose name a row's model begins with, letters and digits alone, or with a version number left out."""
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    for known in sorted(PRESETS.values(), key=lambda preset: -len(preset.name)):
        own = "".join(letter for letter in known.name if letter.isalnum())
        if plain.startswith((own, own.replace("llama31", "llama3"))):
            return known
    return None


def _order(schedule: str) -> Order:
    if "zb-2p" in schedule:
        return "zb-2p"
    if "zb-1p" in schedule:
        return "zb-1p"
    if "v-half" in schedule:
        return "v-half"
    return "interleaved-1f1b" if "interleaved" in schedule or schedule.endswith("-i") else "1f1b"


def _redone(recompute: str) -> Redone:
    if recompute.startswith("full"):
        return "full"
    return "attention" if "selective" in recompute or "core_attn" in recompute else "none"
