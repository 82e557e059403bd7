"""Metadata of an exported file: the run's recipe, and the header that other tools show.

Everything comes from the model's folder, without paths of this machine or dates, so that the same model always gives
the same header.
"""

import json
from pathlib import Path
from typing import Any

from dreambooth.config.fields import describe
from dreambooth.config.training import TrainingConfig
from dreambooth.formats.layout import MODEL_INDEX, Layout
from dreambooth.models.sdxl import ZEROS, ZEROS_IN_HEADER

# Settings with paths of this machine, or without influence on what was learned.
PRIVATE_SETTINGS = (
    "output_dir", "logging_dir", "pretrained_vae_name_or_path", "tokenizer_name", "class_model_name_or_path",
    "initial_lora",
)  # fmt: skip
PUBLIC_OF_CONCEPT = ("instance_prompt", "class_prompt")
# Architectures and implementations as named by https://github.com/Stability-AI/ModelSpec.
SPEC_VERSION = "1.0.1"
IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"


def file_metadata_of(model_dir: Path, layout: Layout, prediction_type: str | None = None) -> dict[str, str]:
    """Return the metadata for a single file's header: `modelspec.*` and, for a run's step, `dreambooth.recipe`."""
    settings = public_settings(model_dir)
    card = _json(model_dir / "card.json")
    step, licence = card.get("step"), card.get("licence")
    scheduler = _json(model_dir / "scheduler" / "scheduler_config.json")
    prediction = prediction_type or scheduler.get("prediction_type", "epsilon")
    side_px = _side_px(model_dir, card)
    # The two kinds of SD 2.x have different names.
    kind = ("-768-v" if prediction == "v_prediction" else "-512") if layout.open_clip else ""
    prompts = [str(concept.get("instance_prompt")) for concept in settings.get("concepts", [])]
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": SPEC_VERSION,
        "modelspec.architecture": f"{layout.architecture}{kind}",
        "modelspec.implementation": IMPLEMENTATION,
        "modelspec.title": _title(prompts, step),
        "modelspec.resolution": f"{side_px}x{side_px}",
        "modelspec.prediction_type": "v" if prediction == "v_prediction" else "epsilon",
    }
    if isinstance(licence, str) and licence:
        metadata["modelspec.license"] = licence
    zeros = _json(model_dir / MODEL_INDEX).get(ZEROS)
    if isinstance(zeros, bool):
        metadata[ZEROS_IN_HEADER] = str(zeros).lower()
    if prompts:
        metadata["modelspec.usage_hint"] = f"Use: {', '.join(prompts)}"
    if settings:
        recipe = settings | ({"step": step} if isinstance(step, int) else {})
        if strength := card.get("strength"):
            recipe["strength"] = str(strength)
        metadata["dreambooth.recipe"] = json.dumps(recipe, sort_keys=True)
    return metadata


def public_settings(model_dir: Path) -> dict[str, Any]:
    """Return the settings a step was trained with, without paths of this machine; empty for a base."""
    settings = _json(model_dir / "args.json")
    # An allowlist: the seed script keeps the Hub token among its settings.
    public = {info.name for info in describe(TrainingConfig)} - set(PRIVATE_SETTINGS)
    shown = {name: value for name, value in settings.items() if name in public and value is not None}
    concepts = settings.get("concepts", settings.get("concepts_list"))
    if isinstance(concepts, list):
        concepts = [
            {name: concept[name] for name in PUBLIC_OF_CONCEPT if concept.get(name) is not None}
            for concept in concepts
            if isinstance(concept, dict)
        ]
        shown["concepts"] = concepts
    if "pretrained_model_name_or_path" in shown:
        # The run's setting may be a folder; the card knows where it came from.
        shown["pretrained_model_name_or_path"] = _json(model_dir / "card.json").get("source") or "a local model"
    return shown


def _title(prompts: list[str], step: object) -> str:
    subject = ", ".join(prompts) or "Stable Diffusion"
    return f"{subject}, step {step}" if isinstance(step, int) else subject


def _side_px(model_dir: Path, card: dict[str, Any]) -> int:
    native = card.get("native_px")
    if isinstance(native, int):
        return native
    sample_size = _json(model_dir / "unet" / "config.json").get("sample_size")
    return 8 * sample_size if isinstance(sample_size, int) else 512


def _json(file: Path) -> dict[str, Any]:
    """Return a JSON object of the folder; empty if it cannot be read, because a header is no reason to fail."""
    try:
        values = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
