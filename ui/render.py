"""What the page says: runs, errors and reports as HTML, plot rows and captions. Pure functions, no Gradio.

Everything that came from a person or a file is escaped here; what leaves this module is safe to show.
"""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from dreambooth.errors import ConfigError, DreamBoothError
from dreambooth.events import FINAL_STATUSES, Status, StepLoss
from dreambooth.fields import FieldInfo
from dreambooth.jobs import RunView, in_words

MAX_PLOT_POINTS = 1000
SMOOTHING = 0.95
# Told within a minute: the page asks once a second, and the heartbeat is up to a second old when it stops.
SILENT_S = 55

PHASES = {
    "loading": "Loading the base model",
    "class images": "Making class pictures",
    "latents": "Preparing the photos",
    "training": "Training",
    "saving": "Saving the model",
    "samples": "Making sample pictures",
}
STATUSES: dict[Status, str] = {
    "queued": "waiting in line",
    "running": "running",
    "stopping": "stopping and saving",
    "stopped": "stopped",
    "done": "done",
    "failed": "failed",
    "paused": "paused",
    "interrupted": "interrupted",
}
LABELS = {
    "pretrained_vae_name_or_path": "Another VAE",
    "seed": "Seed",
    "max_train_steps": "Steps",
    "train_text_encoder": "Teach the text encoder too",
    "with_prior_preservation": "Keep what it knows of the class",
    "num_class_images": "Class pictures",
    "resolution": "Resolution",
    "save_interval": "Save every ... steps",
    "save_sample_prompt": "Sample prompt",
    "save_sample_negative_prompt": "Sample negative prompt",
    "n_save_sample": "Sample pictures per save",
    "save_guidance_scale": "Guidance of the samples",
    "save_infer_steps": "Denoising steps of the samples",
    "hflip": "Mirror half of the photos",
    "use_8bit_adam": "8-bit Adam",
    "use_ema": "Average the weights (EMA)",
    "ema_decay": "EMA decay",
    "text_encoder_lr": "Text encoder's learning rate",
    "lr_scheduler": "Learning rate schedule",
    "lr_warmup_steps": "Warm-up steps",
    "scale_lr": "Scale the learning rate",
    "not_cache_latents": "Encode crops as they come",
    "read_prompts_from_txts": "Captions from .txt files",
    "num_inference_steps": "Denoising steps",
    "num_images_per_prompt": "How many",
}


# Fields --------------------------------------------------------------------------------------------------------------


def field_label(name: str) -> str:
    """Return a setting's name in plain words."""
    return LABELS.get(name, name.replace("_", " ").capitalize())


def field_note(info: FieldInfo) -> str:
    """Return what stands under a setting's field: its sentence, its range, and its technical name."""
    # A bound of a size that no one reaches is no news.
    told = not info.choices and info.range_text and (info.high is None or info.high <= 10**4)
    allowed = f" ({info.range_text})" if told else ""
    return f"{info.sentence.rstrip('.')}{allowed}. `{info.name}`"


# Errors --------------------------------------------------------------------------------------------------------------


def panel(what: str, why: str = "", todo: str = "", *, tone: str = "bad") -> str:
    """Return a box that says what happened, why, and what to do; `tone` is bad, note or good."""
    parts = [f"<strong>{escape(what)}</strong>"]
    parts += [f"<p>{escape(text)}</p>" for text in (why,) if text]
    parts += [f"<p class='db-todo'>{escape(todo)}</p>" for text in (todo,) if text]
    role = "alert" if tone == "bad" else "status"
    return f"<div class='db-panel db-{tone}' role='{role}'>{''.join(parts)}</div>"


def error_panel(error: DreamBoothError) -> str:
    """Return the panel of an error; one of the settings lists every mistake at once."""
    if not isinstance(error, ConfigError):
        return panel(error.what, error.why, error.todo)
    items = "".join(
        f"<li><b>{escape(field_label(problem.field))}</b> <code>{escape(problem.field)}</code> "
        f"{escape(problem.message)}</li>"
        for problem in error.problems
    )
    count = "One thing needs" if len(error.problems) == 1 else f"{len(error.problems)} things need"
    return (
        f"<div class='db-panel db-bad' role='alert'><strong>{count} mending before this can start</strong>"
        f"<ul>{items}</ul></div>"
    )


def error_text(error: DreamBoothError) -> str:
    """Return the error as one escaped text, for a toast."""
    return escape(" ".join(str(error).split()), quote=False)


# Photos --------------------------------------------------------------------------------------------------------------


def photo_report(num_photos: int, lines: Sequence[tuple[bool, str]]) -> str:
    """Return how many photos are there and, per line, whether all is well and the sentence about it."""
    advice = ""
    if num_photos < 3:
        advice = "3 to 5 photos are recommended: one subject, several angles, lights and backgrounds."
    elif num_photos > 20:
        advice = "More than 20 photos seldom help; choose the best ones."
    head = f"{num_photos} photo{'' if num_photos == 1 else 's'}" if num_photos else "No photos yet"
    items = "".join(f"<li class='{'db-ok' if fine else 'db-warn'}'>{escape(sentence)}</li>" for fine, sentence in lines)
    return (
        f"<div class='db-report'><strong>{head}</strong>{f' <span>{escape(advice)}</span>' if advice else ''}"
        f"{f'<ul>{items}</ul>' if items else ''}</div>"
    )


# Runs ----------------------------------------------------------------------------------------------------------------


def phase_text(view: RunView) -> str:
    """Return what the run is doing in words, with its count."""
    if view.status == "queued":
        return f"Waiting in line, place {view.queue_place}" if view.queue_place else "Waiting to begin"
    if view.status in FINAL_STATUSES or view.status == "interrupted":
        return {
            "done": f"Finished after {view.step} steps",
            "stopped": f"Stopped after {view.step} of {view.total_steps} steps",
            "failed": f"Failed at step {view.step} of {view.total_steps}",
            "interrupted": f"The app ended while this run was at step {view.step}; its saved steps are usable",
        }[view.status]
    text = PHASES.get(view.phase, "Starting")
    if view.phase == "training":
        return f"{text}: step {view.step} of {view.total_steps}"
    return f"{text}: {view.phase_done} of {view.phase_total}" if view.phase_total else text


def progress_share(view: RunView) -> float:
    """Return how far the bar reaches, 0 to 1: the steps while training, else the pieces of the phase."""
    if view.status == "done":
        return 1.0
    if view.phase in ("latents", "class images") and view.phase_total:
        return min(view.phase_done / view.phase_total, 1.0)
    return min(view.step / view.total_steps, 1.0) if view.total_steps else 0.0


def time_left(view: RunView) -> str:
    """Return the time left in words, or nothing when it is not known or the run is over."""
    if view.seconds_left is None or view.status in FINAL_STATUSES:
        return ""
    return f"{in_words(view.seconds_left)} left"


def status_card(view: RunView | None) -> str:
    """Return the run's status, phase, bar and time left; a failed run's panel stands under it."""
    if view is None:
        words = "No run yet. Choose photos, then start training."
        return f"<div class='db-status'><span class='db-quiet'>{words}</span></div>"
    percent = round(progress_share(view) * 100)
    failed = (
        panel(view.error.what or "The run failed.", view.error.why, view.error.todo)
        if view.status in ("failed", "paused") and view.error
        else ""
    )
    if view.silent_s > SILENT_S:
        words = f"Not responding: nothing heard from it for {in_words(view.silent_s)}."
        why = "A step of a large model may take that long on a CPU. If it goes on, the training hangs."
        todo = "Then end the app (Ctrl-C twice), start it again, and resume the run: what it saved is whole."
        failed += panel(words, why, todo, tone="note")
    return (
        f"<div class='db-status'><div class='db-row'><span class='db-chip db-chip-{escape(view.status)}'>"
        f"{escape(STATUSES[view.status])}</span><b class='db-phase'>{escape(phase_text(view))}</b>"
        f"<span class='db-quiet'>{escape(time_left(view))}</span></div>"
        f"<div class='db-bar' role='progressbar' aria-label='Progress' aria-valuemin='0' aria-valuemax='100' "
        f"aria-valuenow='{percent}'><i style='width:{percent}%'></i></div></div>{failed}"
    )


def header(device: str, view: RunView | None, data_dir: Path, keeps_files: bool) -> str:
    """Return the line above the tabs: the device, what is running, and where files live."""
    if view is None:
        doing = "Idle"
    else:
        left = time_left(view)
        doing = f"{view.name}: {phase_text(view)}" + (f" · {left}" if left else "")
    warning = "" if keeps_files else " (lost when this machine restarts: download what you need)"
    where = f"Files in {data_dir}{warning}"
    chips = [("db-device", device), ("db-doing db-live" if view else "db-doing", doing), ("db-where", where)]
    return (
        "<div class='db-header'><h1>DreamBooth</h1><div class='db-chips'>"
        + "".join(f"<span class='{kind}'>{escape(text)}</span>" for kind, text in chips)
        + "</div></div>"
    )


def log_text(log_tail: str) -> str:
    """Return the end of the log, ready to show."""
    # The box is laid out from its bottom, so that it stays at the newest line without a script.
    text = escape(log_tail) if log_tail else "The log begins with the run."
    return f"<div class='db-logbox' tabindex='0' aria-label='Log'><pre class='db-log'>{text}</pre></div>"


def smoothed(values: Iterable[float], weight: float = SMOOTHING) -> list[float]:
    """Return the moving average, corrected for its start at zero as in Adam (arXiv:1412.6980, section 3)."""
    averages, average, share = [], 0.0, 0.0
    for value in values:
        average = weight * average + (1 - weight) * value
        share = weight * share + (1 - weight)
        averages.append(average / share)
    return averages


def loss_rows(losses: Sequence[StepLoss], max_points: int = MAX_PLOT_POINTS) -> list[tuple[int, float, str]]:
    """Return (step, loss, series) for the plot, `each step` and `smoothed`, at most `max_points` rows in all."""
    averages = smoothed([loss.loss for loss in losses])
    # Rounded up, so that two series and the last step always fit.
    stride = max(1, -(-len(losses) // max(max_points // 2 - 1, 1)))
    kept = list(range(0, len(losses), stride))
    if losses and kept[-1] != len(losses) - 1:
        kept.append(len(losses) - 1)
    raw = [(losses[place].step, losses[place].loss, "each step") for place in kept]
    return raw + [(losses[place].step, averages[place], "smoothed") for place in kept]


def sample_items(samples: dict[int, list[Path]]) -> list[tuple[Path, str]]:
    """Return (file, caption) of every sample picture from step 0 on."""
    return [
        (path, "before training" if step == 0 else f"step {step}") for step in sorted(samples) for path in samples[step]
    ]


def size_in_words(num_bytes: int) -> str:
    """Return a size as people say it: `53 MB`, `2.1 GB`."""
    if num_bytes < 10**6:
        return f"{num_bytes / 10**3:.0f} kB"
    return f"{num_bytes / 10**6:.0f} MB" if num_bytes < 10**9 else f"{num_bytes / 10**9:.1f} GB"
