"""Trainings for programs: a run of a photo set planned and started in plain values, and the bundled sample's."""

from collections.abc import Mapping
from typing import Any

from dreambooth.config.training import TrainingConfig
from dreambooth.data.concept_notices import concept_notices
from dreambooth.data.masks import with_background_weight
from dreambooth.data.photo_sets import photo_set
from dreambooth.errors import ConfigError, FieldProblem
from dreambooth.forecast.offers import forecast, proposed_config
from dreambooth.models.base import STARTER
from dreambooth.runs.shell_line import command_line
from dreambooth.runs.start_notices import setting_notices
from ui.bases import CheckedBases, offered_base, offered_models
from ui.boundary import Services
from ui.fields import form_infos
from ui.train.handlers import device_for_a_run, method_in, run_config


class Programs:
    """What programs can do with the tab."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._bases = CheckedBases(services)
        self._infos = form_infos()

    def _set_config(
        self, name: str, base: str, preset_name: str, explicit: Mapping[str, Any]
    ) -> tuple[TrainingConfig, int]:
        if not isinstance(explicit, Mapping):
            message = 'must be names with values, such as {"max_train_steps": 400}.'
            raise ConfigError([FieldProblem("settings", message)])
        base, chosen = offered_base(self._services, base), photo_set(self._services.workspace, name)
        self._bases.bytes_to_download(TrainingConfig(pretrained_model_name_or_path=base))
        words, num_photos = chosen.words(), len(chosen.photos())
        config = proposed_config(
            base, preset_name, words.kind, num_photos, method_in(explicit), device_for_a_run(self._services)
        )
        config = with_background_weight(config, [one.folder for one in chosen.together()], explicit)
        unknown = [
            FieldProblem(str(key), "is not a setting of this form.") for key in explicit if key not in self._infos
        ]
        if not num_photos:
            unknown.append(FieldProblem("instance_data_dir", f"the photo set {name!r} holds no photos."))
        if unknown:
            raise ConfigError(unknown)
        typed = {key: getattr(config, key) for key in self._infos} | dict(explicit)
        concepts = chosen.concepts(words.instance_prompt, words.class_prompt)
        config = run_config(concepts, base, chosen.with_captions(typed), explicit)
        return offered_models(self._services, config).checked(), num_photos

    def start_set(
        self, name: str, base: str, preset_name: str, explicit: Mapping[str, Any], wish: str = ""
    ) -> tuple[str, TrainingConfig]:
        """Start a run on a photo set with its own prompts, and with proposed settings where none are given."""
        self._services.check_training()
        config, _ = self._set_config(name, base, preset_name, explicit)
        words = photo_set(self._services.workspace, name).words()
        return self._services.jobs.start(config, wish or f"{words.identifier}-{words.class_word}", explicit), config

    def plan_set(self, name: str, base: str, preset_name: str, explicit: Mapping[str, Any]) -> dict[str, Any]:
        """Return what such a run would take, in numbers."""
        config, num_photos = self._set_config(name, base, preset_name, explicit)
        of_base = self._bases.notices(config)
        forecasted = forecast(self._services.workspace, config, num_photos, device_for_a_run(self._services))
        return {
            "photos": num_photos,
            "steps": forecasted.config.max_train_steps,
            "seconds": forecasted.seconds,
            "memory_bytes": forecasted.need_bytes,
            "memory_free_bytes": forecasted.device.free_bytes,
            "fits": forecasted.fits,
            "disk_bytes": forecasted.disk_bytes,
            "disk_free_bytes": forecasted.disk_free_bytes,
            "command": command_line(config),
            "settings": config.to_json(),
            "notices": [
                *of_base,
                *setting_notices(config, explicit, self._services.workspace.models_dir),
                *concept_notices(config.concepts, config.background_weight),
            ],
        }


def start_sample(services: Services) -> tuple[str, TrainingConfig]:
    """Start the bundled sample subject on the starter; returns the run's name and its settings."""
    from ui.concepts.handlers import Handlers as ConceptHandlers

    kept = ConceptHandlers(services).sample_set()
    return Programs(services).start_set(kept.name, STARTER, "recommended", {}, "sample")
