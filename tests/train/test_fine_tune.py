"""From a Hugging Face directory and a JSON-lines file to a fine-tuned directory, by one command and no other file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from evenflow.cli import main
from evenflow.files import load_metrics
from evenflow.train import saved_model_losses
from evenflow.train.tokenizer import train_bpe
from tests.conftest import TINY_LLAMA

QUESTIONS = [{"text": f"Q: what is {n} and {n}? A: {2 * n}"} for n in range(300)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory as transformers saves it: weights, tokenizer with a chat template, generation settings."""
    folder = tmp_path / "tiny"
    bpe = train_bpe([own["text"] for own in QUESTIONS], 380)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    config = AutoConfig.for_model(**TINY_LLAMA, eos_token_id=0, bos_token_id=None)
    torch.manual_seed(3)
    untrained = AutoModelForCausalLM.from_config(config)
    untrained.generation_config = GenerationConfig(temperature=0.5, do_sample=True, eos_token_id=0)
    untrained.save_pretrained(folder)
    return folder


def test_one_command_makes_a_directory_that_transformers_opens(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(own) + "\n" for own in QUESTIONS))
    options = ["--steps", "10", "--seq-length", "32", "--global-batch-size", "8", "--lr", "3e-3", "--processes", "2"]
    out = tmp_path / "tuned"
    assert main(["train", str(model), "--data", str(data), "--out", str(out), *options]) == 0
    assert "weights: read from" in capfd.readouterr().err
    losses = [own.loss for own in load_metrics(out / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 1
    ours, theirs = saved_model_losses(out, 32)
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert theirs < losses[0] - 1
    tuned = AutoModelForCausalLM.from_pretrained(out / "model")
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    assert (tuned.generation_config.temperature, tuned.generation_config.eos_token_id) == (0.5, 0)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(model).chat_template
    prompt = tokenizer("Q: what is 7", return_tensors="pt")["input_ids"]
    assert tuned.generate(prompt, max_new_tokens=3, do_sample=False).shape[1] > prompt.shape[1]
    written = sorted(file.name for file in (out / "model").iterdir())
    assert written == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
