"""Why: a catalogue is believed only as far as each of its figures says where it comes from."""

from __future__ import annotations

import pytest

from evenflow.draw import device_table
from evenflow.errors import InputError
from evenflow.files import load_device, save_device
from evenflow.spec.accelerators import ACCELERATORS, find_accelerator
from evenflow.spec.wires import WIRES

ASKED = (
    "V100 A100-40GB A100-80GB H100-80GB H100-96GB H800 H200 GH200 B200 B300 GB200 GB300 L4 RTX-4090 MI300X EPYC-9654"
)


def test_the_catalogue_has_what_was_asked_for_each_with_its_source():
    assert set(ASKED.split()) <= set(ACCELERATORS)
    for device in ACCELERATORS.values():
        assert len(device.source) > 20
        assert device.origin("network_bytes_per_s") == "assumed"  # a device does not say what it is plugged into
        assert {device.node_wire, device.network_wire} <= set(WIRES)
        assert device.eighth_flops >= device.half_flops > device.single_flops / 2
    kinds = {name.split()[0] for name in WIRES}
    assert {"NVLink", "PCIe", "InfiniBand", "RoCE", "Ethernet"} <= kinds


def test_peaks_are_the_printed_ones():
    assert ACCELERATORS["A100-80GB"].half_flops == 312e12
    assert ACCELERATORS["H100-80GB"].memory_bytes_per_s == 3350e9
    assert ACCELERATORS["B200"].node_bytes_per_s == 900e9


def test_a_device_is_found_by_the_beginning_of_a_text():
    assert find_accelerator("A100-80GB SXM (Selene, 8xHDR200)").name == "A100-80GB"
    assert find_accelerator("B200-SXM").name == "B200"
    with pytest.raises(InputError, match="RTX-4090"):
        find_accelerator("TPU v5")


def test_a_device_is_read_back_from_its_file(tmp_path):
    path = tmp_path / "device.json"
    save_device(ACCELERATORS["MI300X"], path)
    assert load_device(path) == ACCELERATORS["MI300X"]
    path.write_text(path.read_text().replace('"half_flops"', '"half_flop"'))
    with pytest.raises(InputError, match="half_flop"):
        load_device(path)
    assert device_table(ACCELERATORS["MI300X"]) is not None
