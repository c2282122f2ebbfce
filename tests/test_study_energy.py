"""Watt hours are those of made-up counters, over their end and round again; what cannot be read gives none."""

from pathlib import Path

import pytest
import torch

from handful.studies.energy import Meter

CPU = torch.device("cpu")


def counter(folder: Path, name: str, *, at: int, full: int = 10_000_000) -> Path:
    folder.mkdir(parents=True)
    for file, content in (("name", name), ("energy_uj", at), ("max_energy_range_uj", full)):
        (folder / file).write_text(f"{content}\n")
    return folder / "energy_uj"


def test_packages_and_memory_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    package = counter(tmp_path / "intel-rapl:0", "package-0", at=1_000)
    memory = counter(tmp_path / "intel-rapl:0:1", "dram", at=5_000)
    for place, name in (("intel-rapl:0:0", "core"), ("intel-rapl:1", "psys")):
        counter(tmp_path / place, name, at=0)
    meter = Meter(CPU, powercap=tmp_path)
    package.write_text("3601000\n")
    memory.write_text("7205000\n")
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("9000000\n")
    assert meter.watt_hours() == pytest.approx((3.6 + 7.2) / 3600)


def test_a_counter_that_was_full_goes_on_from_nought(tmp_path: Path) -> None:
    file = counter(tmp_path / "intel-rapl:0", "package-0", at=9_000_000)
    meter = Meter(CPU, powercap=tmp_path)
    for value in (9_500_000, 500_000, 8_000_000, 1_000_000):  # 0.5, 1, 7.5 and 3 J
        file.write_text(f"{value}\n")
        meter.look()
    assert meter.watt_hours() == pytest.approx(12 / 3600)


def test_what_cannot_be_read_is_not_measured(tmp_path: Path) -> None:
    assert Meter(CPU, powercap=tmp_path).watt_hours() is None
    file = counter(tmp_path / "intel-rapl:0", "package-0", at=1)
    meter = Meter(CPU, powercap=tmp_path)
    file.write_text("denied")
    assert meter.watt_hours() is None
    assert Meter(CPU, powercap=tmp_path).watt_hours() is None


def test_on_a_gpu_the_processor_alone_is_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter(tmp_path / "intel-rapl:0", "package-0", at=1)
    gpu = torch.device("cuda")
    monkeypatch.setattr("handful.studies.energy._gpu", lambda device: lambda: None)
    assert Meter(gpu, powercap=tmp_path).watt_hours() is None
    readings = iter((0, 7_200_000))
    monkeypatch.setattr("handful.studies.energy._gpu", lambda device: lambda: next(readings))
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("denied")  # to root alone, as usual
    assert Meter(gpu, powercap=tmp_path).watt_hours() == pytest.approx(7.2 / 3600)
