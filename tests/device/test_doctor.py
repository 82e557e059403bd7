"""What the doctor concludes from facts, and that it can gather them here."""

import dataclasses
from pathlib import Path

import pytest

from dreambooth.device.doctor import Facts, Finding, doctor, gather_facts, judge
from dreambooth.device.hardware import Device, NvidiaGpu
from dreambooth.device.torch_build import install_line

GIB = 2**30
CARD = NvidiaGpu("Tesla T4", "550.54", 15 * GIB, 14 * GIB, "12.4")
HEALTHY = Facts(
    device=Device("cuda", "Tesla T4", 15 * GIB, 14 * GIB),
    python=(3, 12, 3),
    system="Linux x86_64",
    packages={"torch": "2.13.0", "bitsandbytes": "0.50.2", "torchvision": None, "xformers": None},
    requirements=("torch>=2.10,<3", "bitsandbytes>=0.50"),
    data_dir=Path("outputs"),
    disk_free_bytes=50 * GIB,
    card=CARD,
    torch_cuda="12.4",
)
ON_CPU = Device("cpu", "CPU with 2 cores", 8 * GIB, 6 * GIB)


def troubles(**changes: object) -> list[Finding]:
    """Return what is not ok when these facts differ from a healthy machine's."""
    return [finding for finding in judge(dataclasses.replace(HEALTHY, **changes)) if finding.level != "ok"]  # type: ignore[arg-type]


def test_a_healthy_machine_has_no_troubles() -> None:
    assert troubles() == []


def test_no_gpu_is_a_note_not_an_error() -> None:
    (finding,) = troubles(device=ON_CPU, card=None, torch_cuda=None)
    assert finding.level == "warn"
    assert "starter" in finding.todo


def test_a_cpu_build_of_torch_beside_a_card_is_bad() -> None:
    findings = troubles(device=ON_CPU, torch_cuda=None)
    assert [finding.level for finding in findings] == ["warn", "bad"]
    assert "CPU build" in findings[1].what
    assert findings[1].todo.splitlines()[-1] == install_line()


def test_a_driver_older_than_torchs_cuda_is_bad() -> None:
    findings = troubles(device=ON_CPU, torch_cuda="13.0")
    assert "CUDA 13.0, which is newer than the driver supports: Tesla T4 (driver 550.54, CUDA 12.4)" in findings[1].what
    assert "Update the NVIDIA driver" in findings[1].todo
    assert findings[1].todo.splitlines()[-1] == install_line()


def test_a_newer_minor_cuda_of_the_same_major_is_fine() -> None:
    assert troubles(torch_cuda="12.8") == []


def test_a_card_that_torch_does_not_see_is_bad() -> None:
    findings = troubles(device=ON_CPU)
    assert "finds no CUDA device" in findings[1].what
    assert "--gpus all" in findings[1].todo


def test_a_torch_that_cannot_be_imported_is_bad() -> None:
    findings = troubles(device=ON_CPU, torch_cuda=None, torch_problem="libcudart.so.12: cannot open")
    assert any(finding.level == "bad" and "libcudart.so.12" in finding.what for finding in findings)


def test_a_bitsandbytes_for_another_cuda_is_a_note_that_names_torchs() -> None:
    (finding,) = troubles(eight_bit_problem="CUDA binary not found")
    assert finding.level == "warn"
    assert "CUDA binary not found" in finding.what
    assert "CUDA 12.4" in finding.todo


def test_an_xformers_for_another_torch_is_a_note_with_both_versions() -> None:
    packages = HEALTHY.packages | {"xformers": "0.0.35"}
    (finding,) = troubles(packages=packages, xformers_problem="cannot load", xformers_built_for="2.10.0+cu128")
    assert finding.level == "warn"
    assert "built for torch 2.10.0+cu128; torch 2.13.0 is installed" in finding.what


def test_a_torchvision_for_another_torch_is_bad() -> None:
    packages = HEALTHY.packages | {"torchvision": "0.27.0"}
    assert [f.level for f in troubles(packages=packages, torchvision_wants="==2.12.0")] == ["bad"]
    assert troubles(packages=packages, torchvision_wants="==2.13.0") == []


@pytest.mark.parametrize(("version", "level"), [("2.9.1", "bad"), (None, "bad"), ("2.10.0+cu128", "ok")])
def test_torch_is_held_against_its_floor(version: str | None, level: str) -> None:
    levels = [finding.level for finding in troubles(packages=HEALTHY.packages | {"torch": version})]
    assert levels == ([] if level == "ok" else [level])


def test_a_missing_bitsandbytes_is_only_a_note() -> None:
    assert [f.level for f in troubles(packages=HEALTHY.packages | {"bitsandbytes": None})] == ["warn"]


def test_an_old_python_is_bad() -> None:
    assert [f.level for f in troubles(python=(3, 10, 9))] == ["bad"]


@pytest.mark.parametrize(("free_bytes", "levels"), [(GIB // 2, ["bad"]), (5 * GIB, ["warn"]), (20 * GIB, [])])
def test_a_full_disk_is_told(free_bytes: int, levels: list[str]) -> None:
    assert [f.level for f in troubles(disk_free_bytes=free_bytes)] == levels


def test_this_machine_can_be_asked_and_nothing_is_created(tmp_path: Path) -> None:
    data_dir = tmp_path / "not" / "there"
    facts = gather_facts(data_dir)
    assert facts.packages["torch"]
    assert facts.disk_free_bytes > 0
    assert not data_dir.exists()
    assert all(finding.what for finding in doctor(data_dir))
