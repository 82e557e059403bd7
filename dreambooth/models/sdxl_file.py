"""The parts of SDXL from the tensors of a single file in the original layout.

A file has no configurations: widths and depths are derived from the tensors, and the rest is SDXL's own.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dreambooth.formats import sdxl_keys
from dreambooth.formats.layout import Layout
from dreambooth.models.family import Condition, FileParts
from dreambooth.models.sd import SD15_SCHEDULER
from dreambooth.models.sd_file import (
    gives_noise_back,
    in_fp32_by_layers,
    native_px_in,
    prediction_type_in,
    text_encoder_with,
)
from dreambooth.models.sdxl import ZEROS, ZEROS_IN_HEADER, StableDiffusionXL
from dreambooth.models.weights import filled

if TYPE_CHECKING:
    from torch import Tensor

NATIVE_PX = 1024
NUM_SIZE_IDS = 6
HEAD_WIDTH = 64
SCALING_FACTOR = 0.13025
# The second tokenizer pads with another token than the first.
PAD_TOKENS = {"tokenizer_2": "!"}
SCHEDULER: dict[str, Any] = {**SD15_SCHEDULER, "timestep_spacing": "leading", "interpolation_type": "linear"}


def parts_of(
    weights: "Mapping[str, Tensor]", header: Mapping[str, str], layout: Layout, as_stored: bool = False
) -> FileParts:
    """Return the parts of an SDXL file; raises KeyError, IndexError or RuntimeError for wrong tensors."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    found = sdxl_keys.from_original(weights)
    native_px = native_px_in(header) or NATIVE_PX
    pooled_width = found["text_encoder_2"]["text_projection.weight"].shape[0]
    unet_config = _unet_config(found["unet"], pooled_width) | {"sample_size": native_px // 8}
    vae_config = _vae_config(found["vae"]) | {"sample_size": native_px}
    unet = filled(lambda: UNet2DConditionModel.from_config(unet_config), found["unet"], as_stored=as_stored)
    parts = {
        "unet": unet,
        "vae": filled(lambda: AutoencoderKL.from_config(vae_config), found["vae"]),
        "text_encoder": _first_encoder(found["text_encoder"], as_stored=as_stored),
        "text_encoder_2": _second_encoder(found["text_encoder_2"], pooled_width, as_stored=as_stored),
    }
    vocabulary_size = found["text_encoder"]["embeddings.token_embedding.weight"].shape[0]
    scheduler = SCHEDULER | _prediction(unet, pooled_width, weights, header)
    # Other tools' files do not say it: then it is as in SDXL 1.0, and as diffusers assumes.
    index = {ZEROS: False} if header.get(ZEROS_IN_HEADER) == "false" else {}
    return FileParts(layout, parts, scheduler, vocabulary_size, native_px, PAD_TOKENS, index)


def _unet_config(weights: "Mapping[str, Tensor]", pooled_width: int) -> dict[str, Any]:
    """Return the configuration of a UNet with these tensors.

    Heads are 64 wide; a UNet too narrow for that, as in tests, has one head more in each level.
    """
    levels = range(sdxl_keys.NUM_LEVELS)
    widths = [weights[f"down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in levels]
    depths = [_depth(weights, f"down_blocks.{level}.attentions.0.") for level in levels]
    attended = f"down_blocks.{next(level for level in levels if depths[level])}.attentions.0.transformer_blocks.0"
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths]
    up = ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)]
    num_inputs = weights["add_embedding.linear_1.weight"].shape[1]
    return {
        "block_out_channels": widths,
        "down_block_types": down,
        "up_block_types": up,
        "transformer_layers_per_block": [max(depth, 1) for depth in depths],
        "attention_head_dim": [
            max(width // HEAD_WIDTH, level + 1) for level, width in zip(levels, widths, strict=True)
        ],
        "cross_attention_dim": weights[f"{attended}.attn2.to_k.weight"].shape[1],
        "norm_num_groups": _groups(widths),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (num_inputs - pooled_width) // NUM_SIZE_IDS,
        "projection_class_embeddings_input_dim": num_inputs,
    }


def _depth(weights: "Mapping[str, Tensor]", transformer: str) -> int:
    return sum(name.startswith(transformer) and name.endswith(".norm1.weight") for name in weights)


def _groups(widths: list[int]) -> int:
    return 32 if widths[0] % 32 == 0 else 4


def _vae_config(weights: "Mapping[str, Tensor]") -> dict[str, Any]:
    widths = [weights[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in range(4)]
    return {
        "block_out_channels": widths,
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "latent_channels": 4,
        "norm_num_groups": _groups(widths),
        "scaling_factor": SCALING_FACTOR,
        "force_upcast": True,
    }


def _text_config(weights: "Mapping[str, Tensor]", **others: Any) -> Any:
    from transformers import CLIPTextConfig

    vocabulary_size, width = weights["embeddings.token_embedding.weight"].shape
    return CLIPTextConfig(
        vocab_size=vocabulary_size, hidden_size=width,
        intermediate_size=weights["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=sum(name.endswith(".layer_norm1.bias") for name in weights),
        num_attention_heads=max(width // HEAD_WIDTH, 2), bos_token_id=vocabulary_size - 2,
        eos_token_id=vocabulary_size - 1, pad_token_id=1, **others,
    )  # fmt: skip


def _first_encoder(weights: "dict[str, Tensor]", *, as_stored: bool) -> Any:
    width = weights["embeddings.token_embedding.weight"].shape[1]
    config = _text_config(weights, projection_dim=width, hidden_act="quick_gelu")
    return text_encoder_with(config, weights, as_stored=as_stored)


def _second_encoder(weights: "dict[str, Tensor]", pooled_width: int, *, as_stored: bool) -> Any:
    config = _text_config(weights, projection_dim=pooled_width, hidden_act="gelu")
    return text_encoder_with(config, weights, "CLIPTextModelWithProjection", as_stored=as_stored)


def _prediction(
    unet: Any, pooled_width: int, weights: "Mapping[str, Tensor]", header: Mapping[str, str]
) -> dict[str, Any]:
    """Return what the model predicts: according to markers or header, else as found by testing the UNet."""
    if sdxl_keys.V_MARKER in weights:
        is_to_the_end = sdxl_keys.ZERO_TERMINAL_MARKER in weights
        changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if is_to_the_end else {}
        return {"prediction_type": "v_prediction", **changes}
    prediction_type = prediction_type_in(header)
    if prediction_type is None:
        with in_fp32_by_layers(unet):
            is_noise = gives_noise_back(lambda *inputs: _unprompted(unet, pooled_width, *inputs))
        prediction_type = "epsilon" if is_noise else "v_prediction"
    return {"prediction_type": prediction_type}


def _unprompted(unet: Any, pooled_width: int, noise: "Tensor", timestep: "Tensor") -> "Tensor":
    """Return the prediction for noise of a UNet conditioned on empty text and on square pictures."""
    import torch

    side_px = float(noise.shape[-1] * 8)
    states = torch.zeros(1, 77, unet.config.cross_attention_dim)
    sizes = torch.tensor([[side_px, side_px, 0.0, 0.0, side_px, side_px]])
    condition = Condition(states, torch.zeros(1, pooled_width), sizes)
    return StableDiffusionXL().predict(unet.eval(), noise, timestep, condition)
