"""Only a device that is known for certain has a peak."""

from __future__ import annotations

import pytest

from daybreak_trainer.telemetry.devices import memory_bytes, peak_flops_per_second


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_known_devices(name: str, tera: float) -> None:
    assert peak_flops_per_second(name) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "cpu",
        "Tesla V100-SXM2-32GB",
        "NVIDIA A10G",
        "NVIDIA H20",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA Z999",
    ],
)
def test_an_unknown_device_a_part_of_one_or_a_relative_has_no_peak(name: str) -> None:
    assert peak_flops_per_second(name) is None


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [("NVIDIA-H100-80GB-HBM3", 80), ("NVIDIA A100-SXM4-40GB", 40), ("NVIDIA GeForce RTX 4090", 24)],
)
def test_a_device_has_its_datasheets_memory(name: str, gigabytes: int) -> None:
    """By torch's name, or by the label of a node."""
    assert memory_bytes(name) == gigabytes * 10**9
    assert memory_bytes("cpu") is None
