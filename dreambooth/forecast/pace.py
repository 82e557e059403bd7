"""How long the parts of a run take on this device, measured from earlier runs with similar settings; never guessed.

Stored in `paces.json` of the data folder, so that it survives the runs it was measured on.
"""

import dataclasses
import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth.config.counts import num_saves_left
from dreambooth.config.fields import describe
from dreambooth.config.training import TrainingConfig
from dreambooth.device.hardware import device_name
from dreambooth.durable import write_json
from dreambooth.events import Event, ModelSaved, PhaseProgress, SamplesMade, StatusChanged, StepLoss, read_events
from dreambooth.formats.json_file import read_json
from dreambooth.models.base import STARTER, read_card
from dreambooth.records.workspace import RunFolder, Workspace

MIN_STEPS_MEASURED = 10
MAX_PACES = 200
# What a step's time depends on, besides everything about memory and arithmetic.
LIKENESS = (
    "pretrained_model_name_or_path", "resolution", "train_batch_size", "gradient_accumulation_steps", "use_8bit_adam",
    "use_ema", "train_text_encoder", "with_prior_preservation",
)  # fmt: skip
# Included only if not the default: earlier versions, whose records lack it, had one method.
OF_METHODS = ("method", "lora_rank", "lora_targets")

_writing = threading.Lock()


@dataclass(frozen=True)
class Pace:
    """How many seconds the parts of a run took: class images and samples per denoising step."""

    step_s: float
    loading_s: float = 0.0
    crop_s: float = 0.0
    class_image_step_s: float | None = None
    sample_step_s: float | None = None
    save_s: float | None = None


# Its own recipe, on two otherwise idle cores (2026-11-30).
STARTER_ON_TWO_CORES = Pace(
    step_s=0.14, loading_s=3.3, crop_s=0.02, class_image_step_s=0.02, sample_step_s=0.02, save_s=0.07
)


# Measuring -----------------------------------------------------------------------------------------------------------


def measured(events: Iterable[tuple[float, Event]], config: TrainingConfig) -> Pace | None:
    """Return how long the last part of a run took, None if it had too few steps to tell."""
    spans = _spans(_last_part(events))
    steps, stepping_s = 0, 0.0
    for span in (one for one in spans if one.phase.phase == "training"):
        steps_seen = [(time_s, event.step) for time_s, event in span.events if isinstance(event, StepLoss)]
        # The process's first steps warm caches and compile: timing starts with their first report.
        begin = (span.begin_s, span.phase.done) if steps else next(iter(steps_seen), None)
        if steps_seen and begin is not None and steps_seen[-1][1] > begin[1]:
            steps += steps_seen[-1][1] - begin[1]
            stepping_s += steps_seen[-1][0] - begin[0]
    if steps < MIN_STEPS_MEASURED:
        return None
    loading = [one.seconds for one in spans if one.phase.phase == "loading"]
    num_saves = sum(isinstance(event, ModelSaved) for one in spans for _, event in one.events)
    # Most models are written during the training: only the copy of their weights takes the run's time.
    saving_s = sum(one.seconds for one in spans if one.phase.phase == "copying" or _waits_for_a_model(one))
    pictures = sum(len(event.files) for one in spans for _, event in one.events if isinstance(event, SamplesMade))
    sampling_s = sum(one.seconds for one in spans if one.phase.phase == "samples")
    class_images, class_images_s = _pieces(spans, "class images")
    crops, latents_s = _pieces(spans, "latents")
    return Pace(
        step_s=stepping_s / steps,
        loading_s=sum(loading),
        crop_s=latents_s / crops if crops else 0.0,
        class_image_step_s=class_images_s / class_images / config.save_infer_steps if class_images else None,
        sample_step_s=sampling_s / pictures / config.save_infer_steps if pictures else None,
        save_s=saving_s / num_saves if num_saves else None,
    )


@dataclass
class _Span:
    """A phase from its beginning to the beginning of the next."""

    phase: PhaseProgress
    begin_s: float
    seconds: float
    events: list[tuple[float, Event]]


def _last_part(events: Iterable[tuple[float, Event]]) -> list[tuple[float, Event]]:
    part: list[tuple[float, Event]] = []
    for time_s, event in events:
        if event == StatusChanged("running"):
            part.clear()
        else:
            part.append((time_s, event))
    return part


def _spans(events: list[tuple[float, Event]]) -> list[_Span]:
    spans: list[_Span] = []
    for time_s, event in events:
        if spans:
            spans[-1].seconds = time_s - spans[-1].begin_s
        if isinstance(event, PhaseProgress):
            spans.append(_Span(event, time_s, 0.0, []))
        elif spans:
            spans[-1].events.append((time_s, event))
    return spans


def _waits_for_a_model(span: _Span) -> bool:
    return span.phase.phase == "saving" and any(isinstance(event, ModelSaved) for _, event in span.events)


def _pieces(spans: list[_Span], phase: str) -> tuple[int, float]:
    own = [one for one in spans if one.phase.phase == phase]
    return sum(one.phase.total - one.phase.done for one in own), sum(one.seconds for one in own)


# Keeping and asking --------------------------------------------------------------------------------------------------


def remember_pace(workspace: Workspace, run: RunFolder, config: TrainingConfig) -> None:
    """Store how long a run that has just ended took on this device."""
    pace = measured(read_events(run.events_path), config)
    if pace is None:
        return
    entry = {"likeness": likeness(config), "pace": dataclasses.asdict(pace)}
    with _writing:
        others = [one for one in _entries(workspace) if one.get("likeness") != entry["likeness"]]
        write_json(_file(workspace), [*others, entry][-MAX_PACES:])


def known_pace(workspace: Workspace, config: TrainingConfig) -> Pace | None:
    """Return the pace of the newest run with similar settings on this device, None if none was measured."""
    wanted = likeness(config)
    for entry in reversed(_entries(workspace)):
        if entry.get("likeness") == wanted:
            return _as_pace(entry.get("pace"))
    return None


def usual_pace(workspace: Workspace, config: TrainingConfig) -> Pace | None:
    """Return the pace of a similar run on this device, else for the starter at its own size one measured elsewhere.

    None for other bases. For what a page shows before a first run; a GPU or more cores take less time.
    """
    pace = known_pace(workspace, config)
    base = config.pretrained_model_name_or_path
    if pace is None and base == STARTER and config.resolution == read_card(base).native_px:
        return STARTER_ON_TWO_CORES
    return pace


def likeness(config: TrainingConfig) -> dict[str, Any]:
    """Return the device and the settings on which a step's time depends."""
    names = [*LIKENESS, *(info.name for info in describe(TrainingConfig) if info.group == "memory")]
    names += [name for name in config.departures() if name in OF_METHODS]
    return {"device": device_name()} | {name: getattr(config, name) for name in names}


def _entries(workspace: Workspace) -> list[dict[str, Any]]:
    try:
        entries = read_json(_file(workspace))
    except (OSError, ValueError):
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _file(workspace: Workspace) -> Path:
    return workspace.data_dir / "paces.json"


def _as_pace(values: Any) -> Pace | None:
    try:
        pace = Pace(**values)
    except TypeError:
        return None
    numbers = [value for value in dataclasses.astuple(pace) if value is not None]
    sound = all(isinstance(number, int | float) and math.isfinite(number) and number >= 0 for number in numbers)
    return pace if sound else None


def expected_seconds(pace: Pace, config: TrainingConfig, num_photos: int, num_class_images: int) -> float | None:
    """Return how long a run of these settings takes at this pace; `num_class_images` are those still to be generated.

    None if it needs a part that no earlier run had.
    """
    num_steps = config.max_train_steps or 0
    saves = num_saves_left(config, 0, num_steps)
    pictures = (saves + 1) * (config.num_sample_pictures + config.num_probe_pictures)
    parts = [
        (1, pace.loading_s),
        (num_photos * config.num_crop_variants, pace.crop_s),
        (num_class_images * config.save_infer_steps, pace.class_image_step_s),
        (num_steps, pace.step_s),
        (saves, pace.save_s),
        (pictures * config.save_infer_steps, pace.sample_step_s),
    ]
    if not num_steps or any(count and seconds is None for count, seconds in parts):
        return None
    return sum(count * (seconds or 0.0) for count, seconds in parts)
