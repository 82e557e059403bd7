"""What makes two parts of a training one run: settings, photos, captions and base model; and the machine of each.

Settings are compared as parsed values by name, and files by their contents: neither how a setting was given nor a path
matters.
"""

import contextlib
import dataclasses
import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from dreambooth.config.limits import as_written
from dreambooth.config.training import TrainingConfig
from dreambooth.errors import ConfigError, TrainingError
from dreambooth.formats.json_file import read_object
from dreambooth.models.saved_hashes import file_hash
from dreambooth.records.workspace import RunFolder

# The manifest's version. Those without a number are version 1: they hold a hash of all settings, paths included.
VERSION = 2
PROCESSES = "processes"
# How the norm of all gradients is summed, which decides its last digits with several CPU threads.
NORM = "gradient norm"
MAX_NAMED_SETTINGS = 3
# The entries of a noise schedule that training reads; the rest is for samplers.
SCHEDULE = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "rescale_betas_zero_snr",
)  # fmt: skip


@dataclass(frozen=True)
class RunIdentity:
    """What a resumed run must share with its first part; and the machine, which may differ in the last digits.

    `settings` are those `in_identity` by name, or in version 1 the hash of all. What a version did not record is empty.
    """

    settings: Mapping[str, Any] | str
    photos: str
    machine: dict[str, str]
    captions: str = ""
    base: str = ""
    tokens: str = ""
    schedule: str = ""
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """Return plain values by name; `from_json` restores the same identity."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, manifest: Mapping[str, Any]) -> Self:
        """Read it from a manifest; raises ValueError, KeyError or TypeError for a manifest without it."""
        own = {field.name: manifest[field.name] for field in dataclasses.fields(cls) if field.name in manifest}
        found = cls(**{"version": 1} | own)
        texts = (found.photos, found.captions, found.base, found.tokens, found.schedule, *found.machine.values())
        has_settings = isinstance(found.settings, str if found.version == 1 else dict)
        if type(found.version) is not int or not has_settings or not all(isinstance(text, str) for text in texts):
            raise TypeError("a manifest's values are of other types")
        return found


def identity_of(
    config: TrainingConfig,
    *,
    photos: Iterable[Path],
    captions: Iterable[tuple[str, str]],
    token_ids: Iterable[Any],
    base_key: str,
    noise_schedule: Mapping[str, Any],
    device_name: str,
    num_processes: int,
) -> RunIdentity:
    """Return the identity of a run that is about to train.

    `captions` are those of all images in order, each with the image's role; `token_ids` their tokens for the text
    encoder.
    """
    import diffusers
    import torch

    contents = hashlib.sha256()
    for photo in photos:
        contents.update(file_hash(photo).encode())
    machine = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "threads": str(torch.get_num_threads()),
        "device": device_name,
        PROCESSES: str(num_processes),
        NORM: "in shares",
    }
    return RunIdentity(
        settings=config.identity(),
        photos=contents.hexdigest(),
        machine=machine,
        captions=value_hash([*captions]),
        base=base_key,
        tokens=value_hash([*token_ids]),
        schedule=value_hash({name: noise_schedule.get(name) for name in SCHEDULE}),
    )


def require_same_run(step: int, before: RunIdentity, now: RunIdentity, kept: Mapping[str, Any]) -> list[str]:
    """Raise TrainingError if the state of this step is another run's; return other differences, as sentences.

    `kept` are the recorded settings that the run was started with: version 1 hashed those.
    """
    if isinstance(before.settings, str):
        # Nothing can be said of a state without recorded settings.
        differing = (
            "" if before.settings in ("", *_hashes_of_version_1(kept)) else "They have changed since it started."
        )
    else:
        differing = _differing_settings(before.settings, now.settings)
    if differing:
        raise _another_run("settings", step, differing)
    shared = {
        "photos": "photos or class images", "captions": "captions", "base": "weights of the base model",
        "tokens": "tokens of the captions", "schedule": "noise schedule of the base model",
    }  # fmt: skip
    for name, what in shared.items():
        if getattr(before, name) not in ("", getattr(now, name)):
            raise _another_run(what, step, "Resuming with different ones would be a different run.")
    if (then := before.machine.get(PROCESSES, now.machine[PROCESSES])) != now.machine[PROCESSES]:
        raise TrainingError(
            f"The state of step {step} is that of {then} processes, and these are {now.machine[PROCESSES]}.",
            "Each takes its part of every batch: with another number it would be another run.",
            f"Resume it with `accelerate launch --num_processes {then}`, or start a new run.",
        )
    notices = [
        f"The first part ran with {name} {before.machine.get(name)}, this one with {value}: the last digits may differ."
        for name, value in now.machine.items()
        if name not in (PROCESSES, NORM) and before.machine.get(name) != value
    ]
    # With one thread, and on a GPU, the norm has not changed.
    in_threads = before.machine.get("device") == "cpu" and before.machine.get("threads") != "1"
    if in_threads and NORM not in before.machine:
        notices.append(
            "The first part ran with an earlier version, which summed gradients in another order: the last digits may "
            "differ."
        )
    return notices


def _another_run(what: str, step: int, why: str) -> TrainingError:
    return TrainingError(
        f"The {what} are not those that the state of step {step} was trained with.", why,
        "Put them back as they were, or start a new run.",
    )  # fmt: skip


def _differing_settings(before: Mapping[str, Any], now: Mapping[str, Any] | str) -> str:
    """Return which settings differ, in words; settings added by a later version had their default before."""
    assert not isinstance(now, str)
    defaults = TrainingConfig().identity()
    changes = [
        f"{name} is {as_written(now.get(name))}, and was {as_written(before.get(name, defaults.get(name)))}"
        for name in sorted({*before, *now})
        if before.get(name, defaults.get(name)) != now.get(name, before.get(name))
    ]
    more = f"; and {len(changes) - MAX_NAMED_SETTINGS} more" if len(changes) > MAX_NAMED_SETTINGS else ""
    return f"{'; '.join(changes[:MAX_NAMED_SETTINGS])}{more}." if changes else ""


def _hashes_of_version_1(kept: Mapping[str, Any]) -> set[str]:
    """Return the hashes that version 1 may have recorded for these settings: as given, and as parsed.

    It hashed what differed from the defaults as the run had it: 1 if a card or a program gave 1, and 1.0 once the same
    settings had been read from the run's own file.
    """
    ways = [dict(kept)]
    with contextlib.suppress(ConfigError):
        ways.append(TrainingConfig.from_json(kept).to_json())
    defaults = TrainingConfig().to_json()
    return {
        value_hash(
            {name: value for name, value in way.items() if name != "output_dir" and value != defaults.get(name, ...)}
        )
        for way in ways
    }


def settings_as_written(run: RunFolder) -> dict[str, Any]:
    """Return the settings a run was started with, exactly as in its file; empty if it cannot be read."""
    file = run.first_config_path if run.first_config_path.exists() else run.config_path
    try:
        return read_object(file)
    except (OSError, ValueError):
        return {}


def value_hash(values: Any) -> str:
    """Return the hash of plain values: settings, captions, a manifest without its own hash."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
