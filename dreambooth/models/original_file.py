"""One file in the original layout, of SD 1.x or 2.x, as the parts of a base."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth import rng
from dreambooth.errors import BaseModelError
from dreambooth.formats.layout import LAYOUTS, Layout, family_of_names
from dreambooth.formats.ldm import VAE_PREFIX, from_ldm
from dreambooth.formats.other_kinds import refuse_other_kinds
from dreambooth.models.sd import SD1_FILE, SD15_CONFIGS, SD15_SCHEDULER, SINGLE_FILES, SingleFile
from dreambooth.models.weights import file_metadata, filled, read_weights

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class OriginalParts:
    """What one file gives: three parts in fp32, and what it says or lets see of the rest."""

    unet: Any
    text_encoder: Any
    vae: Any
    scheduler_config: dict[str, Any]
    vocabulary_size: int
    layout: Layout
    native_px: int


def starter_folder() -> Path:
    """Return where the embedded model lies."""
    return Path(__file__).parent / "starter"


def parts_of_file(path: Path) -> OriginalParts:
    """Read a file's three parts; raises BaseModelError that says what the file is instead, or what it lacks."""
    weights = read_weights(path)
    refuse_other_kinds(path.name, {name: tensor.shape for name, tensor in weights.items()})
    layout = LAYOUTS[family_of_names(weights)]
    unsaid = SINGLE_FILES[layout.family]
    try:
        unet_weights, vae_weights, text_weights = from_ldm(weights)
        unet = _unet_of(unet_weights, unsaid)
        text_encoder = _text_encoder_of(text_weights, unsaid)
        vae = _vae_of(vae_weights)
    except (KeyError, IndexError, RuntimeError) as error:
        raise BaseModelError(
            f"{path.name} is no complete SD 1.x or 2.x model.",
            _wrong_tensors(error),
            "Choose a file that has UNet, VAE and text encoder.",
        ) from None
    header = file_metadata(path)
    prediction_type = _prediction_type(unet, header, unsaid)
    v_px = unsaid.v_px if prediction_type == "v_prediction" else None
    native_px = _native_px(header) or v_px or _own_px(unet)
    unet.register_to_config(sample_size=native_px // 8)
    return OriginalParts(
        unet, text_encoder, vae, SD15_SCHEDULER | {"prediction_type": prediction_type},
        text_weights["embeddings.token_embedding.weight"].shape[0], layout, native_px,
    )  # fmt: skip


def vae_of_file(path: Path) -> Any:
    """Load the VAE of a file in the original layout: a whole model's, or one with the VAE alone and no prefix."""
    weights = read_weights(path)
    if not any(name.startswith(VAE_PREFIX) for name in weights):
        weights = {VAE_PREFIX + name: tensor for name, tensor in weights.items()}
    try:
        return _vae_of(from_ldm(weights)[1])
    except (KeyError, IndexError, RuntimeError) as error:
        raise BaseModelError(
            f"{path.name} holds no SD 1.x VAE.", _wrong_tensors(error),
            "Choose another, or leave pretrained_vae_name_or_path out.",
        ) from None  # fmt: skip


def _wrong_tensors(error: Exception) -> str:
    """Return which tensors are wrong: in the words of `filled`, else the one name that a map stumbled over."""
    text = str(error.args[0] if error.args else error)[:500]
    return f"{text}." if ": " in text else f"Missing or unknown: {text}."


# The parts -----------------------------------------------------------------------------------------------------------


def _unet_of(weights: "dict[str, Tensor]", unsaid: SingleFile) -> Any:
    """Build the UNet these tensors fit."""
    from diffusers import UNet2DConditionModel

    config = _config("unet", _widths(weights, "down_blocks"), unsaid)
    return filled(lambda: UNet2DConditionModel.from_config(config), weights)


def _vae_of(weights: "dict[str, Tensor]") -> Any:
    from diffusers import AutoencoderKL

    config = _config("vae", _widths(weights, "encoder.down_blocks"), SD1_FILE)
    return filled(lambda: AutoencoderKL.from_config(config), weights)


def _text_encoder_of(weights: "dict[str, Tensor]", unsaid: SingleFile) -> Any:
    from transformers import CLIPTextConfig

    width = weights["embeddings.token_embedding.weight"].shape[1]
    config = _config("text_encoder", width, unsaid)
    if "num_hidden_layers" in unsaid.changes.get("text_encoder", {}):  # files differ in it
        config["num_hidden_layers"] = sum(name.endswith(".layer_norm1.bias") for name in weights)
    return text_encoder_with(CLIPTextConfig(**config), weights)


def text_encoder_with(config: Any, weights: "Mapping[str, Tensor]") -> Any:
    """Build a text encoder; the weights' names come without `text_model.` and position_ids."""
    from transformers import CLIPTextModel

    return filled(lambda: CLIPTextModel(config), weights, optional_prefix="text_model.")


def _widths(weights: "Mapping[str, Tensor]", blocks: str) -> list[int]:
    return [weights[f"{blocks}.{level}.resnets.0.conv1.weight"].shape[0] for level in range(4)]


def _config(part: str, width: int | list[int], unsaid: SingleFile) -> dict[str, Any]:
    """Return what a single file does not say of a part: the configuration of its family, or of the starter."""
    key = "hidden_size" if part == "text_encoder" else "block_out_channels"
    changes = dict(unsaid.changes.get(part, {}))
    starter: dict[str, Any] = json.loads((starter_folder() / part / "config.json").read_text("utf-8"))
    # A narrow model keeps its sizes and takes on the rest.
    narrow = starter | {name: value for name, value in changes.items() if isinstance(value, bool | str)}
    full = SD15_CONFIGS[part] | changes
    for config in (full, narrow):
        if config[key] == width:
            return {name: value for name, value in config.items() if not name.startswith("_")}
    raise BaseModelError(
        f"The file's {part} is {width} wide.", f"That of {unsaid.title} is {full[key]} wide.",
        "Choose an SD 1.x or 2.x file.",
    )  # fmt: skip


# What the tensors do not say ------------------------------------------------------------------------------------------


def _prediction_type(unet: Any, header: Mapping[str, str], unsaid: SingleFile) -> str:
    """Return what the UNet was trained to predict: as the file says, else as it shows where both are usual."""
    said = header.get("modelspec.prediction_type", "")
    if said in ("v", "v_prediction"):
        return "v_prediction"
    if said == "epsilon" or unsaid.v_px is None:
        return "epsilon"
    return "epsilon" if _gives_noise_back(unet) else "v_prediction"


def _gives_noise_back(unet: Any) -> bool:
    """Return whether the UNet, shown almost pure noise, answers with that noise.

    At the last timestep a model of the noise has to; one of v (Salimans and Ho, arXiv 2202.00512, eq. 10: v = alpha
    eps - sigma x, alpha almost 0) answers with minus the picture, which has nothing to do with the noise.
    """
    import torch

    noise = torch.randn(1, 4, 32, 32, generator=rng.generator(0, "generation"))
    states = torch.zeros(1, 77, unet.config.cross_attention_dim)
    with torch.no_grad():
        answer = unet.eval()(noise, torch.tensor([999]), states).sample
    return float(torch.corrcoef(torch.stack([noise.flatten(), answer.flatten()]))[0, 1]) > 0.5


def _native_px(header: Mapping[str, str]) -> int | None:
    match = re.fullmatch(r"(\d{2,4})x(\d{2,4})", header.get("modelspec.resolution", ""))
    side_px = min(int(match[1]), int(match[2])) if match else 0
    return side_px if 16 <= side_px <= 2048 and side_px % 8 == 0 else None


def _own_px(unet: Any) -> int:
    return 8 * int(unet.config.sample_size)
