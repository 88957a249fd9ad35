"""Order alone says which message is which, and what is staged in host memory is whole, in time and flat."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evenflow.errors import FaultError, InputError, PeerLostError
from evenflow.launch import ForkServer
from evenflow.runtime import (
    AloneTransport,
    InMemoryNetwork,
    StagedTransport,
    carry,
    choose_transport,
    edges_of,
    rank_device,
    rank_devices,
    to_device,
    use_device,
)
from tests.runtime.ranks import MESSAGES

CPU = torch.device("cpu")


def test_the_made_up_transport_is_ordered_and_blind_to_tags() -> None:
    """A receive in another order than its send brings the wrong tensor: what makes it a proof of FIFO order."""
    network = InMemoryNetwork(2, timeout_s=0.05)
    sender, receiver = network.transport(0), network.transport(1)
    sends = [sender.send(torch.tensor([float(tag)]), 1, tag) for tag in (5, 6)]
    with pytest.raises(PeerLostError, match="did not meet"):
        sends[0].wait()  # nothing is buffered on the way
    buffers = {tag: torch.empty(1) for tag in (6, 5)}
    for tag, buffer in buffers.items():
        receiver.receive(buffer, 0, tag).wait()
    assert {tag: float(buffer) for tag, buffer in buffers.items()} == {6: 5.0, 5: 6.0}
    for send in sends:
        send.wait()


def test_edges_are_ordered_and_apart_from_each_other(server: ForkServer, tmp_path: Path) -> None:
    ranks = 4
    group = server.start(
        "edges", "tests.runtime.ranks:around", ranks, {"ranks": ranks, "rendezvous": str(tmp_path / "meeting")}
    )
    results = dict(item for item in group.messages() if item is not None)
    for rank, result in results.items():
        neighbours = {(rank - 1) % ranks, (rank + 1) % ranks}
        expected = {
            f"{sender}-{number}": 100 * sender + 10 * rank + number
            for sender in neighbours
            for number in range(MESSAGES)
        }
        assert result["received"] == expected
        assert result["sum"] == sum(range(ranks))


def test_the_edges_of_stages() -> None:
    assert edges_of((0, 0)) == ()
    assert edges_of((0, 1, 2)) == ((0, 1), (1, 0), (1, 2), (2, 1))
    assert edges_of((0, 1, 1, 0)) == ((0, 1), (1, 0))  # a V
    assert edges_of((0, 1, 2, 0, 1, 2)) == ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))  # a loop


def test_staged_tensors_are_copied_when_sent_and_when_waited_for() -> None:
    network = InMemoryNetwork(2, timeout_s=5)
    sender, receiver = (StagedTransport(network.transport(rank), CPU) for rank in (0, 1))
    tensor, buffer = torch.arange(6.0).reshape(2, 3), torch.full((2, 3), -1.0)
    send = sender.send(tensor, 1, 0)
    expected = tensor.clone()
    tensor.zero_()  # the copy is what travels
    receive = receiver.receive(buffer, 0, 0)
    assert torch.equal(buffer, torch.full((2, 3), -1.0)), "a buffer of the device is filled only by `wait`"
    receive.wait()
    assert torch.equal(buffer, expected)
    buffer.zero_()
    receive.wait()
    assert torch.equal(buffer, torch.zeros(2, 3)), "a second wait does nothing"
    send.wait()


def test_host_buffers_are_as_many_as_were_under_way_at_once() -> None:
    network = InMemoryNetwork(2, timeout_s=5)
    sender, receiver = (StagedTransport(network.transport(rank), CPU) for rank in (0, 1))
    for seq in (4, 4, 4, 16, 8, 4):  # a length that changes between steps leaves no buffers behind
        sent = [torch.randn(2, seq, 3) for _ in range(3)]
        buffers = [torch.empty(2, seq, 3) for _ in sent]
        transfers = [sender.send(tensor, 1, 0) for tensor in sent]
        transfers += [receiver.receive(buffer, 0, 0) for buffer in buffers]
        for transfer in transfers:
            transfer.wait()
        assert all(torch.equal(own, buffer) for own, buffer in zip(sent, buffers, strict=True))
        assert (sender.buffers.made, receiver.buffers.made) == (3, 3)


def test_half_precision_and_odd_sizes_pass_through_the_host() -> None:
    network = InMemoryNetwork(2, timeout_s=5)
    sender, receiver = (StagedTransport(network.transport(rank), CPU) for rank in (0, 1))
    for tensor in (torch.randn(7), torch.randn(3, 5, dtype=torch.bfloat16), torch.arange(3), torch.randn(4, 4).t()):
        buffer = torch.empty(tensor.shape, dtype=tensor.dtype)
        send, receive = sender.send(tensor, 1, 0), receiver.receive(buffer, 0, 0)
        receive.wait()
        send.wait()
        assert torch.equal(buffer, tensor)


@pytest.mark.parametrize(
    ("devices", "kind"),
    [
        (["cpu", "cpu"], "gloo"),
        (["cuda:0", "cuda:1"], "nccl"),
        (["cuda:0", "cuda:0"], "staged"),
        (["cuda:0", "cuda:1", "cuda:0"], "staged"),
        (["a/cuda:0", "b/cuda:0"], "nccl"),  # the same number on two machines is two GPUs
        (["cuda-box/cpu", "b/cpu"], "gloo"),
    ],
)
def test_the_transport_follows_the_devices(devices: list[str], kind: str) -> None:
    assert choose_transport(devices) == kind


def test_ranks_with_and_without_a_gpu_are_refused() -> None:
    with pytest.raises(InputError, match="1 of 2 ranks have a GPU"):
        choose_transport(["cuda:0", "cpu"])


def test_ranks_take_the_gpus_in_turn() -> None:
    assert [str(rank_device(rank, 2)) for rank in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert rank_device(3, 0) == CPU


def test_ranks_of_several_hosts_each_count_their_own_gpus() -> None:
    places = [("10.0.0.1", 0), ("10.0.0.1", 1), ("10.0.0.2", 0), ("10.0.0.2", 1)]
    assert rank_devices(places, 2)[2] == "10.0.0.2/cuda:0"
    assert [choose_transport(rank_devices(places, gpus)) for gpus in (0, 1, 2)] == ["gloo", "staged", "nccl"]


def test_what_carries_tensors_is_made_of_what_the_ranks_met_on() -> None:
    host = InMemoryNetwork(2).transport(0)
    assert carry(host, "gloo", 0, (), CPU, 1) is host
    assert isinstance(carry(host, "staged", 0, (), CPU, 1), StagedTransport)
    alone = AloneTransport()
    assert carry(alone, "nccl", 0, (), torch.device("cuda", 0), 1) is alone


def test_ids_stay_where_they_are_without_a_gpu() -> None:
    ids = torch.arange(4)
    assert to_device(ids, CPU) is ids


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_said_in_one_line() -> None:
    with pytest.raises(FaultError, match="cannot compute on cuda:3: ") as error:
        use_device(torch.device("cuda", 3))
    assert "\n" not in str(error.value)
