"""The device and its abilities; only functions that need torch import it."""

import contextlib
import ctypes
import dataclasses
import functools
import importlib.util
import logging
import platform
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from dreambooth.device.torch_build import is_cpu_build

GIB = 2**30
# glibc's mallopt parameters, and the size from which on memory is mapped separately.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, LARGE_BYTES = -1, -3, 32 << 20
# What importing or first calling a compiled package raises if it does not fit torch, the driver or the machine.
UNFIT = (ImportError, OSError, RuntimeError, AttributeError, ValueError)

# One at a time: hiding a package and silencing an import affect the whole process.
_imports_lock = threading.RLock()


@dataclass(frozen=True)
class Device:
    """What models run on, and its memory (the machine's own for `cpu` and `mps`).

    `unused_card` names an NVIDIA card that cannot be used because the installed torch is a CPU build.
    """

    kind: Literal["cuda", "mps", "cpu"]
    name: str
    total_bytes: int
    free_bytes: int
    unused_card: str = ""
    load_percent: int | None = None
    temperature_c: int | None = None


@dataclass(frozen=True)
class NvidiaGpu:
    """An NVIDIA card as its driver describes it; `cuda` is the newest CUDA version this driver supports."""

    name: str
    driver: str
    total_bytes: int
    free_bytes: int
    cuda: str | None = None
    load_percent: int | None = None
    temperature_c: int | None = None


# The device ----------------------------------------------------------------------------------------------------------


def detect_device() -> Device:
    """Return the device that torch would use here."""
    import torch

    if torch.cuda.is_available():
        free_bytes, total_bytes = torch.cuda.mem_get_info()
        return Device("cuda", torch.cuda.get_device_name(), total_bytes, free_bytes)
    if torch.backends.mps.is_available():
        cpu = describe_cpu()
        return Device("mps", "Apple GPU", cpu.total_bytes, cpu.free_bytes)
    return describe_cpu()


def describe_cpu() -> Device:
    """Return the processor and the machine's memory, without torch."""
    import psutil

    memory = psutil.virtual_memory()
    return Device("cpu", f"CPU with {_num_cores()} cores", memory.total, memory.available)


def default_num_threads() -> int:
    """Return how many threads torch uses by default: all cores but one, which is left to everything else that runs.

    A step of a small model has a few thousand parallel regions, and each waits for its slowest thread. With as many
    threads as cores, one busy process beside it makes a step ten times as long (docs/performance.md).
    """
    import psutil

    # Two threads on one core's hyperthreads compute no faster than one.
    return max(1, min(_num_cores(), psutil.cpu_count(logical=False) or sys.maxsize) - 1)


def _num_cores() -> int:
    """Return how many cores this process may use, hyperthreads counted separately."""
    import psutil

    if hasattr(psutil.Process, "cpu_affinity"):
        return len(psutil.Process().cpu_affinity())
    return psutil.cpu_count() or 1


def read_nvidia_gpu() -> NvidiaGpu | None:
    """Return the first NVIDIA card that nvidia-smi reports, None if there is none; torch is not imported."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = "--query-gpu=name,driver_version,memory.total,memory.free,utilization.gpu,temperature.gpu"
    fields = _output([tool, query, "--format=csv,noheader,nounits"])
    return parse_nvidia_gpu(fields, _output([tool])) if fields else None


def parse_nvidia_gpu(fields: str, overview: str) -> NvidiaGpu | None:
    """Return the card of nvidia-smi's CSV line; `overview` is its plain output, the only one with the CUDA version."""
    parts = [part.strip() for part in (fields.splitlines() or [""])[0].split(",")]
    if len(parts) not in (4, 6) or not (parts[2].isdigit() and parts[3].isdigit()):
        return None
    # A partitioned card, or an old driver, reports `[N/A]`.
    load, temperature = (int(part) if part.isdigit() else None for part in (parts[4:] or ["", ""]))
    _, found, rest = overview.partition("CUDA Version:")
    cuda = rest.split()[0] if found and rest.split() else None
    return NvidiaGpu(parts[0], parts[1], int(parts[2]) * 2**20, int(parts[3]) * 2**20, cuda, load, temperature)


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


@functools.cache
def device_name() -> str:
    """Return the name of the device for training; torch is not imported."""
    return driver_device().name


def driver_device() -> Device:
    """Return the device according to its driver, the system and torch's build; torch is not imported."""
    card = read_nvidia_gpu()
    if card is not None and not is_cpu_build():
        return Device(
            "cuda", card.name, card.total_bytes, card.free_bytes, load_percent=card.load_percent,
            temperature_c=card.temperature_c,
        )  # fmt: skip
    cpu = describe_cpu()
    if card is not None:
        return dataclasses.replace(cpu, unused_card=card.name)
    if (platform.system(), platform.machine()) == ("Darwin", "arm64"):
        return Device("mps", "Apple GPU", cpu.total_bytes, cpu.free_bytes)
    return cpu


def device_line(device: Device) -> str:
    """Return a device with its memory in words, such as `GPU: Tesla T4, 14.2 of 15.0 GB free`."""
    free, total = gb(device.free_bytes), gb(device.total_bytes)
    if device.kind == "cuda":
        return f"GPU: {device.name}, {free} of {total} GB free"
    unused = f"{device.unused_card} not used" if device.unused_card else "No GPU"
    name = device.name if device.kind == "mps" else f"{unused}: {device.name}"
    return f"{name}, {free} of {total} GB memory free"


def precisions(device: Device) -> tuple[str, ...]:
    """Return the values of `--mixed_precision` that this device supports."""
    if device.kind == "cpu":
        return ("no", "bf16")
    if device.kind == "mps":
        return ("no", "fp16")
    import torch

    return ("no", "fp16", "bf16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("no", "fp16")


@contextlib.contextmanager
def freed_memory_kept(device_kind: str) -> Iterator[None]:
    """On the CPU, have the process keep memory that a step frees, because the next step needs the same again.

    glibc returns it to the system and requests it anew each time, page by page: an eighth of a small model's step.
    Tensors from 32 MiB on are still allocated and freed individually. On other devices nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and device_kind == "cpu" else None
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        mallopt(M_TRIM_THRESHOLD, 2 * LARGE_BYTES)
        ctypes.CDLL(None).malloc_trim(0)


def gb(num_bytes: int) -> str:
    """Return bytes as gigabytes (2**30) with one decimal."""
    return f"{num_bytes / GIB:.1f}"


# Optional packages, tried for real -----------------------------------------------------------------------------------


@functools.cache
def xformers_problem() -> str | None:
    """Return why xformers cannot be used here, None if an attention forward and backward worked."""
    if importlib.util.find_spec("xformers") is None:
        return "it is not installed; see requirements-xformers.txt"
    if detect_device().kind != "cuda":
        return "it needs an NVIDIA card"
    import torch

    try:
        with quietly():
            from xformers.ops import memory_efficient_attention

            query = torch.zeros(1, 16, 2, 32, dtype=torch.float16, device="cuda", requires_grad=True)
            memory_efficient_attention(query, query, query).sum().backward()
    except UNFIT as error:
        return first_line(error)
    return None


@functools.cache
def eight_bit_adam_available() -> str | None:
    """Return why bitsandbytes' 8-bit AdamW cannot be used here, None if a step of it worked."""
    with _imports_lock:
        if importlib.util.find_spec("bitsandbytes") is None:
            return "bitsandbytes is not installed"
        device = detect_device().kind
        if device == "mps":
            return "bitsandbytes has no 8-bit optimizer for Apple GPUs"
        import torch

        try:
            with quietly():
                from bitsandbytes.optim import AdamW8bit

                # Smaller tensors stay in 32 bits and would prove nothing.
                weight = torch.nn.Parameter(torch.zeros(4096, device=device))
                weight.grad = torch.ones_like(weight)
                AdamW8bit([weight], lr=1.0).step()
                moved = bool((weight < 0).all())
        except UNFIT as error:
            return first_line(error)
        return None if moved else "a test step did not change the weights"


@contextlib.contextmanager
def bitsandbytes_hidden() -> Iterator[None]:
    """Hide bitsandbytes from imports in this block, unless it is already loaded."""
    with _imports_lock:
        if "bitsandbytes" in sys.modules:
            yield
            return
        absent: dict[str, Any] = {"bitsandbytes": None}
        sys.modules |= absent
        try:
            yield
        finally:
            del sys.modules["bitsandbytes"]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep warnings and log lines of an import or a probe off the terminal: its result is reported in one line."""
    with _imports_lock:
        disabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(disabled)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
