"""Kinds of weights other than the supported text-to-image models, and what to do with them."""

import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

from dreambooth.errors import BaseModelError
from dreambooth.formats.ldm import EMA_PREFIX, UNET_PREFIX
from dreambooth.formats.text_files import printable

FIRST_CONV = UNET_PREFIX + "input_blocks.0.0.weight"
FIRST_AVERAGED_CONV = EMA_PREFIX + "diffusion_modelinput_blocks00weight"
BASES = "Choose a text-to-image model of SD 1.x, 2.x or SDXL, for example stable-diffusion-v1-5/stable-diffusion-v1-5."
# What a UNet takes besides the four channels of a noisy latent.
OTHER_INPUTS = {5: "a depth model", 7: "an upscaler", 8: "an instruct model (pix2pix)", 9: "an inpainting model"}
# A tensor's name, the kind of a file with it, and what to do.
OTHER_KINDS: tuple[tuple[str, str, str], ...] = (
    (r"conditioner\.embedders\.0\.model\.", "the refiner of SDXL", BASES),
    (r"model\.diffusion_model\.(joint_blocks|double_blocks|transformer_blocks)\.|double_blocks\.|transformer\.single_",
     "a model of a later family (SD 3, FLUX or the like)", BASES),
    (r".*(lora|hada_w|lokr_)", "a LoRA, an addition to a model,",
     "Choose the step of the run that made it, or merge it into its base (convert --as checkpoint) and choose that."),
    (r"control_model\.|controlnet_|zero_convs?\.", "a ControlNet, an addition to a model,", BASES),
    (r"(string_to_param|emb_params|clip_[lg])$", "an embedding (textual inversion), a word for a model,", BASES),
    (r"(down_blocks|up_blocks|mid_block)\.", "one part of a diffusers folder",
     "Name the folder that holds model_index.json."),
    (r"(text_model\.)?encoder\.layers\.\d+\.(self_attn|layer_norm1)\.", "a text encoder alone",
     "Name the folder that holds model_index.json, or a file with all three parts."),
    (r"(encoder|decoder)\.conv_in\.weight$", "a VAE alone",
     "Give it as pretrained_vae_name_or_path, beside a base."),
)  # fmt: skip
PRUNED = "a pruned relative of SDXL (such as SSD-1B, Segmind Vega or Koala)"
FEW_STEPS = "a model distilled to few denoising steps (LCM)"
# SDXL's UNet has this in the middle and in the lowest level, ten transformer blocks deep; its relatives do not.
_DEEPEST = tuple(
    f"{UNET_PREFIX}{block}.1.transformer_blocks.9.norm1.weight"
    for block in ("middle_block", "input_blocks.7", "input_blocks.8", "output_blocks.0", "output_blocks.2")
)
_SDXL_EMBEDDING = UNET_PREFIX + "label_emb.0.0.weight"
# Tells a UNet its guidance scale, which only distilled ones take.
_GUIDANCE_EMBEDDING = UNET_PREFIX + "time_embed.cond_proj.weight"
SDXL_WIDTHS, SDXL_DEPTHS = [320, 640, 1280], [1, 2, 10]
# Names of models distilled to few denoising steps, which neither tensors nor configurations reveal.
_DISTILLED = re.compile(r"(?<![a-z])(turbo|lightning|lcm|hyper-?sd(?:xl)?|dmd2?)(?![a-z])", re.IGNORECASE)
# A tensor's shape by its name, None if only the name is known.
Shapes = Mapping[str, Sequence[int] | None]


def refuse_other_kinds(name: str, shapes: Shapes) -> None:
    """Raise BaseModelError for a file that is not a supported text-to-image model: what it is, and what to do."""
    if found := kind_of_file(shapes):
        raise refusal(name, *found)
    if not is_whole_model(shapes):
        why = f'It holds "{printable(min(shapes))}" and the like.'[:300] if shapes else "It holds no tensors."
        raise BaseModelError(f"{name} is not a complete model in the original layout.", why, BASES)


def is_whole_model(names: Container[str]) -> bool:
    """Return whether a file with these tensors has a UNet in the original layout."""
    return FIRST_CONV in names or FIRST_AVERAGED_CONV in names


def kind_of_file(shapes: Shapes) -> tuple[str, str] | None:
    """Return what an unsupported file of weights is, and what to do with it; None if that is unknown."""
    if _is_embedding(shapes):
        return "an embedding (textual inversion), a word for a model,", BASES
    first = next((one for one in (FIRST_CONV, FIRST_AVERAGED_CONV) if one in shapes), None)
    for pattern, kind, todo in OTHER_KINDS:
        # A whole model may include adapters; without its UNet a file is what its names say.
        if any(re.match(pattern, one) for one in shapes) and (first is None or kind.endswith("of SDXL")):
            return kind, todo
    shape = None if first is None else shapes[first]
    if _GUIDANCE_EMBEDDING in shapes:
        return FEW_STEPS, BASES
    # Narrow models of other depths are made for tests.
    is_wide = _SDXL_EMBEDDING in shapes and shape is not None and shape[0] == SDXL_WIDTHS[0]
    if is_wide and any(name not in shapes for name in _DEEPEST):
        return PRUNED, BASES
    if shape is not None and len(shape) == 4 and shape[1] != 4:
        return OTHER_INPUTS.get(shape[1], f"a model whose UNet takes {shape[1]} numbers a pixel"), BASES
    return None


def kind_of_unet(config: Mapping[str, Any]) -> str | None:
    """Return what a model with this UNet configuration is that cannot be trained here; None for one that can."""
    inputs = config.get("in_channels", 4)
    if inputs != 4:
        return OTHER_INPUTS.get(inputs, f"a model whose UNet takes {inputs} numbers a pixel")
    if config.get("time_cond_proj_dim") is not None:
        return FEW_STEPS
    is_sdxl = config.get("addition_embed_type") == "text_time"
    if is_sdxl and list(config.get("block_out_channels") or ()) == SDXL_WIDTHS:
        own = {
            "transformer_layers_per_block": SDXL_DEPTHS, "layers_per_block": 2,
            "reverse_transformer_layers_per_block": None, "mid_block_type": "UNetMidBlock2DCrossAttn",
        }  # fmt: skip
        if any(config.get(name, value) != value for name, value in own.items()):
            return PRUNED
    return None


def distilled_notice(name: str) -> str:
    """Return a notice for a base whose name says that it was distilled to few steps, empty for any other."""
    found = _DISTILLED.search(name.replace("\\", "/").rstrip("/").rpartition("/")[2])
    if found is None:
        return ""
    return (
        f'"{name}" looks like a model distilled to few denoising steps ("{found[1]}" is in its name). Training from '
        "distilled models is not supported: train from the model that it was made from."
    )


def _is_embedding(shapes: Shapes) -> bool:
    """Return whether all tensors are vectors of a text encoder's width, named after the word they stand for."""
    return 0 < len(shapes) <= 2 and all(
        shape is not None and len(shape) in (1, 2) and shape[-1] in (768, 1024, 1280) and "." not in name
        for name, shape in shapes.items()
    )


def refusal(name: str, kind: str, todo: str = BASES) -> BaseModelError:
    """Return the error for a file or folder that is a model of another kind."""
    why = "Only text-to-image models of SD 1.x, 2.x and SDXL can be trained here."
    return BaseModelError(f"{name} is {kind}.", why, todo)
