"""Well-known models by their dimensions alone, each with its source: no weights, no torch."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from evenflow.errors import InputError
from evenflow.spec.architecture import Architecture, Experts, Latent


def _gpt(name: str, source: str, layers: int, hidden: int, heads: int, vocab: int, positions: int) -> Architecture:
    return Architecture(
        name, source, layers, hidden, 4 * hidden, heads, heads, hidden // heads, vocab,
        gated=False, biased=True, tied=True, positions=positions,
    )  # fmt: skip


# Lightning-AI/litgpt's config.py copies the config.json whose address it gives beside each model.
_LITGPT = "; Lightning-AI/litgpt litgpt/config.py"
_LLAMA_2 = "Touvron et al. 2023, arXiv:2307.09288; meta-llama/Llama-2-*-hf config.json" + _LITGPT
_LLAMA_3 = "Grattafiori et al. 2024, arXiv:2407.21783, table 3; meta-llama/Meta-Llama-3.1-* config.json" + _LITGPT
_MIXTRAL = "Jiang et al. 2024, arXiv:2401.04088; mistralai/Mixtral-* config.json" + _LITGPT
_QWEN_3 = "Yang et al. 2025, arXiv:2505.09388; Qwen/Qwen3-* config.json" + _LITGPT
_GPT_3 = "Brown et al. 2020, arXiv:2005.14165, table 2.1; NVIDIA/Megatron-LM examples/gpt3"
_GPT_1T = "Narayanan et al. 2021, arXiv:2104.04473; calculon-ai/calculon models/megatron-1T.json"
_BLOOM = "bigscience-workshop/bigscience train/tr11-176B-ml/README.md (ALiBi)"
_GPT_OSS = "OpenAI 2025, arXiv:2508.10925; openai/gpt-oss-120b config.json, transformers' GptOssConfig"
_DEEPSEEK = "deepseek-ai/DeepSeek-V3 inference/configs; deepwiki.com/deepseek-ai/DeepSeek-V3/6.1-configuration-options"

_PLAIN_NAME = re.compile(r"[\w.+-]+")  # neither a path nor `organisation/name`

PRESETS: dict[str, Architecture] = {
    preset.name: preset
    for preset in (
        _gpt("gpt3-175b", _GPT_3, 96, 12288, 96, 50257, 2048),
        _gpt("gpt-1t", _GPT_1T, 128, 25600, 160, 51200, 2048),
        _gpt("bloom-176b", _BLOOM, 70, 14336, 112, 250880, 0),
        Architecture("llama-2-7b", _LLAMA_2, 32, 4096, 11008, 32, 32, 128, 32000),
        Architecture("llama-2-13b", _LLAMA_2, 40, 5120, 13824, 40, 40, 128, 32000),
        Architecture("llama-2-70b", _LLAMA_2, 80, 8192, 28672, 64, 8, 128, 32000),
        Architecture("llama-3.1-8b", _LLAMA_3, 32, 4096, 14336, 32, 8, 128, 128256),
        Architecture("llama-3.1-70b", _LLAMA_3, 80, 8192, 28672, 64, 8, 128, 128256),
        Architecture("llama-3.1-405b", _LLAMA_3, 126, 16384, 53248, 128, 8, 128, 128256),
        Architecture(
            "mixtral-8x7b", _MIXTRAL, 32, 4096, 14336, 32, 8, 128, 32000, experts=Experts(8, 2, 14336)
        ),
        Architecture(
            "mixtral-8x22b", _MIXTRAL, 56, 6144, 16384, 48, 8, 128, 32768, experts=Experts(8, 2, 16384)
        ),
        Architecture("qwen3-32b", _QWEN_3, 64, 5120, 25600, 64, 8, 128, 151936, query_norms=True),
        Architecture(
            "qwen3-235b-a22b", _QWEN_3, 94, 4096, 12288, 64, 4, 128, 151936,
            query_norms=True, experts=Experts(128, 8, 1536),
        ),
        Architecture(
            "qwen3-30b-a3b", _QWEN_3, 48, 2048, 6144, 32, 4, 128, 151936,
            query_norms=True, experts=Experts(128, 8, 768),
        ),
        Architecture(
            "gpt-oss-120b", _GPT_OSS,
            36, 2880, 2880, 64, 8, 64, 201088, window=128, experts=Experts(128, 4, 2880),
        ),
        Architecture(
            "deepseek-v3", "DeepSeek-AI 2024, arXiv:2412.19437; " + _DEEPSEEK + "; transformers' DeepseekV3Config",
            61, 7168, 18432, 128, 128, 192, 129280,
            experts=Experts(256, 8, 2048, shared_ffn=2048, dense_layers=3), latent=Latent(1536, 512, 128, 64, 128),
        ),
        Architecture(
            "deepseek-v2", "DeepSeek-AI 2024, arXiv:2405.04434; " + _DEEPSEEK + " (236B)",
            60, 5120, 12288, 128, 128, 192, 102400,
            experts=Experts(160, 6, 1536, shared_ffn=3072, dense_layers=1), latent=Latent(1536, 512, 128, 64, 128),
        ),
        Architecture(
            "nemotron-4-340b", "NVIDIA 2024, arXiv:2406.11704; NVIDIA/NeMo Nemotron4Config340B",
            96, 18432, 73728, 96, 8, 192, 256000, gated=False,
        ),
    )
}  # fmt: skip


def find_preset(name: str) -> Architecture:
    """The preset of a name, however it is spaced and cased.

    Raises:
        InputError: there is none; the nearest names are given.
    """
    plain = {_plain(known): known for known in PRESETS}
    if _plain(name) in plain:
        return PRESETS[plain[_plain(name)]]
    near = difflib.get_close_matches(_plain(name), list(plain), n=3, cutoff=0.4)
    would = ", ".join(plain[known] for known in near) or ", ".join(PRESETS)
    raise InputError(f"there is no preset {name!r}; {would} would do")


def preset_of(text: str) -> Architecture | None:
    """The preset that a MODEL on the command line is; None for a path or a hub id.

    Raises:
        InputError: it is none of these; the nearest presets are given.
    """
    if Path(text).exists() or not (is_preset(text) or _PLAIN_NAME.fullmatch(text)):
        return None
    try:
        return find_preset(text)
    except InputError as error:
        raise InputError(f"there is no model {text!r}: no such directory or config.json, and {error}") from None


def is_preset(name: str) -> bool:
    """Whether `find_preset` would find one."""
    return _plain(name) in {_plain(known) for known in PRESETS}


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
