"""What a Space reads of the README, and what the page says there of hardware and price."""

import re
from pathlib import Path

import pytest

from dreambooth.environment import Settings, load_settings
from ui.access.space import space_notice, training_refusal

ROOT = Path(__file__).resolve().parents[3]


def front_matter() -> dict[str, str]:
    """Return the README's first lines by their names."""
    text = (ROOT / "README.md").read_text("utf-8")
    match = re.match(r"---\n(.*?)\n---\n\n# ", text, re.DOTALL)
    assert match is not None, "a Space reads nothing unless it is the first thing in the file"
    return {name: value.strip('"') for name, value in (line.split(": ", 1) for line in match[1].splitlines())}


def test_a_space_runs_this_folder_with_the_tested_gradio() -> None:
    values = front_matter()
    tested = (ROOT / "constraints.txt").read_text("utf-8")
    assert f"\ngradio=={values['sdk_version']}\n" in tested
    assert values["sdk"] == "gradio"
    assert (ROOT / values["app_file"]).is_file()
    assert values["python_version"] in ("3.11", "3.12", "3.13")
    assert values["suggested_hardware"] == "t4-small"
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")
    assert values["license"] == "apache-2.0"


def test_zero_gpu_is_read_and_explained() -> None:
    settings = load_settings({"SPACE_ID": "ann/studio", "SPACES_ZERO_GPU": "true"})
    assert settings.zero_gpu
    refusal = training_refusal("ann/studio", has_login=True, zero_gpu=True)
    assert refusal is not None
    assert "ZeroGPU" in refusal.what
    assert "T4" in refusal.todo
    assert training_refusal("", has_login=True, zero_gpu=True) is None
    assert not load_settings({"SPACE_ID": "ann/studio"}).zero_gpu


@pytest.mark.parametrize(
    ("env", "told", "link"),
    [
        ({"SPACES_ZERO_GPU": "1"}, "nothing can be trained here", "?duplicate=true"),
        ({"ACCELERATOR": "none"}, "no GPU", "?duplicate=true"),
        ({"ACCELERATOR": "t4"}, "costs money for every minute", "/settings"),
    ],
)
def test_the_page_says_what_the_space_costs(env: dict[str, str], told: str, link: str) -> None:
    notice = space_notice(load_settings({"SPACE_ID": "ann/it's", **env}))
    assert told in notice
    assert f"https://huggingface.co/spaces/ann/it%27s{link}" in notice


def test_elsewhere_nothing_is_said_of_spaces(tmp_path: Path) -> None:
    assert space_notice(Settings(tmp_path)) == ""
