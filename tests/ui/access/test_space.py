"""What a Space reads of the README, and what the page says there of hardware and price."""

import re
from pathlib import Path

import pytest

from dreambooth.config.presets import PRESETS, resolve
from dreambooth.config.training import MethodName
from dreambooth.device.hardware import Device
from dreambooth.environment import Settings, load_settings
from dreambooth.forecast.cards import CONTEXT_BYTES
from dreambooth.forecast.memory import memory_need, room_bytes
from dreambooth.forecast.shape import usual_shape
from dreambooth.formats.layout import LAYOUTS, FamilyName
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


def presets_that_fit(card_gb: int, family: FamilyName, method: MethodName) -> str:
    """Return in the document's words which presets fit a card with nothing else on it, at the base's own size."""
    # What a driver reports of these cards is near their size in powers of ten: 15 GiB of a T4, 22.4 of an L4.
    shape, total = usual_shape(LAYOUTS[family]), card_gb * 10**9
    room = room_bytes(Device("cuda", "", total, total - CONTEXT_BYTES))
    configs = {name: resolve({"method": method, "save_sample_prompt": "photo"}, None, name, family) for name in PRESETS}
    # A T4, the only card of 16 GB in the table, does not compute in bf16.
    fits = [
        name
        for name, config in configs.items()
        if memory_need(config, shape, "cuda").peak_bytes <= room
        and not (card_gb == 16 and "bf16" in (config.mixed_precision, config.weight_precision))
    ]
    missing = [name for name in PRESETS if name not in fits]
    if not missing or not fits:
        return "all" if fits else "none"
    shown = fits if len(fits) <= 3 else missing
    return ("" if shown is fits else "all but ") + ", ".join(f"`{name}`" for name in shown)


def test_the_documents_table_of_hardware_is_the_planners() -> None:
    document = (ROOT / "docs" / "space.md").read_text("utf-8")
    rows = re.findall(r"^\| \w[^|]* \| (\d+) GB \| [^|]*\| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", document, re.MULTILINE)
    assert len(rows) == 5
    for size, *cells in rows:
        kinds: list[tuple[FamilyName, MethodName]] = [("sd1", "full"), ("sdxl", "lora"), ("sdxl", "full")]
        assert cells == [presets_that_fit(int(size), *kind) for kind in kinds], size
