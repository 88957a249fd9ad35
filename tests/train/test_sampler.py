from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evenflow.errors import InputError
from evenflow.launch import ForkServer
from evenflow.train.sampler import hold_out, microbatch, sample_ids, step_samples
from evenflow.train.sequences import Sequences
from evenflow.train.store import build_store
from evenflow.train.tokenizer import train_bpe

PROMISED = (
    (0, 2, 9, 1, 8, 5, 4, 3, 6, 7),
    (3, 1, 7, 8, 4, 0, 6, 9, 5, 2),
)


def _walk(seed: int, steps: int, batch: int, sequences: int) -> list[int]:
    return [item for step in range(1, steps + 1) for item in sample_ids(seed, step, batch, sequences)]


@pytest.mark.parametrize(("batch", "sequences"), [(1, 1), (2, 5), (4, 12), (7, 30), (30, 7), (11, 1)])
def test_each_epoch_is_a_permutation(batch: int, sequences: int) -> None:
    walk = _walk(3, steps=sequences * 4, batch=batch, sequences=sequences)
    assert len(walk) == 4 * sequences * batch
    for start in range(0, len(walk), sequences):
        assert sorted(walk[start : start + sequences]) == list(range(sequences))


def test_what_is_held_out_is_drawn_by_seed_and_never_trained_on() -> None:
    trained, held_out = hold_out(3, 40, 0.1)
    assert len(held_out) == 4
    assert sorted([*trained.tolist(), *held_out.tolist()]) == list(range(40))
    epoch = [own for step in range(1, 10) for own in step_samples(3, step, 4, trained)]
    assert sorted(epoch) == trained.tolist()
    assert hold_out(4, 40, 0.1)[1].tolist() != held_out.tolist() == hold_out(3, 40, 0.1)[1].tolist()
    assert [len(own) for own in hold_out(0, 2, 0.001)] == [len(own) for own in hold_out(0, 2, 0.999)] == [1, 1]
    with pytest.raises(InputError, match="the data makes one sequence"):
        hold_out(0, 1, 0.5)


def test_the_batch_size_does_not_change_the_order() -> None:
    assert _walk(1, 12, 5, 20) == _walk(1, 4, 15, 20) == _walk(1, 1, 60, 20)


def test_epochs_and_seeds_differ_and_are_shuffled() -> None:
    epochs = [sample_ids(seed, step, 100, 100) for seed in (-1, 0, 1, 2**63) for step in (1, 2, 3)]
    assert len(set(epochs)) == len(epochs)
    assert all(ids != tuple(range(100)) for ids in epochs)


def test_a_step_alone_decides() -> None:
    forward = [sample_ids(0, step, 8, 50) for step in range(1, 30)]
    backward = [sample_ids(0, step, 8, 50) for step in range(29, 0, -1)]
    assert forward == backward[::-1]
    assert all(type(item) is int for item in forward[0])


def test_the_order_is_a_promise(server: ForkServer) -> None:
    # Resumed runs rely on it: a change here makes them see other text than they were going to.
    assert sample_ids(0, 1, 10, 10) == PROMISED[0]
    assert sample_ids(1234, 7, 10, 10) == PROMISED[1]
    # Another interpreter, whose hashes are others: the fork server's.
    group = server.start("order", "tests.train.orders:run", 1, {"asked": [1234, 7, 10, 10]})
    (found,) = [item[1] for item in group.messages() if item is not None]
    assert tuple(found["ids"]) == PROMISED[1]


def test_sizes_start_at_one() -> None:
    for step, batch, sequences in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(ValueError, match="must start at 1"):
            sample_ids(0, step, batch, sequences)


def test_microbatches_are_the_ids_in_order(tmp_path: Path) -> None:
    text = Path(__file__).read_text()
    store = build_store([text], train_bpe([text], 300), tmp_path, 0)
    ids = sample_ids(5, 1, 6, store.sequences(16))
    batches = [microbatch(Sequences(store, 16, "stream", False), ids, index, 2).ids for index in range(3)]
    assert all(batch.shape == (2, 16) and batch.dtype == np.int64 for batch in batches)
    assert np.concatenate(batches).tolist() == [store.tokens[item * 16 : (item + 1) * 16].tolist() for item in ids]
    for index in (-2, -1, 3):
        with pytest.raises(IndexError, match="no microbatch"):
            microbatch(Sequences(store, 16, "stream", False), ids, index, 2)
