"""Handlers of the Train tab, as functions of values: the form's proposals, its mistakes, its start."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth.config.concepts import Concept
from dreambooth.config.effects import without_effect
from dreambooth.config.presets import decided_by_presets, method_asked_for, without_idle_options
from dreambooth.config.recipes import rate_warning
from dreambooth.config.training import TrainingConfig
from dreambooth.data.concept_notices import concept_notices
from dreambooth.data.masks import with_background_weight
from dreambooth.data.photo_sets import photo_set
from dreambooth.device.hardware import Device
from dreambooth.errors import BaseModelError, ConfigError, DreamBoothError, FieldProblem
from dreambooth.forecast.disk import saved_step_bytes
from dreambooth.forecast.offers import Offer, fitting, forecast, offers, proposed_config
from dreambooth.models.base import known_layout, read_card
from dreambooth.models.origin import step_sentence
from dreambooth.runs.shell_line import command_line, settings_text
from ui.address import to
from ui.bases import CheckedBases, offered_base, offered_models
from ui.boundary import QUICK, QUIET, Services
from ui.events import Answer, on
from ui.fields import MAIN_FIELDS, form_infos, has_effect, marks, read_fields, shown_value
from ui.late_answers import answer_of
from ui.render import error_panel, field_note, panel, phase_text
from ui.train.current_plan import ASKED, TICKET
from ui.train.plan import (
    method_choices,
    preset_choices,
    preset_note,
    start_sentence,
    too_little_memory,
    wrong_settings,
)

TOY_NOTICE = "A toy model to try everything with; for real results use Stable Diffusion 1.5 or SDXL and a GPU."
LATEST: dict[str, Any] = {"trigger_mode": "always_last", **QUICK}


def base_notice(base: str) -> str:
    """Return the panel that says before the start what this base is suited for, and which step of a run it is."""
    try:
        card = read_card(base)
    except DreamBoothError as error:
        return error_panel(error)
    step = step_sentence(base)
    notice = card.notice or (TOY_NOTICE if card.is_toy else "")
    return panel(notice or step, step if notice else "", tone="note") if notice or step else ""


def run_config(
    concepts: Sequence[Concept], base: str, typed: Mapping[str, Any], explicit: Collection[str] = ()
) -> TrainingConfig:
    """Return the settings of a run as in the form, unchecked; `explicit` are those set by a person."""
    values = dict(typed)
    if "num_train_epochs" in explicit and "max_train_steps" not in explicit:
        values["max_train_steps"] = None
    words = "\n".join(concept.instance_prompt for concept in concepts)
    values["save_sample_prompt"] = values.get("save_sample_prompt") or words
    # The form may have proposed options while their prerequisite was ticked.
    values = without_idle_options(values, explicit)
    return TrainingConfig(concepts=tuple(concepts), pretrained_model_name_or_path=base.strip(), **values)


def notices(config: TrainingConfig, explicit: Collection[str], of_base: Sequence[str] = ()) -> str:
    """Return the notices at a run's start: on its base, explicit settings without effect, and photos."""
    warning = rate_warning(config, read_card(config.pretrained_model_name_or_path).recipes)
    notices_by_title = {
        "Check the base model": of_base,
        "Check the learning rate": [warning] if warning else [],
        "Settings without effect": without_effect(config, explicit),
        "Check photos and prompts": concept_notices(config.concepts, config.background_weight),
    }
    return "".join(
        panel(head, " ".join(sentences), tone="note") for head, sentences in notices_by_title.items() if sentences
    )


def device_for_a_run(services: Services) -> Device:
    """Return the device as the next run finds it: what the app itself holds of it is freed by then."""
    device = services.device()
    free = min(device.total_bytes, device.free_bytes + services.jobs.held_bytes())
    return dataclasses.replace(device, free_bytes=free)


class Handlers:
    """The tab's handlers, as functions of values."""

    def __init__(self, services: Services, prompt_notes: Mapping[str, str] | None = None) -> None:
        self._services = services
        self._bases = CheckedBases(services)
        self._infos = form_infos()
        self._notes = {name: field_note(info) for name, info in self._infos.items()} | dict(prompt_notes or {})

    # The form --------------------------------------------------------------------------------------------------------

    # One event, so that two answers never compete: a request made meanwhile is sent after the first.
    @on(
        "base.change kind.change photo_set.change masked.change preset.input method.input",
        "base preset kind photo_set proposed fields", "answer notice",
        fills="proposals", api_name="propose_settings", **LATEST,
    )  # fmt: skip
    def propose(
        self, base: str, preset_name: str, kind: str, photo_set_name: str, proposed: Mapping[str, Any], *values: Any
    ) -> Answer:
        """Return settings that suit base and photos, and the preset that fits unless one was just selected."""
        explicit = self._explicit(proposed, values)
        is_chosen = preset_name != _remembered(proposed).get("preset")
        # What a preset decides no longer counts as typed.
        decided = decided_by_presets(method_asked_for(explicit)) if is_chosen else ()
        given_up = {name: explicit.pop(name) for name in decided if name in explicit}
        try:
            base = offered_base(self._services, base)
            self._bases.bytes_to_download(TrainingConfig(pretrained_model_name_or_path=base))
            num_photos = self._num_photos(photo_set_name)
            if not is_chosen:
                preset_name = fitting(self._offers(base, kind, num_photos, method_in(explicit)), preset_name)
            config = proposed_config(base, preset_name, kind, num_photos, explicit, device_for_a_run(self._services))
            config = with_background_weight(config, self._folders(photo_set_name), explicit)
        except DreamBoothError as error:
            return {"answer": {}, "notice": error_panel(error)}
        new = {name: shown_value(info, getattr(config, name)) for name, info in self._infos.items()}
        # What a person typed is kept: only proposals are filled in and remembered as such.
        values = {"preset": preset_name} | {name: value for name, value in new.items() if name not in explicit}
        asked = {name: shown_value(self._infos[name], value) for name, value in given_up.items()}
        return {"answer": answer_of(values, asked), "notice": base_notice(base)}

    def _read(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """Return the values by setting, with defaults for those that the selected method does not read and the form
        hides.
        """
        read = read_fields(self._infos, values)
        hidden = [info for info in self._infos.values() if not has_effect(info, read["method"])]
        return read | {info.name: info.default for info in hidden}

    def _explicit(self, proposed: Mapping[str, Any], values: tuple[Any, ...]) -> dict[str, Any]:
        """Return the values that differ from the proposals, and so were typed."""
        proposed, read = _remembered(proposed), self._read(values)
        return {
            name: value
            for name, value in read.items()
            if has_effect(info := self._infos[name], read["method"]) and shown_value(info, value) != proposed.get(name)
        }

    def _offers(self, base: str, kind: str, num_photos: int, explicit: Mapping[str, Any]) -> list[Offer]:
        return offers(self._services.workspace, base, kind, num_photos, explicit, device_for_a_run(self._services))

    def _num_photos(self, name: str) -> int:
        return len(photo_set(self._services.workspace, name).photos()) if name else 0

    def _folders(self, name: str) -> list[Path]:
        return [one.folder for one in photo_set(self._services.workspace, name).together()] if name else []

    @on(
        "newest_photos.then proposed.change preset.change base.change kind.change photos.change fields.change "
        "prompts.change",
        f"planned {ASKED}", "planned method preset preset_note plan command as_json", api_name="tell_plan", js=TICKET,
        **LATEST,
    )  # fmt: skip
    def tell(
        self, ticket: str, preset_name: str, kind: str, proposed: Mapping[str, Any], photo_set_name: str,
        instance_prompt: str, class_prompt: str, base: str, *values: Any,
    ) -> Answer:  # fmt: skip
        """Return what the presets and the current settings would take, and the settings as a command."""
        unplanned = {"planned": ticket, "command": "", "as_json": ""}
        try:
            num_photos = self._num_photos(photo_set_name)
            base, explicit = offered_base(self._services, base), self._explicit(proposed, values)
            decided = decided_by_presets(method_asked_for(explicit))
            free = {name: value for name, value in explicit.items() if name not in decided}
            offered = self._offers(base, kind, num_photos, free)
            asked = self._asked(preset_name, kind, photo_set_name, base, values)
            config = self._config(photo_set_name, instance_prompt, class_prompt, base, values, asked)
            wrong = [one for one in self._problems(photo_set_name, config) if one.field in self._infos]
            if wrong:
                return unplanned | {"plan": wrong_settings(wrong)}
            forecasted = forecast(self._services.workspace, config, num_photos, device_for_a_run(self._services))
            plan = start_sentence(forecasted) + notices(config, asked, self._bases.notices(config))
            command, as_json = command_line(config), settings_text(config)
        except BaseModelError as error:
            return unplanned | {"plan": error_panel(error)}
        # Settings that no run can have are reported at their fields when a run is started.
        except (DreamBoothError, TypeError, ValueError, ArithmeticError, KeyError):
            unfit = "<p class='db-plan db-quiet'>Some settings are invalid; press Start training to see which.</p>"
            return unplanned | {"plan": unfit}
        return {
            "planned": ticket,
            "method": gr.Radio(choices=self._method_choices(base, preset_name, kind, num_photos, free)),
            "preset": gr.Radio(choices=preset_choices(offered)), "preset_note": preset_note(offered, preset_name),
            "plan": plan, "command": command, "as_json": as_json,
        }  # fmt: skip

    def _method_choices(
        self, base: str, preset_name: str, kind: str, num_photos: int, explicit: Mapping[str, Any]
    ) -> list[tuple[str, str]]:
        """Return the methods with the size of what each would save, for this base with these settings."""
        models_dir, methods = self._services.workspace.models_dir, self._infos["method"].choices
        sizes = {}
        for method in methods:
            asked = {**explicit, "method": method}
            config = proposed_config(base, preset_name, kind, num_photos, asked, device_for_a_run(self._services))
            sizes[method] = saved_step_bytes(config, models_dir)
        layout = known_layout(base, models_dir)
        of_a_family = layout is not None and not read_card(base, models_dir).is_toy
        adds_to = f"any {layout.title} checkpoint" if layout and of_a_family else "models like this base"
        return method_choices(methods, sizes, adds_to)

    @on("method.change newest_photos.then", "method", "of_a_method", api_name="method_chosen", **QUICK)
    def method_chosen(self, method: str) -> Answer:
        """Show the settings that this method reads."""
        return {info.name: gr.update(visible=has_effect(info, method)) for info in self._infos.values() if info.method}

    def _asked(
        self, preset_name: str, kind: str, photo_set_name: str, base: str, values: tuple[Any, ...]
    ) -> frozenset[str]:
        """Return the names of the settings that differ from what the form proposes for base, preset and photos."""
        base, num_photos = offered_base(self._services, base), self._num_photos(photo_set_name)
        read = self._read(values)
        config = proposed_config(base, preset_name, kind, num_photos, method_in(read), device_for_a_run(self._services))
        config = with_background_weight(config, self._folders(photo_set_name), ())
        differing = {name for name, value in read.items() if value != getattr(config, name)}
        return frozenset(name for name in differing if has_effect(self._infos[name], config.method))

    def _config(
        self, photo_set_name: str, instance_prompt: str, class_prompt: str, base: str, values: tuple[Any, ...],
        asked: Collection[str] = (),
    ) -> TrainingConfig:  # fmt: skip
        """Return the form's run; raises ConfigError if there are no photos."""
        folder = photo_set(self._services.workspace, photo_set_name) if photo_set_name else None
        if folder is None:
            concept = Concept(instance_prompt.strip(), "", class_prompt.strip() or None)
            config = run_config([concept], base or "", self._read(values), asked)
        else:
            concepts = folder.concepts(instance_prompt, class_prompt)
            config = run_config(concepts, base or "", folder.with_captions(self._read(values)), asked)
        return offered_models(self._services, config)

    # Mistakes --------------------------------------------------------------------------------------------------------

    def _problems(self, photo_set_name: str, config: TrainingConfig) -> list[FieldProblem]:
        """Return every mistake in the photos and the settings."""
        found = []
        if not self._num_photos(photo_set_name):
            found.append(FieldProblem("instance_data_dir", "holds no photos: drop some on the first tab."))
        try:
            config.checked()
        except ConfigError as error:
            found += [problem for problem in error.problems if problem.field != "instance_data_dir" or not found]
        return found

    def _marks(self, problems: list[FieldProblem], marked: list[str]) -> dict[str, Any]:
        updates = marks([*self._infos, "instance_prompt", "class_prompt"], self._notes, problems, marked)
        return {"marked": [problem.field for problem in problems if problem.field in self._notes], **updates}

    @on(
        "fields.change prompts.change", "marked photo_set prompts base fields", "marked fields prompts",
        api_name="recheck_settings", **LATEST,
    )  # fmt: skip
    def recheck(
        self, marked: list[str], photo_set_name: str, instance_prompt: str, class_prompt: str, base: str, *values: Any
    ) -> Answer:
        """Unmark fields that were fixed; nothing is marked before the first start."""
        if not marked:
            return {}
        config = self._config(photo_set_name, instance_prompt, class_prompt, base, values)
        return self._marks(self._problems(photo_set_name, config), marked)

    # The start -------------------------------------------------------------------------------------------------------

    def _check_memory(
        self, config: TrainingConfig, preset_name: str, photo_set_name: str, values: tuple[Any, ...]
    ) -> None:
        """Raise DeviceError for a run that would run out of memory, naming the preset that would not."""
        device, num_photos = device_for_a_run(self._services), self._num_photos(photo_set_name)
        if self._services.jobs.active():
            # It will wait in the queue: by then the memory in use now is free.
            device = dataclasses.replace(device, free_bytes=device.total_bytes)
        forecasted = forecast(self._services.workspace, config, num_photos, device)
        if forecasted.fits:
            return
        kept = {
            name: value for name, value in self._read(values).items() if name not in decided_by_presets(config.method)
        }
        kind = photo_set(self._services.workspace, photo_set_name).words().kind
        base = config.pretrained_model_name_or_path
        offered = offers(self._services.workspace, base, kind, num_photos, kept, device)
        raise too_little_memory(forecasted, offered, preset_name)

    @on(
        "start.click", "marked preset photo_set prompts base fields",
        "message run_message place advanced marked fields prompts", api_name="start_shown_settings", **QUIET,
    )  # fmt: skip
    def start(
        self, marked: list[str], preset_name: str, photo_set_name: str, instance_prompt: str, class_prompt: str,
        base: str, *values: Any,
    ) -> Answer:  # fmt: skip
        try:
            self._services.check_training()
            kind = photo_set(self._services.workspace, photo_set_name).words().kind if photo_set_name else "pet"
            asked = self._asked(preset_name, kind, photo_set_name, base, values)
            config = self._config(photo_set_name, instance_prompt, class_prompt, base, values, asked)
            if problems := self._problems(photo_set_name, config):
                return self._refused(problems, marked)
            self._check_memory(config, preset_name, photo_set_name, values)
            words = photo_set(self._services.workspace, photo_set_name).words()
            name = self._services.jobs.start(config, f"{words.identifier}-{words.class_word}", asked)
        except DreamBoothError as error:
            return {"message": error_panel(error)}
        message = self._started(name) + notices(config, asked)
        # Messages about the run appear in its view.
        return {"message": "", "run_message": message, "place": to("train", run=name), **self._marks([], marked)}

    def _refused(self, problems: list[FieldProblem], marked: list[str]) -> Answer:
        fields = {problem.field for problem in problems} & set(self._infos)
        opened = ["advanced"] * bool(fields - set(MAIN_FIELDS))
        return {
            "message": error_panel(ConfigError(problems)),
            **{name: gr.Accordion(open=True) for name in opened},
            **self._marks(problems, marked),
        }

    def _started(self, name: str) -> str:
        active = self._services.jobs.active()
        if active in (None, name):
            return ""
        return panel(f"{name} is queued.", f"{phase_text(self._services.jobs.view(name))}.", tone="note")

    @on("reuse.click", "run preset", "message base proposed place fields", api_name="reuse_settings", **QUIET)
    def reuse(self, name: str, preset_name: str) -> Answer:
        """Put a run's settings into the form; all of them count as typed."""
        config = self._services.jobs.view(name).config
        if config is None:
            raise DreamBoothError(f"The settings of {name} cannot be read.", "Their file is gone or damaged.", "")
        message = panel(
            f"The form has the settings of {name} now.", "The photos are those of the first tab.", tone="good"
        )
        return {
            "message": message,
            "base": config.pretrained_model_name_or_path,
            "proposed": {"preset": preset_name},
            "place": to("train", view="new"),
            **{field: shown_value(info, getattr(config, field)) for field, info in self._infos.items()},
        }


def _remembered(proposed: Any) -> Mapping[str, Any]:
    """Return the proposals that a browser remembers; empty if it sends anything else."""
    return proposed if isinstance(proposed, Mapping) else {}


def method_in(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the selected method, as an explicit setting."""
    return {"method": values["method"]} if "method" in values else {}
