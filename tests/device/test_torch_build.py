"""Where a CPU build of torch sits beside an NVIDIA card, `doctor` and the page print the line that changes it."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from dreambooth.device import torch_build
from dreambooth.device.torch_build import install_line, is_cpu_build
from tests.harness.open_page import free_port

ROOT = Path(__file__).resolve().parents[2]
SMI = """#!/bin/sh
[ $# -gt 0 ] && echo "NVIDIA GeForce RTX 3060, 560.94, 12288, 11000" && exit
echo "| NVIDIA-SMI 560.94   Driver Version: 560.94   CUDA Version: 12.6     |"
"""
VERSION = (
    "from typing import Optional\n__version__ = '2.13.0'\ncuda: Optional[str] = {cuda}\nhip: Optional[str] = {hip}\n"
)


@pytest.mark.parametrize(
    ("cuda", "hip", "is_cpu"), [("None", "None", True), ("'12.6'", "None", False), ("None", "'7.1'", False)]
)
def test_torchs_own_file_says_which_build_it_is(
    cuda: str, hip: str, is_cpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('it is not imported')\n")
    (tmp_path / "torch" / "version.py").write_text(VERSION.format(cuda=cuda, hip=hip))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    is_cpu_build.cache_clear()
    try:
        assert is_cpu_build() is is_cpu
    finally:
        is_cpu_build.cache_clear()


def test_the_line_is_short_in_the_projects_folder_and_quoted_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "executable", str(ROOT / ".venv" / "bin" / "python"))
    assert install_line() == (
        ".venv/bin/python -m pip install -q uv; .venv/bin/python -m uv pip install --torch-backend=auto "
        "--reinstall-package torch torch -c constraints.txt"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path.parent / "a b" / "python"))
    words = shlex.split(install_line())
    assert words[0] == str(tmp_path.parent / "a b" / "python")
    assert Path(words[-1]).is_file()


@pytest.mark.skipif(not is_cpu_build(), reason="this torch has a GPU")
@pytest.mark.skipif(os.name == "nt", reason="the stand-in for the driver's tool is a shell script")
def test_doctor_and_the_header_print_the_line(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(SMI)
    tool.chmod(0o755)
    port = free_port()
    env = os.environ | {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "DREAMBOOTH_HOME": str(tmp_path / "data"), "DREAMBOOTH_PORT": str(port),
    }  # fmt: skip
    page = subprocess.Popen(
        [sys.executable, str(ROOT / "app.py")], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )
    try:
        doctor = subprocess.run(
            [sys.executable, "-m", "dreambooth", "doctor"],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        line = _line_in(ROOT)
        assert doctor.returncode == 1
        assert f"\n         {line}\n" in doctor.stdout
        assert page.stdout is not None
        for printed in iter(page.stdout.readline, ""):
            if "open at" in printed:
                break
        config = httpx.get(f"http://127.0.0.1:{port}/config", trust_env=False, timeout=60).text
        assert f"<code>{line}</code>" in config
        assert "NVIDIA GeForce RTX 3060 not used: CPU with" in config
    finally:
        page.terminate()
        page.communicate(timeout=60)


def _line_in(folder: Path) -> str:
    code = "from dreambooth.device.torch_build import install_line; print(install_line())"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_readme_has_the_windows_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = re.findall(r"```powershell\n(.*torch-backend.*)\n```", (ROOT / "README.md").read_text("utf-8"))
    monkeypatch.setattr(sys, "executable", str(ROOT / ".venv" / "Scripts" / "python"))
    assert [line.replace("\\", "/") for line in shown] == [install_line()]
    assert torch_build.PROJECT == ROOT
