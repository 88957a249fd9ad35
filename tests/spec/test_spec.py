"""Why: everything downstream trusts these values, so wrong ones are refused here, with what would do."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest

from evenflow.errors import InputError
from evenflow.spec import Batch, cluster, parse_cluster, this_machine
from evenflow.spec.accelerators import ACCELERATORS
from evenflow.spec.batch import default_micro_batch_size, divisors
from evenflow.spec.cluster import device_of, local_cluster
from evenflow.spec.machine import core_ids, usable_cores
from tests.property.cases import model_of


def test_a_batch_counts_microbatches_and_tokens():
    batch = Batch(24, 4, 128)
    assert batch.microbatches == 6
    assert batch.tokens == 24 * 128


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 1, 16), "batch sizes start at 1"),
        ((4, 0, 16), "batch sizes start at 1"),
        ((-4, 2, 16), "batch sizes start at 1"),
        ((4, 2, 1), "at least 2 tokens"),
        ((6, 4, 16), "a global batch of 6 does not divide into microbatches of 4; 1, 2, 3, 6 would do"),
        ((4, 8, 16), "a global batch of 4 does not divide into microbatches of 8; 1, 2, 4 would do"),
        ((360, 7, 16), "microbatches of 7; 1, 2, 3, 4, 5, 6, 8, 9, ... would do"),
    ],
)
def test_a_batch_that_cannot_be_says_what_would_do(sizes, message):
    with pytest.raises(InputError, match=message):
        Batch(*sizes)


def test_divisors():
    for number in range(1, 200):
        assert list(divisors(number)) == sorted({own for own in range(1, number + 1) if number % own == 0})


def test_the_default_microbatch_leaves_four_for_each_rank_or_as_many_as_there_are():
    for global_batch in range(1, 130):
        for ranks in (1, 2, 3, 4, 8, 64):
            size = default_micro_batch_size(global_batch, ranks)
            wanted = min(global_batch, 4 * ranks)
            assert Batch(global_batch, size, 2).microbatches >= wanted
            larger = [own for own in divisors(global_batch) if own > size]
            assert all(global_batch // own < wanted for own in larger), "a larger one would have done"
    assert default_micro_batch_size(32, 2) == 4
    assert default_micro_batch_size(8, 4) == 1


@pytest.mark.parametrize(
    ("text", "devices", "device"),
    [
        ("8xH100-80GB", 8, "H100-80GB"),
        ("128x8xA100-80GB", 1024, "A100-80GB"),
        ("A100-80GB", 1, "A100-80GB"),
        ("1x1xH100-80GB", 1, "H100-80GB"),
        ("2x72xGB200", 144, "GB200"),
        ("2x4xmi300x", 8, "MI300X"),
    ],
)
def test_short_forms_of_clusters(text, devices, device):
    read = parse_cluster(text)
    assert (read.name, read.devices, read.device) == (text, devices, device_of(ACCELERATORS[device]))
    assert not read.is_local
    assert read.threads == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cluster '' is not understood; `local`, 8xA100-80GB or 4x8xH100-80GB would be"),
        ("8", "is not understood"),
        ("8x", "is not understood"),
        ("-8xH100-80GB", "is not understood"),
        ("2x4x8xH100-80GB", "device 'x4x8xH100-80GB' is not|is not understood"),
        ("8xH100", "device 'H100' is not in the catalogue; H100-80GB, H100-96GB would do"),
        ("8xZX81", "device 'ZX81' is not in the catalogue"),
        ("0xH100-80GB", "cluster '0xH100-80GB' has no devices"),
        ("4x0xH100-80GB", "has no devices"),
    ],
)
def test_clusters_that_are_not_understood(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_cluster(text)
    assert "\n" not in str(caught.value)


def test_every_device_of_the_catalogue_says_where_its_figures_come_from():
    for name, accelerator in ACCELERATORS.items():
        device = device_of(accelerator)
        assert device.name == name
        assert device.source
        assert 0 < device.efficiency <= 1
        assert min(device.memory_bytes, device.flops, device.link_bytes_per_s, device.link_latency_s) > 0


@pytest.mark.parametrize(
    ("cores", "processes", "devices", "threads"),
    [
        (2, None, 2, 1),
        (4, None, 4, 1),
        (12, None, 8, 1),
        (64, None, 8, 8),
        (64, 2, 2, 8),
        (2, 5, 5, 1),
        (1, None, 1, 1),
    ],
)
def test_this_machine_as_a_cluster(monkeypatch, cores, processes, devices, threads):
    """Threads do not depend on how many processes there are, so that arithmetic does not either."""
    machine = replace(this_machine(), cores=cores, memory_bytes=1000)
    monkeypatch.setattr(cluster, "this_machine", lambda: machine)
    local = parse_cluster("local", processes)
    assert (local.devices, local.threads, local.is_local) == (devices, threads, True)
    assert local.device.memory_bytes == 1000 // devices
    assert local_cluster(processes, threads=3).threads == 3


def test_too_few_processes_or_threads_are_refused():
    with pytest.raises(InputError, match="0 processes is too few"):
        local_cluster(0)
    with pytest.raises(InputError, match="-1 threads is too few"):
        local_cluster(1, -1)


def test_this_machine_is_described_alike_each_time():
    assert this_machine() == this_machine()
    assert this_machine().cores == usable_cores() == len(core_ids()) >= 1
    assert this_machine().memory_bytes > 2**20
    assert this_machine().processor


def test_a_fingerprint_is_of_layers_and_shape_and_not_of_names():
    model = model_of(4, parameter_bytes=[400] * 4)
    assert replace(model, name="other").fingerprint == model.fingerprint
    others = [
        replace(model, seq_length=17),
        replace(model, micro_batch_size=2),
        replace(model, layers=model.layers[:-1]),
        replace(model, layers=(replace(model.layers[0], parameters=1), *model.layers[1:])),
        replace(model, layers=(replace(model.layers[0], operators=()), *model.layers[1:])),
        replace(model, tied_embeddings=True),
    ]
    prints = {own.fingerprint for own in [model, *others]}
    assert len(prints) == len(others) + 1
    # It stands in files, so it must not change without a new version of their format.
    assert model.fingerprint == "53164e666bb01116"


def test_a_model_sums_its_layers():
    model = model_of(5, parameter_bytes=[400, 40, 40, 40, 800])
    assert model.parameters == 330
    assert model.flops == 5 * 3000


def test_values_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Batch(4, 2, 16).seq_length = 3  # type: ignore[misc]
