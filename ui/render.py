"""The page's texts: runs, errors and reports as HTML, plot rows and captions. Pure functions, no Gradio.

Everything that came from a person or a file is escaped here; what leaves this module is safe to show.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from dreambooth.config.fields import FieldInfo
from dreambooth.device.hardware import Device, gb
from dreambooth.errors import ConfigError, DreamBoothError
from dreambooth.events import FINAL_STATUSES, Status
from dreambooth.records.eta import in_words
from dreambooth.runs.view import RunView
from dreambooth.scoring.bleed import BleedReport
from dreambooth.scoring.recommendation import Recommendation
from dreambooth.scoring.records import examiner_title
from ui.train.progress import phase_list, planned_seconds_left, whole_share

NONE_RECOMMENDED = "No step is recommended."
# Reported within a minute: the page asks once a second, and the heartbeat is up to a second old when it stops.
SILENT_S = 55

PHASES = {
    "loading": "Loading the base model",
    "class images": "Generating class images",
    "latents": "Preparing photos and their crops",
    "training": "Training",
    "saving": "Saving the model",
    "copying": "Copying the weights",
    "samples": "Making sample pictures",
    "scores": "Scoring the saved step",
    "lent": "Paused while pictures are made",
}
BEFORE_STEPS = ("loading", "class images", "latents")
STATUSES: dict[Status, str] = {
    "queued": "queued",
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
    "lora_rank": "LoRA rank",
    "lora_targets": "LoRA targets",
    "seed": "Seed",
    "max_train_steps": "Steps",
    "train_text_encoder": "Train the text encoder too",
    "with_prior_preservation": "Prior preservation",
    "num_class_images": "Number of class images",
    "resolution": "Resolution",
    "save_interval": "Save every N steps",
    "save_sample_prompt": "Sample prompt",
    "save_sample_negative_prompt": "Sample negative prompt",
    "n_save_sample": "Sample pictures per save",
    "num_probe_images": "Pictures that score each save",
    "save_guidance_scale": "Guidance of the samples",
    "save_infer_steps": "Denoising steps of the samples",
    "hflip": "Flip half of the photos",
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
    "unet_strength": "Strength of the UNet",
    "text_encoder_strength": "Strength of the text encoder",
}


# Fields --------------------------------------------------------------------------------------------------------------


def field_label(name: str) -> str:
    """Return a setting's name in plain words."""
    return LABELS.get(name, name.replace("_", " ").capitalize())


def field_note(info: FieldInfo) -> str:
    """Return the note under a setting's field: its sentence, and as short help its technical name and range."""
    # A limit that nobody reaches need not be mentioned.
    is_shown = not info.choices and info.range_text and (info.high is None or info.high <= 10**4)
    allowed = f": {info.range_text}" if is_shown else ""
    return f"{info.sentence.rstrip('.')}. `{info.name}{allowed}`"


# Errors --------------------------------------------------------------------------------------------------------------


def panel(what: str, why: str = "", todo: str = "", *, tone: str = "bad", until: str = "") -> str:
    """Return a box that says what happened, why, and what to do; `tone` is bad, note or good.

    A box that announces something names it in `until`, so that it can be removed when that has happened.
    """
    parts = [f"<strong>{escape(what)}</strong>"]
    parts += [f"<p>{escape(text)}</p>" for text in (why,) if text]
    parts += [f"<p class='db-todo'>{escape(todo)}</p>" for text in (todo,) if text]
    role = "alert" if tone == "bad" else "status"
    awaited = f" data-until='{escape(until)}'" if until else ""
    return f"<div class='db-panel db-{tone}' role='{role}'{awaited}>{''.join(parts)}</div>"


def error_panel(error: DreamBoothError) -> str:
    """Return the panel of an error; a ConfigError lists every mistake at once."""
    if not isinstance(error, ConfigError):
        return panel(error.what, error.why, error.todo)
    items = "".join(
        f"<li><a href='#field-{escape(problem.field)}'>{escape(field_label(problem.field))}</a> "
        f"<code>{escape(problem.field)}</code> {escape(problem.message)}</li>"
        for problem in error.problems
    )
    count = "Fix 1 setting" if len(error.problems) == 1 else f"Fix {len(error.problems)} settings"
    return f"<div class='db-panel db-bad' role='alert'><strong>{count} to start</strong><ul>{items}</ul></div>"


def error_text(error: DreamBoothError) -> str:
    """Return the error as one escaped text, for a toast."""
    return escape(" ".join(str(error).split()), quote=False)


# Runs ----------------------------------------------------------------------------------------------------------------


def phase_text(view: RunView) -> str:
    """Return the run's phase in words, with its count."""
    if view.status == "queued":
        ahead = " and ".join(", ".join(view.queued_after).rsplit(", ", 1))
        return f"Queued, position {view.queue_place}, after {ahead}" if ahead else "Starting"
    if view.status in FINAL_STATUSES or view.status == "interrupted":
        return {
            "done": f"Finished after {view.step} steps",
            "stopped": f"Stopped after {view.step} of {view.total_steps} steps"
            if view.step
            else "Stopped before its steps",
            "failed": f"Failed at step {view.step} of {view.total_steps}",
            "interrupted": f"Interrupted at step {view.step}; the saved steps can be used",
        }[view.status]
    if view.phase == "lent":
        return f"Paused at step {view.step} of {view.total_steps} while pictures are made"
    text = PHASES.get(view.phase, "Starting")
    if view.phase == "scores" and not view.step:
        text = "Scoring the base model, for comparison"
    if view.phase == "training":
        return f"{text}: step {view.step} of {view.total_steps}"
    return f"{text}: {view.phase_done} of {view.phase_total}" if view.phase_total else text


def time_left(view: RunView) -> str:
    """Return the time left in words, empty if it is unknown or the run is over."""
    if view.seconds_left is None or view.status in (*FINAL_STATUSES, "interrupted", "paused"):
        return ""
    if view.total_steps and view.step >= view.total_steps:
        # By then only steps were timed.
        return {"samples": "making the last samples", "scores": "scoring the last save"}.get(
            view.phase, "saving the final model"
        )
    return f"{in_words(view.seconds_left)} left" + ("" if view.saves_in_time else ", and the saves")


def is_before_steps(view: RunView) -> bool:
    """Return whether the run has not yet started its steps, or not yet continued them."""
    return view.phase in ("", *BEFORE_STEPS) or (not view.step and view.phase in ("samples", "scores"))


def time_left_text(view: RunView, whole_s: float | None = None) -> str:
    """Return the time left, or why it is not known yet; `whole_s` is the expected time of the whole run."""
    if view.status == "running" and view.seconds_left is None:
        if whole_s is not None:
            return f"about {in_words(planned_seconds_left(view, whole_s))} left"
        if view.phase_seconds_left is not None:
            return f"{in_words(view.phase_seconds_left)} left in this phase"
        return "time left is shown after the first steps"
    return time_left(view)


def status_card(
    view: RunView | None, device: Device | None = None, name: str = "", whole_s: float | None = None
) -> str:
    """Return the run's status, phase, bar and time left; below it the panel of a failed run."""
    if view is None:
        words = f'There is no run called "{name}" here.' if name else "No run yet. Choose photos, then start training."
        return f"<div class='db-status'><span class='db-quiet'>{escape(words)}</span></div>"
    percent = round(whole_share(view) * 100)
    return (
        f"<div class='db-status'><div class='db-row'><span class='db-chip db-chip-{escape(view.status)}'>"
        f"{escape(STATUSES[view.status])}</span><b class='db-phase'>{escape(phase_text(view))}</b>"
        f"<span class='db-quiet'>{escape(time_left_text(view, whole_s))}</span></div>"
        f"<div class='db-bar' role='progressbar' aria-label='Progress' aria-valuemin='0' aria-valuemax='100' "
        f"aria-valuenow='{percent}'><i style='width:{percent}%'></i></div>"
        f"{phase_list(view)}{_device_memory(view, device)}</div>{_trouble(view)}"
    )


def advice_text(pick: Recommendation | None, step: int, num_steps: int, *, is_over: bool = True) -> str:
    """Return the text under the selection of a run's step: which one is recommended, and why."""
    if not is_over:
        return "<p class='db-hint'>It still trains: a step is recommended when it ends.</p>"
    if pick is None:
        unknown = "No step of this run is recommended yet: press Score this run on the Train tab."
        return f"<p class='db-hint'>{unknown}</p>" if num_steps > 1 else ""
    instead = NONE_RECOMMENDED if pick.step is None else f"Step {pick.step} is recommended instead."
    first = "Recommended." if pick.step == step else instead
    return f"<p class='db-hint'><b>{first}</b> {escape(pick.why)}</p>"


def scores_text(view: RunView) -> str:
    """Return the text above the chart of a run's scores: who scored, or that it has not been scored."""
    over = bool(view.steps) and (view.status in FINAL_STATUSES or view.status == "interrupted")
    if view.scores is None:
        ask = "Scoring makes a few pictures with each saved step and recommends one of them."
        return f"<h3>Scores</h3><p class='db-hint'>Not scored yet. {ask}</p>" if over else ""
    if not view.steps:
        return ""
    looked = f"Scored by {examiner_title(view.scores.examiner)}." if view.scores.examiner else view.scores.note
    return f"<h3>Scores</h3><p class='db-hint'>{escape(looked)}</p>"


def bleed_text(report: BleedReport) -> str:
    """Return what a training changed besides its subject, the most changed prompt first."""
    rows = [
        f"<tr><td>{escape(one.prompt or '(no words)')}</td><td>{one.change:.2f}</td>"
        f"<td>{'-' if one.became_subject is None else f'{one.became_subject:.2f}'}</td></tr>"
        for one in report.ranked
    ]
    hint = (
        f"Step {report.step} and the base model on prompts without the identifier, with the same seeds. "
        f"Last column: 0 = unchanged, 1 = looks like your subject. Scored by {examiner_title(report.judged_by)}."
    )
    heads = "".join(f"<th scope='col'>{text}</th>" for text in ("prompt", "change", "became the subject"))
    return (
        f"<h3>What else it changed</h3><p class='db-hint'>{escape(hint)}</p>"
        f"<table class='db-table'><tr>{heads}</tr>{''.join(rows)}</table>"
    )


def _device_memory(view: RunView, device: Device | None) -> str:
    if device is None or view.status not in ("running", "stopping"):
        return ""
    used = device.total_bytes - device.free_bytes
    percent = round(100 * used / max(device.total_bytes, 1))
    memory = f"{device.name}: {gb(used)} of {gb(device.total_bytes)} GB memory in use"
    memory += "" if device.load_percent is None else f" \u00b7 load {device.load_percent} %"
    memory += "" if device.temperature_c is None else f" \u00b7 {device.temperature_c} \u00b0C"
    return (
        f"<div class='db-memory'><span>{escape(memory)}</span><div class='db-bar db-thin' role='meter' "
        f"aria-label='Device memory in use' aria-valuemin='0' aria-valuemax='100' aria-valuenow='{percent}'>"
        f"<i style='width:{percent}%'></i></div></div>"
    )


def _trouble(view: RunView) -> str:
    """Return the panels of what went wrong, or seems to have."""
    panels = ""
    if view.status in ("failed", "paused") and view.error:
        tone = "note" if view.error.cause == "lent" else "bad"
        panels += panel(view.error.what or "The run failed.", view.error.why, view.error.todo, tone=tone)
    if view.status == "interrupted":
        again = "It starts again at its first step." if not view.resume_step else ""
        panels += panel(
            "This run was interrupted: the app or the machine stopped while it was training.", again,
            "Press Resume below to continue it.", tone="note",
        )  # fmt: skip
    if view.silent_s > SILENT_S:
        words = f"Not responding: no sign of life for {in_words(view.silent_s)}."
        why = "A single step of a large model can take that long on a CPU. If this lasts, the training hangs."
        todo = "Then stop the app (Ctrl-C twice), start it again and resume the run: everything it saved is complete."
        panels += panel(words, why, todo, tone="note")
    return panels


def log_text(log_tail: str) -> str:
    """Return the end of the log, escaped."""
    # The box is laid out from its bottom, so that it stays at the newest line without a script.
    text = escape(log_tail) if log_tail else "The log starts with the run."
    return f"<div class='db-logbox' tabindex='0' aria-label='Log'><pre class='db-log'>{text}</pre></div>"


def sample_items(samples: dict[int, list[Path]], prompts: Sequence[str] = ()) -> list[tuple[Path, str]]:
    """Return (file, caption) of every sample in rows of `sample_columns`.

    With one prompt a row is a seed over the steps from 0 on; with several it is a step, with the images of each prompt.
    """
    most = max(map(len, samples.values()), default=0)
    if len(prompts) > 1:
        per_prompt = max(most // len(prompts), 1)
        return [
            (path, f"{_step_name(step)}: {prompts[min(place // per_prompt, len(prompts) - 1)]}")
            for step in sorted(samples)
            for place, path in enumerate(samples[step])
        ]
    return [
        (samples[step][place], _step_name(step))
        for place in range(most)
        for step in sorted(samples)
        if place < len(samples[step])
    ]


def sample_columns(samples: dict[int, list[Path]], prompts: Sequence[str] = ()) -> int:
    """Return how many images form a row of `sample_items`."""
    return max(map(len, samples.values()), default=1) if len(prompts) > 1 else len(samples)


def _step_name(step: int) -> str:
    return "before" if step == 0 else f"step {step}"


def size_in_words(num_bytes: int) -> str:
    """Return a size in words: `53 MB`, `2.1 GB`."""
    if num_bytes < 10**3:
        return f"{num_bytes} bytes"
    if num_bytes < 10**6:
        return f"{num_bytes / 10**3:.0f} kB"
    return f"{num_bytes / 10**6:.0f} MB" if num_bytes < 10**9 else f"{num_bytes / 10**9:.1f} GB"
