"""What device this is and what works on it."""

import builtins
import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dreambooth.device import hardware
from dreambooth.device.hardware import (
    Device,
    NvidiaGpu,
    describe_cpu,
    device_line,
    driver_device,
    first_line,
    parse_nvidia_gpu,
    precisions,
    quietly,
)

FIELDS = "Tesla T4, 550.54.15, 15360, 14540\n"
OVERVIEW = "| NVIDIA-SMI 550.54.15   Driver Version: 550.54.15   CUDA Version: 12.4     |\n| rest"


def test_the_card_is_read_from_what_nvidia_smi_prints() -> None:
    assert parse_nvidia_gpu(FIELDS, OVERVIEW) == NvidiaGpu(
        "Tesla T4", "550.54.15", 15360 * 2**20, 14540 * 2**20, "12.4"
    )
    assert parse_nvidia_gpu(FIELDS + "Second, 550, 1, 1\n", "").cuda is None  # type: ignore[union-attr]
    for more, known in (("97, 71", (97, 71)), ("[N/A], [N/A]", (None, None))):
        live = parse_nvidia_gpu(f"{FIELDS.strip()}, {more}\n", OVERVIEW)
        assert live is not None
        assert (live.load_percent, live.temperature_c) == known


@pytest.mark.parametrize("fields", ["", "No devices were found", "A, 1, [N/A], [N/A]"])
def test_what_is_no_card_is_none(fields: str) -> None:
    assert parse_nvidia_gpu(fields, OVERVIEW) is None


def test_the_summary_names_the_card_and_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "read_nvidia_gpu", lambda: parse_nvidia_gpu(FIELDS, OVERVIEW))
    monkeypatch.setattr(hardware, "is_cpu_build", lambda: True)
    beside = driver_device()
    assert (beside.kind, beside.unused_card) == ("cpu", "Tesla T4")
    assert device_line(beside).startswith("Tesla T4 not used: CPU with ")
    monkeypatch.setattr(hardware, "is_cpu_build", lambda: False)
    assert device_line(driver_device()) == "GPU: Tesla T4, 14.2 of 15.0 GB free"
    monkeypatch.setattr(hardware, "read_nvidia_gpu", lambda: None)
    assert "memory free" in device_line(driver_device())


def test_the_summary_needs_no_torch() -> None:
    code = "import sys; from dreambooth.device.hardware import device_line, driver_device\n"
    code += "device_line(driver_device()); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_the_cpu_has_memory() -> None:
    cpu = describe_cpu()
    assert cpu.kind == "cpu"
    assert 0 < cpu.free_bytes <= cpu.total_bytes


def test_a_cpu_has_no_half_precision() -> None:
    assert precisions(Device("cpu", "", 1, 1)) == ("no", "bf16")
    assert precisions(Device("mps", "", 1, 1)) == ("no", "fp16")


def test_eight_bit_adam_is_tried_for_real() -> None:
    pytest.importorskip("bitsandbytes")
    hardware.eight_bit_adam_available.cache_clear()
    assert hardware.eight_bit_adam_available() is None


@pytest.mark.parametrize("error", [ImportError("no GPU here\nlong wall"), RuntimeError("\n  no GPU here\n")])
def test_an_unfit_bitsandbytes_is_one_plain_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real_import = builtins.__import__

    def broken_import(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("bitsandbytes"):
            raise error
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken_import)
    hardware.eight_bit_adam_available.cache_clear()
    try:
        assert hardware.eight_bit_adam_available() == "no GPU here"
    finally:
        hardware.eight_bit_adam_available.cache_clear()
    assert capsys.readouterr() == ("", "")


def test_a_missing_xformers_names_its_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: None)
    hardware.xformers_problem.cache_clear()
    try:
        assert "requirements-xformers.txt" in str(hardware.xformers_problem())
    finally:
        hardware.xformers_problem.cache_clear()


def test_an_error_without_words_is_told_by_its_kind() -> None:
    assert first_line(RuntimeError("")) == "RuntimeError"


@pytest.mark.gpu
def test_the_gpu_is_detected() -> None:
    device = hardware.detect_device()
    assert device.kind == "cuda"
    assert 0 < device.free_bytes <= device.total_bytes


def test_freed_memory_is_kept_during_a_training_and_given_back_after_it() -> None:
    """In a process of its own: what other tests have freed would be taken again, and nothing would grow."""
    program = """
import psutil
import torch
from dreambooth.device import hardware

def resident():
    return psutil.Process().memory_info().rss

torch.ones(1)
before = resident()
with hardware.freed_memory_kept("cpu"):
    tensors = [torch.ones(1 << 20) for _ in range(64)]  # 4 MiB each
    assert resident() - before > 200 << 20
    del tensors
assert resident() - before < 100 << 20
with hardware.freed_memory_kept("cuda"):
    pass
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_diffusers_is_imported_without_bitsandbytes_which_can_be_afterwards() -> None:
    program = (
        "import sys; from dreambooth.models.base import quiet_libraries; quiet_libraries();"
        "assert 'diffusers' in sys.modules and 'bitsandbytes' not in sys.modules;"
        "from dreambooth.device.hardware import eight_bit_adam_available; assert eight_bit_adam_available() is None"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_two_probes_at_once_leave_the_log_as_it_was() -> None:
    """What is quiet is so for the whole process: the one that ends first must not open or close it for the other."""
    first_is_in, second_is_in, first_is_out = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with quietly():
            first_is_in.set()
            second_is_in.wait(0.2)
        first_is_out.set()

    def second() -> None:
        first_is_in.wait()
        with quietly():
            second_is_in.set()
            first_is_out.wait(10)

    before = logging.root.manager.disable
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(first), threads.submit(second)]:
            done.result(10)
    assert logging.root.manager.disable == before
