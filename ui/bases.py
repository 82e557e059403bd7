"""Which models a visitor may name, and whether they can be had.

If the machine's folders are not the visitor's, only paths in the list may be named. Also the field for a LoRA's base,
shown if the base it was trained on is not on this machine.
"""

import dataclasses
import re
import time
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth.config.training import TrainingConfig
from dreambooth.errors import BaseModelError, ConfigError, FieldProblem
from dreambooth.forecast.offers import cpu_notice
from dreambooth.models.availability import bytes_to_download
from dreambooth.models.base import STARTER
from dreambooth.runs.start_notices import download_notice
from ui.boundary import Services

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
# Settings that name a model's files, and so could name any file of this machine.
MODEL_FIELDS = (
    "pretrained_model_name_or_path", "pretrained_vae_name_or_path", "tokenizer_name", "class_model_name_or_path",
    "initial_lora",
)  # fmt: skip
# A Hub model is checked again after this long; sooner if a network or a folder was missing.
CHECK_AGE_S, FAILURE_AGE_S = 300.0, 5.0
NOT_OFFERED = "cannot be used here: choose a model from the list, `starter`, or a Hub id such as owner/name."


def offered_base(services: Services, name: str) -> str:
    """Return the base with this name, a path only if it is in the list; raises BaseModelError for any other.

    The error is the same whether such a file exists or not.
    """
    name = (name or "").strip()
    if services.takes_folders or name in ("", STARTER):
        return name
    own = {entry.name: str(entry) for entry in services.workspace.models_dir.iterdir() if entry.name[0] != "."}
    if name in own:
        return own[name]
    listed = {value for _, value in services.jobs.models()} | {str(run.path) for run in services.workspace.runs()}
    # A folder in the app's own directory can look like a Hub id, and would take precedence.
    if name in listed or (HUB_ID.fullmatch(name) and not Path(name).exists()):
        return name
    raise BaseModelError(
        "That base model cannot be used here.",
        "Others can open this page, so it does not read other folders and files of this machine.",
        "Choose a model from the list, `starter`, or a Hub id such as owner/name.",
    )


def offered_models(services: Services, config: TrainingConfig) -> TrainingConfig:
    """Return the settings with models as `offered_base` returns them; raises ConfigError with all that are refused."""
    found, problems = {}, []
    for field in MODEL_FIELDS:
        name = getattr(config, field)
        if not isinstance(name, str):  # nothing, or a mistake that the settings' own check tells
            continue
        if field == "initial_lora" and name in services.workspace.loras():
            found[field] = str(services.workspace.loras_dir / name)
            continue
        try:
            found[field] = offered_base(services, name)
        except BaseModelError:
            problems.append(FieldProblem(field, NOT_OFFERED))
    if problems:
        raise ConfigError(problems)
    return dataclasses.replace(config, **found)


def lora_bases(services: Services) -> list[tuple[str, str]]:
    """Return what a LoRA can be added to: its own base first, then all other models that are not saved steps."""
    runs = str(services.workspace.runs_dir)
    bases = [(label, value) for label, value in services.jobs.models() if not value.startswith(runs)]
    return [("The one it was trained on", ""), *bases]


def missing_base_field(name: str) -> gr.Dropdown:
    """Lay out the field, hidden; `missing_base_update` shows it."""
    return gr.Dropdown(
        [], value="", label="Base model", allow_custom_value=True, elem_id=name, visible=False,
        info="What the LoRA is added to.",
    )  # fmt: skip


def missing_base_update(services: Services, missing: str) -> Any:
    """Return the update of the field: shown for a missing base, and empty, so that nothing is applied unseen."""
    info = f"It was trained on {missing}, which is not on this machine: choose that model." if missing else ""
    return gr.Dropdown(choices=lora_bases(services), value="", visible=bool(missing), info=info)


class CheckedBases:
    """Whether the models of settings can be had; the Hub is asked about each of them only now and then."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._known: dict[Hashable, tuple[float, int | None | BaseModelError]] = {}

    def bytes_to_download(self, config: TrainingConfig) -> int | None:
        """Return how much must still be downloaded for these settings, None if unknown.

        Raises BaseModelError for a model that cannot be had.
        """
        names = tuple(getattr(config, name) for name in (*MODEL_FIELDS, "revision", "variant"))
        checked_s, found = self._known.get(names, (0.0, None))
        if time.monotonic() - checked_s > (FAILURE_AGE_S if isinstance(found, BaseModelError) else CHECK_AGE_S):
            found = self._asked(config)
            self._known[names] = (time.monotonic(), found)
        if isinstance(found, BaseModelError):
            raise found
        return found

    def _asked(self, config: TrainingConfig) -> int | None | BaseModelError:
        token = self._services.settings.hub_token
        try:
            return bytes_to_download(config, token, self._services.workspace.models_dir)
        except BaseModelError as error:
            return error

    def notices(self, config: TrainingConfig) -> list[str]:
        """Return what its models take here: a download, and days on a CPU; raises BaseModelError as above."""
        download = download_notice(config, self.bytes_to_download(config))
        slow = cpu_notice(self._services.workspace, config, self._services.device())
        return [sentence for sentence in (download, slow) if sentence]
