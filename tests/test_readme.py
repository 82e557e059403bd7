"""The README's promises: its code runs, its commands parse, its tables are those of the code.

`python -m tests.test_readme` writes the settings table anew.
"""

import re
import shlex
from pathlib import Path

import pytest

from dreambooth.commands.cli import build_parser
from dreambooth.commands.train import training_config
from dreambooth.config.concepts import load_concepts_list
from dreambooth.config.fields import describe
from dreambooth.config.presets import PRESETS, preset
from dreambooth.config.training import TrainingConfig
from tests.harness.readme import README, ROOT, block_after, run, text
from tests.harness.tiny import tiny_base

BEGIN, END = "<!-- settings: written by `python -m tests.test_readme` -->\n", "<!-- end of settings -->"


def settings_table() -> str:
    """Return the README's table of settings, made from their own descriptions."""
    rows = ["| setting | default | allowed | |", "|---|---|---|---|"]
    for info in describe(TrainingConfig):
        default = "off" if info.type is bool else "" if info.default is None else f"`{info.default}`"
        allowed = "a switch" if info.type is bool else info.range_text
        rows.append(f"| `--{info.name}` | {default} | {allowed} | {info.sentence} |")
    return "\n".join(rows) + "\n"


def with_settings_table(readme: str) -> str:
    """Return the README's text with the table as it should be."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}{settings_table()}{END}{rest.split(END)[1]}"


def test_the_settings_table_is_the_codes() -> None:
    assert text() == with_settings_table(text()), "python -m tests.test_readme writes it anew"


def test_the_presets_table_is_the_codes() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (\w+ \| \w+ \| \w+ \| \d) \|$", text(), re.MULTILINE))
    assert set(rows) == set(PRESETS)
    for name, row in rows.items():
        values = preset(name)
        arithmetic = {"no": "fp32"}.get(values["mixed_precision"], values["mixed_precision"])
        switches = ["yes" if values.get(key) else "no" for key in ("use_8bit_adam", "gradient_checkpointing")]
        assert row.split(" | ") == [arithmetic, *switches, str(values["train_batch_size"])]


def commands() -> list[str]:
    """Return the README's command lines for `python -m dreambooth`."""
    blocks = re.findall(r"```sh\n(.*?)```", text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line.split("-m dreambooth ")[1] for line in lines if "-m dreambooth" in line]


@pytest.mark.parametrize("command", commands())
def test_the_commands_are_understood(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("photos/dog", "photos/cup", "classes/dog"):
        Path(folder).mkdir(parents=True)
    Path("concepts_list.json").write_text(re.findall(r"```json\n(.*?)```", text(), re.DOTALL)[0])
    assert len(load_concepts_list(Path("concepts_list.json"))) == 2
    arguments = vars(build_parser().parse_args(shlex.split(command)))
    if arguments.get("resume_from_checkpoint"):
        # Its settings are those of the run it names.
        assert arguments["output_dir"] == "runs/dog"
    elif arguments["run_command"].__name__ == "train_command":
        arguments.pop("run_command")
        config = training_config(arguments)
        assert config.max_train_steps == 800
        assert all(concept.class_prompt for concept in config.concepts)


def test_posix_and_windows_lines_do_the_same() -> None:
    for name in ("app", "tests", "demo"):
        posix, windows = block_after(name, "sh").strip(), block_after(name, "powershell").strip()
        translated = posix.replace("python3 -m venv", "py -m venv").replace(" &&", ";")
        assert translated.replace(".venv/bin/python", ".venv\\Scripts\\python") == windows


def test_files_that_it_names_are_there() -> None:
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", text())
    assert {"LICENSE", "NOTICE", "docs/page.png"} <= set(links)
    wrong = []
    for link in links:
        name, _, anchor = link.partition("#")
        file = ROOT / name if name else README
        titles = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE) if anchor and file.exists() else []
        anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
        wrong += [link] if not file.exists() or (anchor and anchor not in anchors) else []
    assert wrong == []


@pytest.mark.slow
def test_the_python_examples_run(tmp_path: Path) -> None:
    from dreambooth.data.samples import sample_folder

    base = tiny_base(tmp_path / "base")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cup").symlink_to(sample_folder())
    code = block_after("run: train", "python")
    for shown, quick in {
        '"starter"': repr(str(base)),
        "resolution=64": "resolution=32",
        "num_class_images=50": "num_class_images=2, save_infer_steps=2, n_save_sample=1",
        "max_train_steps=600": "max_train_steps=2",
        "seed=7": "seed=7, num_inference_steps=2",
    }.items():
        assert shown in code
        code = code.replace(shown, quick)
    printed = run(code, tmp_path)
    assert len(printed.split()) == 4
    assert all((tmp_path / line).is_file() for line in printed.split())

    code = block_after("run: diffusers", "python").replace("num_inference_steps=24", "num_inference_steps=2")
    run(code, tmp_path)
    assert (tmp_path / "cup.png").stat().st_size > 0


if __name__ == "__main__":
    README.write_text(with_settings_table(text()), "utf-8")
