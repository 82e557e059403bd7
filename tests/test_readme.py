"""The README's and documents' promises: code runs, commands parse, links lead somewhere, tables are those of the code.

`python -m tests.test_readme` writes the generated tables of docs/settings.md again.
"""

import re
import shlex
from pathlib import Path

import pytest

from dreambooth.commands.cli import build_parser
from dreambooth.commands.train import training_config
from dreambooth.config.concepts import load_concepts_list
from dreambooth.config.fields import GROUP_TITLES, describe
from dreambooth.config.presets import PRESETS, preset
from dreambooth.config.recipes import DEFAULTS
from dreambooth.config.training import TrainingConfig
from tests.harness.readme import DOCUMENTS, README, SETTINGS, block_after, run, text
from tests.harness.tiny import tiny_base

SETTINGS_MARKS = "<!-- settings: written by `python -m tests.test_readme` -->\n", "<!-- end of settings -->"
DEFAULTS_MARKS = "<!-- defaults: written by `python -m tests.test_readme` -->\n", "<!-- end of defaults -->"
FAMILIES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "SDXL"}


def settings_tables() -> str:
    """Return a table of settings for each group, made from their own descriptions."""
    infos = describe(TrainingConfig)
    tables = []
    for group, title in GROUP_TITLES.items():
        rows = [f"### {title}\n", "| setting | default | allowed | |", "|---|---|---|---|"]
        for info in [info for info in infos if info.group == group]:
            default = "off" if info.type is bool else "" if info.default is None else f"`{info.default}`"
            allowed = "a switch" if info.type is bool else info.range_text
            rows.append(f"| `--{info.name}` | {default} | {allowed} | {info.sentence} |")
        tables.append("\n".join(rows))
    return "\n" + "\n\n".join(tables) + "\n\n"


def defaults_table() -> str:
    """Return the table of defaults that depend on family and method."""
    rows = ["| base model | method | defaults |", "|---|---|---|"]
    for (family, method), values in DEFAULTS.items():
        shown = ", ".join(f"`{name}` {'on' if value is True else value}" for name, value in values.items())
        rows.append(f"| {FAMILIES[family]} | {method} | {shown or 'those above'} |")
    return "\n".join(rows) + "\n"


def with_tables(settings: str) -> str:
    """Return docs/settings.md with its generated tables as they should be."""
    for (begin, end), table in ((SETTINGS_MARKS, settings_tables()), (DEFAULTS_MARKS, defaults_table())):
        before, rest = settings.split(begin)
        settings = f"{before}{begin}{table}{end}{rest.split(end)[1]}"
    return settings


def test_the_tables_of_settings_are_the_codes() -> None:
    written = SETTINGS.read_text("utf-8")
    assert written == with_tables(written), "run: python -m tests.test_readme"
    assert set(FAMILIES) == {family for family, _ in DEFAULTS}


def test_the_readme_is_a_newcomers() -> None:
    """What it is, with pictures, then two commands; tables are in docs/."""
    readme = README.read_text("utf-8")
    parts = re.split(r"^## (.+)$", readme, flags=re.MULTILINE)
    assert len(readme.splitlines()) < 260
    assert "docs/page.png" in parts[0]
    assert re.findall(r'<img src="[^"]+/([^"]+)"', parts[0])[-3:] == ["3.png", "before.webp", "after.webp"]
    assert parts[1] == "Install it and open the page"
    assert re.findall(r"^<!-- (\w+) -->", parts[2], re.MULTILINE) == ["app", "demo"]
    order = ["first time", "LoRA", "SDXL", "Colab", "Space", "command line", "program", "problem"]
    places = [next(place for place, title in enumerate(parts[1::2]) if word in title) for word in order]
    assert places == sorted(places)
    assert "| setting |" not in readme


def test_the_presets_table_is_the_codes() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (\w+ \| \w+ \| \w+ \| \d) \|$", SETTINGS.read_text("utf-8"), re.MULTILINE))
    assert set(rows) == set(PRESETS)
    for name, row in rows.items():
        values = preset(name)
        arithmetic = {"no": "fp32"}.get(values["mixed_precision"], values["mixed_precision"])
        switches = ["yes" if values.get(key) else "no" for key in ("use_8bit_adam", "gradient_checkpointing")]
        assert row.split(" | ") == [arithmetic, *switches, str(values["train_batch_size"])]


def commands() -> list[str]:
    """Return the documents' command lines for `python -m dreambooth`."""
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


def test_files_that_they_name_are_there() -> None:
    wrong, seen = [], set()
    for document in DOCUMENTS:
        page = document.read_text("utf-8")
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page) + re.findall(r'<img src="([^"]+)"', page):
            name, _, anchor = link.partition("#")
            file = document.parent / name if name else document
            titles = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE) if anchor and file.exists() else []
            anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
            wrong += [f"{document.name}: {link}"] if not file.exists() or (anchor and anchor not in anchors) else []
            seen.add(file.resolve())
    assert wrong == []
    missed = [document.name for document in DOCUMENTS if document != README and document.resolve() not in seen]
    assert missed == [], "every document can be found from another one"


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
    SETTINGS.write_text(with_tables(SETTINGS.read_text("utf-8")), "utf-8")
