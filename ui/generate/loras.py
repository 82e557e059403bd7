"""LoRA files beside a model: which of the data folder's are added, each with a strength; and those of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth.config.generation import MAX_LORA_STRENGTH, AddedLora
from dreambooth.config.limits import as_written
from dreambooth.errors import ConfigError, FieldProblem
from dreambooth.models.lora_file import HASH_DIGITS, tensors_hash
from dreambooth.pictures.settings_text import UsedLora
from dreambooth.records.workspace import Workspace
from ui.boundary import QUICK, QUIET, Services
from ui.events import Answer, on

NUM_ROWS = 4
NAMES = tuple(f"lora_{number}" for number in range(1, NUM_ROWS + 1))
# The rows' values in the form for programs: `FILE:STRENGTH`.
TOGETHER = """(...shown) => {
  const half = shown.length / 2;
  return [shown.slice(0, half).map((file, place) => [file, shown[half + place]])
    .filter(([file]) => file).map(([file, strength]) => `${file}:${strength ?? 1}`)];
}"""


@dataclass(frozen=True)
class Loras:
    """The section's components; `chosen` combines the rows' values."""

    section: gr.Accordion
    rows: dict[str, gr.Row]
    files: dict[str, gr.Dropdown]
    strengths: dict[str, gr.Number]
    chosen: gr.JSON


def build(services: Services) -> Loras:
    """Lay out the section."""
    names = services.workspace.loras()
    rows, files, strengths = {}, {}, {}
    with gr.Accordion("LoRA files", open=False, elem_id="generate-loras") as section:
        gr.HTML(
            f"<p class='db-hint'>Added to the model, each with a strength. Put files into "
            f"<code>{services.workspace.loras_dir}</code>.</p>"
        )
        for place, name in enumerate(NAMES):
            with gr.Row(visible=place == 0, equal_height=True) as rows[name]:
                files[name] = gr.Dropdown(
                    ["", *names], value="", label=f"LoRA {place + 1}", elem_id=f"generate-{name}", scale=3,
                    allow_custom_value=True,
                )  # fmt: skip
                strengths[f"{name}_strength"] = gr.Number(
                    1.0, label="Strength", step=0.05, minimum=-MAX_LORA_STRENGTH, maximum=MAX_LORA_STRENGTH,
                    elem_id=f"generate-{name}-strength", min_width=110,
                )  # fmt: skip
    return Loras(section, rows, files, strengths, gr.JSON([], visible=False, label="LoRA files"))


def connect(loras: Loras) -> None:
    """Update the request, and the number of rows shown, as the rows are filled in."""
    shown = [*loras.files.values(), *loras.strengths.values()]
    changes = [component.change for component in shown]
    gr.on(changes, None, shown, loras.chosen, js=TOGETHER, **QUIET)


class Handlers:
    """The section's handlers, as functions of values."""

    @on(
        " ".join(f"{name}.change" for name in NAMES), "lora_files", "lora_rows", api_name="lora_rows",
        trigger_mode="always_last", **QUICK,
    )  # fmt: skip
    def rows(self, *files: str) -> Answer:
        """Show one row more than are filled in."""
        return {name: gr.Row(visible=place == 0 or any(files[place - 1 :])) for place, name in enumerate(NAMES)}


def asked_loras(workspace: Workspace, texts: Any) -> tuple[AddedLora, ...]:
    """Return the LoRAs in the data folder that these `FILE` or `FILE:STRENGTH` name; raises ConfigError."""
    if not isinstance(texts or [], list):
        message = 'must be a list of files of the data folder, such as ["cat.safetensors:0.8"].'
        raise ConfigError([FieldProblem("loras", message)])
    there = set(workspace.loras())
    asked = [AddedLora.of(str(text)) for text in texts or []]
    unknown = [one.file for one in asked if one.file not in there]
    if unknown:
        message = f"names {as_written(unknown[0])}, which is not in {workspace.loras_dir}."
        raise ConfigError([FieldProblem("loras", message)])
    return tuple(AddedLora(str(workspace.loras_dir / one.file), one.strength) for one in asked)


def found_again(workspace: Workspace, used: Sequence[UsedLora]) -> tuple[dict[str, Any], list[str]]:
    """Return the rows' fields for an image's LoRAs, and a sentence for each that is not here."""
    names = workspace.loras()
    rows: list[tuple[str, float]] = []
    missing = []
    for one in used:
        by_name = sorted(names, key=lambda name: Path(name).stem != one.name)
        same = (name for name in by_name if tensors_hash(workspace.loras_dir / name)[:HASH_DIGITS] == one.hash)
        if (name := next(same, None)) is not None:
            rows.append((name, one.strength))
        else:
            missing.append(f'The LoRA "{one.name}" with the hash {one.hash} is not in {workspace.loras_dir}.')
    if len(rows) > NUM_ROWS:
        missing.append(f"The picture used {len(rows)} LoRAs; the form has room for {NUM_ROWS}.")
    filled = [*rows, *[("", 1.0)] * NUM_ROWS][:NUM_ROWS]
    answer: dict[str, Any] = {name: file for name, (file, _) in zip(NAMES, filled, strict=True)}
    return answer | {f"{name}_strength": strength for name, (_, strength) in zip(NAMES, filled, strict=True)}, missing


def file_choices(names: Sequence[str]) -> Answer:
    """Return the updates that offer these files in the rows."""
    return {name: gr.Dropdown(choices=["", *names]) for name in NAMES}
