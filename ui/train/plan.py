"""The plan before a run starts: presets with their needs, and a summary sentence."""

from collections.abc import Mapping, Sequence
from html import escape

from dreambooth.config.methods import outcome
from dreambooth.config.presets import PRESETS
from dreambooth.config.training import MethodName, TrainingConfig
from dreambooth.device.hardware import GIB, gb
from dreambooth.errors import DeviceError, FieldProblem
from dreambooth.forecast.cards import NOT_MEASURED
from dreambooth.forecast.memory import MARGIN
from dreambooth.forecast.offers import Forecast, Offer, fitting, leaner_offer
from dreambooth.records.eta import in_words
from ui.render import field_label, size_in_words

PRESET_LABELS = {
    "minimum": "Minimum",
    "recommended": "Recommended",
    "high_speed": "High speed",
    "full_precision": "Full precision",
    "lean": "Lean",
    "leanest": "Leanest",
}
# What a preset costs in time, if no similar run was timed here.
PRESET_COSTS = {
    "minimum": "slower: recomputes activations",
    "recommended": "fast",
    "high_speed": "two photos a step",
    "full_precision": "slowest: 32-bit throughout",
    "lean": "slower: updates one weight at a time",
    "leanest": "slower, and weights in bf16",
}
CARD_SIZES_GB = (4, 6, 8, 12, 16, 24, 32, 48, 80)
NONE_FITS = "Close other programs that use its memory, lower the resolution, or choose the starter."
ALL_FIT = "Every preset fits here: keep Recommended, unless you want to leave memory to other programs."
NOT_TIMED = "time estimate after the first steps"


def method_choices(
    methods: Sequence[MethodName], sizes: Mapping[str, int] | None = None, adds_to: str = "other models too"
) -> list[tuple[str, str]]:
    """Return (label, value) of every method; a label says what it produces, and its size."""
    texts = {method: size_in_words(num_bytes) for method, num_bytes in (sizes or {}).items()}
    return [(outcome(method, texts.get(method, ""), adds_to), method) for method in methods]


def preset_choices(offered: list[Offer]) -> list[tuple[str, str]]:
    """Return (label, value) of every preset; a label says what the preset takes here."""
    texts = {offer.name: offer_text(offer) for offer in offered}
    names = [offer.name for offer in ranked(offered)] or PRESETS
    return [("\n".join(part for part in (PRESET_LABELS[name], texts.get(name, "")) if part), name) for name in names]


def ranked(offered: Sequence[Offer]) -> list[Offer]:
    """Return the presets by memory, the least first, but the recommended one before all if it fits."""
    return sorted(
        offered, key=lambda one: (one.name != "recommended" or not one.forecast.fits, one.forecast.need_bytes)
    )


def card_size(need_bytes: int) -> str:
    """Return which size of device a run fits, such as `fits 8 GB`; empty for one that needs more than any."""
    need_gb = need_bytes / (1 - MARGIN) / GIB
    size = next((size for size in CARD_SIZES_GB if need_gb <= size), None)
    return f"fits {size} GB" if size else ""


def offer_text(offer: Offer) -> str:
    """Return what a preset takes: memory, the device that has it, and its time or relative time."""
    forecast = offer.forecast
    need = f"needs {gb(forecast.need_bytes)} GB"
    if not forecast.fits:
        return f"{need}, {gb(forecast.device.free_bytes)} are free"
    time = PRESET_COSTS[offer.name] if forecast.seconds is None else in_words(forecast.seconds)
    return "\n".join(part for part in (f"{need}", card_size(forecast.need_bytes), time) if part)


def preset_note(offered: list[Offer], chosen: str) -> str:
    """Return which preset to choose if all fit, else the reasons of those that do not and are disabled."""
    small = [offer for offer in offered if not offer.forecast.fits]
    if not small:
        return f"<p class='db-hint'>{ALL_FIT}</p>" if offered else ""
    places = [place for place, offer in enumerate(ranked(offered), 1) if not offer.forecast.fits]
    greyed = ", ".join(f"#preset label:nth-of-type({place})" for place in places)
    device = small[0].forecast.device
    names = ", ".join(PRESET_LABELS[offer.name] for offer in small)
    note = f"Not enough memory for: {names}. {device.name} has {gb(device.free_bytes)} GB free."
    if len(small) == len(offered):
        note = f"No preset fits: {device.name} has {gb(device.free_bytes)} GB free. {_what_fits(small[0].forecast)}"
    elif chosen in [offer.name for offer in small]:
        error = too_little_memory(next(one.forecast for one in small if one.name == chosen), offered, chosen)
        note = f"{error.what} {error.why} {error.todo}"
    return f"<style>{greyed} {{ opacity: .45; cursor: not-allowed; }}</style><p class='db-hint'>{escape(note)}</p>"


def too_little_memory(forecast: Forecast, offered: list[Offer], chosen: str) -> DeviceError:
    """Return the message for settings that need more memory than there is, with the preset that fits."""
    device = forecast.device
    why = f"It needs {gb(forecast.need_bytes)} GB, and {device.name} has {gb(device.free_bytes)} GB free."
    fit = fitting(offered, "")
    need = next((one.forecast.need_bytes for one in offered if one.name == fit and one.forecast.fits), None)
    todo = _what_fits(forecast) if need is None else f"Use {PRESET_LABELS[fit]}, which needs {gb(need)} GB."
    return DeviceError(f"{PRESET_LABELS.get(chosen, 'This')} would run out of memory here.", why, todo)


def _what_fits(forecast: Forecast) -> str:
    """Return what to do if no preset of the method fits: another method that does, or else other means."""
    leaner = leaner_offer(forecast.config, forecast.shape, forecast.device)
    return NONE_FITS if leaner is None else f"{leaner.outcome} needs {gb(leaner.need_bytes)} GB: choose it above."


def start_sentence(forecast: Forecast) -> str:
    """Return the sentence before the start, with the instance prompt."""
    config, device = forecast.config, forecast.device
    photos = (
        f"{forecast.num_photos} photo{'' if forecast.num_photos == 1 else 's'}"
        if forecast.num_photos
        else "no photos yet"
    )
    # With captions each photo has its own prompt.
    has_one_prompt = len(config.concepts) == 1 and not config.read_prompts_from_txts
    words = config.concepts[0].instance_prompt if has_one_prompt else ""
    where = "this GPU" if device.kind != "cpu" else "this CPU"
    time = f"about {in_words(forecast.usual_seconds)} on two free cores" if forecast.usual_seconds else NOT_TIMED
    if forecast.seconds is not None:
        time = f"about {in_words(forecast.seconds)} on {where}"
    num_class_pictures = max(len(config.concepts), 1) * config.num_class_images
    class_pictures = [(f"{num_class_pictures} class images", True)] if config.with_prior_preservation else []
    unmeasured = f" (planned, {NOT_MEASURED})" if device.kind == "cuda" and not forecast.is_measured else ""
    parts = [
        (f"{photos}: '{words}'" if words and forecast.num_photos else photos, bool(forecast.num_photos)),
        *class_pictures,
        (f"{config.max_train_steps} steps", True),
        (time, True),
        (f"needs {gb(forecast.need_bytes)} of {gb(device.free_bytes)} GB memory{unmeasured}", forecast.fits),
        (
            f"writes up to {size_in_words(forecast.disk_bytes)} ({size_in_words(forecast.disk_free_bytes)} free)",
            forecast.disk_bytes < forecast.disk_free_bytes,
        ),
    ]
    items = "".join(
        f"<span class='{'db-ok' if fine else 'db-wrong-part'}'>{escape(text)}</span>" for text, fine in parts
    )
    return f"<p class='db-plan' role='status'>{items}</p>"


def wrong_settings(problems: Sequence[FieldProblem]) -> str:
    """Return the text in the sentence's place if a setting has a value that no run can have."""
    text = " ".join(f"{field_label(one.field)} {one.message}" for one in problems)
    return f"<p class='db-plan' role='status'><span class='db-wrong-part'>{escape(text)}</span></p>"


def run_settings(config: TrainingConfig) -> str:
    """Return a run's settings that differ from the defaults, as a table."""
    shown = {name: value for name, value in config.departures().items() if name not in ("concepts", "output_dir")}
    rows = [(f"photos of {concept.instance_prompt!r}", concept.instance_data_dir) for concept in config.concepts]
    rows += [
        (name, "on" if value is True else "off" if value is False else str(value)) for name, value in shown.items()
    ]
    cells = "".join(f"<tr><th scope='row'>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table class='db-table'>{cells}</table>"


def changes(before: TrainingConfig, now: TrainingConfig) -> str:
    """Return in words what differs in the second settings."""
    settings = {name: value for name, value in now.to_json().items() if name not in ("concepts", "output_dir", "seed")}
    changed = {name: value for name, value in settings.items() if value != before.to_json()[name]}
    return "; ".join(f"{name}: {_shown(value)}" for name, value in changed.items())


def _shown(value: object) -> str:
    return "on" if value is True else "off" if value is False else str(value)
