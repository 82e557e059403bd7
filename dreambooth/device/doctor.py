"""Diagnoses this machine and installation, with what to do: `python -m dreambooth doctor`.

`gather_facts` asks the machine; all conclusions are pure functions of the facts.
"""

import importlib.metadata
import json
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dreambooth.device.hardware import (
    GIB,
    UNFIT,
    Device,
    NvidiaGpu,
    describe_cpu,
    detect_device,
    eight_bit_adam_available,
    first_line,
    gb,
    quietly,
    read_nvidia_gpu,
    xformers_problem,
)
from dreambooth.device.torch_build import install_line

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
WATCHED_PACKAGES = ("torchvision", "xformers")

Level = Literal["ok", "warn", "bad"]


@dataclass(frozen=True)
class Finding:
    """One diagnosis: a state, and what to do about it."""

    level: Level
    what: str
    todo: str = ""


@dataclass(frozen=True)
class Facts:
    """The facts to be judged; None for what is absent."""

    device: Device
    python: tuple[int, int, int]
    system: str
    packages: dict[str, str | None]
    requirements: tuple[str, ...]
    data_dir: Path
    disk_free_bytes: int
    card: NvidiaGpu | None = None
    torch_cuda: str | None = None
    torch_hip: str | None = None
    torch_problem: str | None = None
    eight_bit_problem: str | None = None
    xformers_problem: str | None = None
    torchvision_wants: str | None = None
    xformers_built_for: str | None = None


def doctor(data_dir: Path) -> list[Finding]:
    """Return the state of this machine and installation, and what to do about problems."""
    return judge(gather_facts(data_dir))


def judge(facts: Facts) -> list[Finding]:
    """Return the findings that follow from these facts."""
    return [
        *_judge_device(facts),
        *_judge_python(facts),
        *_judge_packages(facts),
        *_judge_cuda(facts),
        *_judge_optional(facts),
        *_judge_disk(facts),
    ]


def gather_facts(data_dir: Path) -> Facts:
    """Gather everything the diagnosis checks; changes nothing."""
    requirements = _requirements()
    names = [_requirement_name(line) for line in requirements]
    packages = {name: _version(name) for name in (*names, *WATCHED_PACKAGES)}
    torch_problem, torch_cuda, torch_hip, device = None, None, None, describe_cpu()
    try:
        with quietly():
            import torch

            torch_cuda, torch_hip = torch.version.cuda, torch.version.hip
            device = detect_device()
    except UNFIT as error:
        torch_problem = first_line(error)
    return Facts(
        device=device,
        python=sys.version_info[:3],
        system=f"{platform.system()} {platform.machine()}",
        packages=packages,
        requirements=requirements,
        data_dir=data_dir,
        disk_free_bytes=_disk_free_bytes(data_dir),
        card=read_nvidia_gpu(),
        torch_cuda=torch_cuda,
        torch_hip=torch_hip,
        torch_problem=torch_problem,
        eight_bit_problem=None if torch_problem else eight_bit_adam_available(),
        xformers_problem=None if torch_problem or not packages["xformers"] else xformers_problem(),
        torchvision_wants=_wanted_torch("torchvision"),
        xformers_built_for=_xformers_build(),
    )


def _requirements() -> tuple[str, ...]:
    if not REQUIREMENTS.is_file():
        return ()
    lines = (line.split("#")[0].strip() for line in REQUIREMENTS.read_text("utf-8").splitlines())
    return tuple(line for line in lines if line)


def _requirement_name(line: str) -> str:
    from packaging.requirements import Requirement

    return Requirement(line).name


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _wanted_torch(package: str) -> str | None:
    """Return the torch versions an installed package requires, such as `==2.13.0`."""
    from packaging.requirements import Requirement

    if _version(package) is None:
        return None
    wanted = (Requirement(line) for line in importlib.metadata.requires(package) or [])
    return next((str(one.specifier) for one in wanted if one.name == "torch" and one.marker is None), None)


def _xformers_build() -> str | None:
    """Return the torch build that the installed xformers was compiled against, such as `2.10.0+cu128`."""
    try:
        files = importlib.metadata.files("xformers") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = next((file for file in files if file.name == "cpp_lib.json"), None)
    if found is None:
        return None
    build: str = json.loads(found.read_text("utf-8"))["version"]["torch"]
    return build


def _disk_free_bytes(folder: Path) -> int:
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def _judge_device(facts: Facts) -> list[Finding]:
    device = facts.device
    memory = f"{gb(device.free_bytes)} of {gb(device.total_bytes)} GB memory free"
    if device.kind == "cpu":
        todo = "The starter model trains here. Stable Diffusion takes hours on a CPU, SDXL longer: use an NVIDIA card."
        return [Finding("warn", f"No GPU in use: {device.name}, {memory}.", "" if facts.card else todo)]
    return [Finding("ok", f"{device.name} ({device.kind}), {memory}.")]


def _judge_python(facts: Facts) -> list[Finding]:
    version = ".".join(str(part) for part in facts.python)
    if (3, 11) <= facts.python[:2] <= (3, 13):
        return [Finding("ok", f"Python {version} on {facts.system}.")]
    return [
        Finding(
            "bad", f"Python {version} on {facts.system}.", "Create the virtual environment with Python 3.11 to 3.13."
        )
    ]


def _judge_packages(facts: Facts) -> list[Finding]:
    from packaging.requirements import Requirement

    install = "Install the requirements: pip install -r requirements.txt -c constraints.txt"
    findings = []
    for line in facts.requirements:
        wanted = Requirement(line)
        found = facts.packages.get(wanted.name)
        if found is None:
            level: Level = "warn" if wanted.name == "bitsandbytes" else "bad"
            findings.append(Finding(level, f"{wanted.name} is missing (required: {wanted.specifier}).", install))
        elif not wanted.specifier.contains(found, prereleases=True):
            findings.append(
                Finding("bad", f"{wanted.name} {found} is installed; {wanted.specifier} is required.", install)
            )
        else:
            findings.append(Finding("ok", f"{wanted.name} {found}"))
    return findings


def _judge_cuda(facts: Facts) -> list[Finding]:
    """Return where torch, the driver and the card disagree about CUDA."""
    findings = []
    if facts.torch_problem and facts.packages.get("torch"):
        findings.append(Finding("bad", f"torch cannot be imported: {facts.torch_problem}", "Install it again."))
    if facts.card is None or facts.torch_problem:
        return findings
    line = install_line()
    card = f"{facts.card.name} (driver {facts.card.driver}, CUDA {facts.card.cuda or 'unknown'})"
    if facts.torch_cuda is None and facts.torch_hip is None:
        todo = f"Install the CUDA build with this line; if nothing changes, update the NVIDIA driver first:\n{line}"
        findings.append(Finding("bad", f"This torch is a CPU build and cannot use the card: {card}.", todo))
    elif facts.torch_cuda and facts.card.cuda and _major(facts.torch_cuda) > _major(facts.card.cuda):
        todo = f"Update the NVIDIA driver, or install the build for it with this line:\n{line}"
        what = f"torch was built for CUDA {facts.torch_cuda}, which is newer than the driver supports: {card}."
        findings.append(Finding("bad", what, todo))
    elif facts.device.kind != "cuda":
        todo = "Restart the machine; in a container, start it with access to the GPU (--gpus all)."
        findings.append(Finding("bad", f"torch finds no CUDA device, although {card} is installed.", todo))
    return findings


def _judge_optional(facts: Facts) -> list[Finding]:
    from packaging.specifiers import SpecifierSet

    findings = []
    torch_version = facts.packages.get("torch")
    if facts.packages.get("bitsandbytes") and facts.eight_bit_problem:
        what = f"8-bit AdamW does not work: {facts.eight_bit_problem}"
        todo = "AdamW in 32 bits is used instead, which takes more memory; `pip install -U bitsandbytes` may fix it."
        if facts.torch_cuda:
            todo += f" It has to know CUDA {facts.torch_cuda}, torch's."
        findings.append(Finding("warn", what, todo))
    if facts.packages.get("xformers") is None:
        findings.append(Finding("ok", "xformers is not installed; PyTorch's attention (sdpa) is used, the default."))
    elif facts.xformers_problem:
        built = f" It was built for torch {facts.xformers_built_for}; torch {torch_version} is installed."
        findings.append(
            Finding(
                "warn",
                f"xformers does not work: {facts.xformers_problem}." + (built if facts.xformers_built_for else ""),
                "Remove it (pip uninstall xformers), or install the pair in requirements-xformers.txt.",
            )
        )
    else:
        findings.append(Finding("ok", f"xformers {facts.packages['xformers']} works."))
    wanted = facts.torchvision_wants
    if wanted and torch_version and not SpecifierSet(wanted).contains(torch_version, prereleases=True):
        what = (
            f"torchvision {facts.packages.get('torchvision')} needs torch{wanted}; torch {torch_version} is installed."
        )
        findings.append(Finding("bad", what, "Nothing here needs it, but its import fails: pip uninstall torchvision"))
    return findings


def _judge_disk(facts: Facts) -> list[Finding]:
    what = f"{gb(facts.disk_free_bytes)} GB free in {facts.data_dir}."
    if facts.disk_free_bytes < 1 * GIB:
        return [Finding("bad", what, "Free some space, or set DREAMBOOTH_HOME to a folder on a larger disk.")]
    if facts.disk_free_bytes < 10 * GIB:
        return [
            Finding(
                "warn",
                what,
                "Enough for the starter. A saved step of Stable Diffusion 1.5 takes 2 GB, one of SDXL 7 GB.",
            )
        ]
    return [Finding("ok", what)]


def _major(version: str) -> int:
    return int(version.split(".")[0])
