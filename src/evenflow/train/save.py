"""The trained model as a Hugging Face directory: the ranks' weights, and what transformers wants beside them."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer
from transformers import GenerationConfig

from evenflow.files import check_inside
from evenflow.models import ModelSource, write_index
from evenflow.models.anatomy import build_skeleton
from evenflow.runtime import TORCH_DTYPES
from evenflow.spec import Dtype
from evenflow.train.tokenizer import save_tokenizer


def finish_model_folder(
    partial: Path,
    final: Path,
    source: ModelSource,
    tokenizer: Tokenizer,
    tokenizer_folder: Path | None,
    separator_id: int | None,
    shards: Sequence[Mapping[str, int]],
    dtype: Dtype = "fp32",
) -> None:
    """Complete a folder that holds every rank's shard and give it its name.

    Args:
        partial: the folder with the shards.
        final: what it is called once it is complete.
        source: the model that training started from.
        tokenizer: what the model was trained with.
        tokenizer_folder: where that comes from; None for one trained on the text.
        separator_id: the token between documents.
        shards: for each rank, the bytes of each tensor in its shard.
        dtype: what the weights were trained in, and are written in.

    Raises:
        InputError: a file to be copied leads out of its folder.
        OSError: the disk is full or fails.
    """
    write_index(partial, shards)
    config = copy.deepcopy(source.config)
    config.architectures = [type(build_skeleton(source.config)).__name__]
    config.dtype = str(TORCH_DTYPES[dtype]).removeprefix("torch.")
    if tokenizer_folder is None:
        config.eos_token_id = separator_id
        config.bos_token_id = None
    config.save_pretrained(partial)
    own_generation = source.folder / "generation_config.json" if source.folder else None
    if own_generation is not None and own_generation.is_file() and tokenizer_folder is not None:
        check_inside(own_generation.parent, own_generation)
        shutil.copyfile(own_generation, partial / "generation_config.json")
    else:
        GenerationConfig(eos_token_id=config.eos_token_id, bos_token_id=config.bos_token_id).save_pretrained(partial)
    save_tokenizer(tokenizer, tokenizer_folder, partial)
    if final.exists():  # a resumed run replaces the model that it stopped with
        shutil.rmtree(final)
    partial.rename(final)
