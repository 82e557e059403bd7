"""The header of a LoRA file: sd-scripts' `ss_*` metadata, which other tools display, and ModelSpec's.

No path, no file name but its own, no caption and no date, so that the same step always gives the same header.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth.export.recipe import file_metadata_of, public_settings
from dreambooth.formats.layout import Layout
from dreambooth.models.low_rank import Factors

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
NUM_PHOTOS = "ss_num_train_images"
# sd-scripts' names of equivalent settings.
SAME_SETTINGS = {
    "ss_batch_size_per_device": "train_batch_size",
    "ss_caption_dropout_rate": "caption_dropout",
    "ss_gradient_accumulation_steps": "gradient_accumulation_steps",
    "ss_gradient_checkpointing": "gradient_checkpointing",
    "ss_learning_rate": "learning_rate",
    "ss_lr_scheduler": "lr_scheduler",
    "ss_lr_warmup_steps": "lr_warmup_steps",
    "ss_max_grad_norm": "max_grad_norm",
    "ss_max_train_steps": "max_train_steps",
    "ss_min_snr_gamma": "snr_gamma",
    "ss_mixed_precision": "mixed_precision",
    "ss_noise_offset": "noise_offset",
    "ss_seed": "seed",
    "ss_unet_lr": "learning_rate",
    "ss_zero_terminal_snr": "zero_terminal_snr",
}


def lora_metadata(
    model_dir: Path,
    name: str,
    layout: Layout,
    factors: Mapping[str, Factors],
    prediction_type: str | None = None,
    num_photos: int | None = None,
) -> dict[str, str]:
    """Return the metadata of a LoRA of this step, called `name` in prompts.

    prediction_type: the base's, if the step's folder has no scheduler; num_photos: how many it was trained on, if
    known.
    """
    settings = public_settings(model_dir)
    basic = file_metadata_of(model_dir, layout, prediction_type)
    metadata = basic | _network(factors) | _training(settings, json.loads(basic.get("dreambooth.recipe", "{}")))
    metadata |= {
        "modelspec.architecture": f"{basic['modelspec.architecture']}/lora",
        "modelspec.encoder_layer": str(layout.used_layer),
        "modelspec.implementation": "diffusers",
        "ss_base_model_version": layout.lora_version,
        "ss_clip_skip": str(layout.used_layer),
        "ss_output_name": name,
        "ss_v2": str(layout.open_clip),
    }
    if prompts := trigger_words(model_dir):
        metadata["modelspec.trigger_phrase"] = prompts
        metadata["modelspec.usage_hint"] = f"Use: {prompts} <lora:{name}:1>"
    if num_photos is not None:
        metadata[NUM_PHOTOS] = str(num_photos)
    return metadata


def trigger_words(model_dir: Path) -> str:
    """Return the instance prompts of a step's run, separated by commas."""
    concepts = public_settings(model_dir).get("concepts", [])
    return ", ".join(str(concept["instance_prompt"]) for concept in concepts if concept.get("instance_prompt"))


def _network(factors: Mapping[str, Factors]) -> dict[str, str]:
    """Return the network metadata: sd-scripts' own LoRA, of this rank."""
    rank = max(one.down.shape[0] for one in factors.values())
    # SD 1.x has projections that are 1x1 convolutions; sd-scripts counts them as linear.
    has_convolutions = any(math.prod(one.down.shape[2:]) > 1 for one in factors.values())
    convolutions = {"conv_dim": str(rank), "conv_alpha": str(float(rank))} if has_convolutions else {}
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "ss_network_args": json.dumps(convolutions),
    }


def _training(settings: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return the training metadata in sd-scripts' terms; empty if the step has no settings."""
    found = {theirs: str(settings[ours]) for theirs, ours in SAME_SETTINGS.items() if ours in settings}
    if "resolution" in settings:
        found["ss_resolution"] = str((settings["resolution"], settings["resolution"]))
    if settings.get("train_text_encoder"):
        found["ss_text_encoder_lr"] = str(settings.get("text_encoder_lr", settings.get("learning_rate")))
    if settings.get("with_prior_preservation"):
        found["ss_prior_loss_weight"] = str(settings.get("prior_loss_weight"))
        found["ss_num_reg_images"] = str(settings.get("num_class_images", 0) * len(settings.get("concepts", [])))
    if "adam_beta1" in settings:
        values = [settings.get(name) for name in ("adam_weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")]
        found["ss_optimizer"] = "torch.optim.adamw.AdamW(weight_decay={},betas=({}, {}),eps={})".format(*values)
    if "step" in recipe:
        found["ss_steps"] = str(recipe["step"])
    base = str(settings.get("pretrained_model_name_or_path", ""))
    if HUB_ID.fullmatch(base):
        found["ss_sd_model_name"] = base
    return found
