"""What a file or folder of weights may be instead of a text-to-image model known here, and what to do with it."""

import re
from collections.abc import Container, Mapping, Sequence

from dreambooth.errors import BaseModelError
from dreambooth.formats.ldm import EMA_PREFIX, UNET_PREFIX
from dreambooth.formats.text_files import printable

FIRST_CONV = UNET_PREFIX + "input_blocks.0.0.weight"
FIRST_AVERAGED_CONV = EMA_PREFIX + "diffusion_modelinput_blocks00weight"
BASES = "Choose a text-to-image model of SD 1.x, 2.x or SDXL, for example stable-diffusion-v1-5/stable-diffusion-v1-5."
# What a UNet takes beside the four numbers of a noisy latent.
OTHER_INPUTS = {5: "a depth model", 7: "an upscaler", 8: "an instruct model (pix2pix)", 9: "an inpainting model"}
# A name of a tensor, what a file with such a one is, and what to do with it.
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
# A tensor's shape by its name, None where only the name is known.
Shapes = Mapping[str, Sequence[int] | None]


def refuse_other_kinds(name: str, shapes: Shapes) -> None:
    """Raise BaseModelError for a file that is no text-to-image model known here: what it is, and what to do."""
    if found := kind_of_file(shapes):
        raise refusal(name, *found)
    if not is_whole_model(shapes):
        why = f'It holds "{printable(min(shapes))}" and the like.'[:300] if shapes else "It holds no tensors."
        raise BaseModelError(f"{name} is not a complete model in the original layout.", why, BASES)


def is_whole_model(names: Container[str]) -> bool:
    """Return whether a file with these tensors has a UNet in the original layout."""
    return FIRST_CONV in names or FIRST_AVERAGED_CONV in names


def kind_of_file(shapes: Shapes) -> tuple[str, str] | None:
    """Return what a file of weights is that is no such model, and what to do with it; None where that is not known."""
    if _is_embedding(shapes):
        return "an embedding (textual inversion), a word for a model,", BASES
    first = next((one for one in (FIRST_CONV, FIRST_AVERAGED_CONV) if one in shapes), None)
    for pattern, kind, todo in OTHER_KINDS:
        # A whole model may carry additions; without its UNet a file is what its names say.
        if any(re.match(pattern, one) for one in shapes) and (first is None or kind.endswith("of SDXL")):
            return kind, todo
    shape = None if first is None else shapes[first]
    if shape is not None and len(shape) == 4 and shape[1] != 4:
        return OTHER_INPUTS.get(shape[1], f"a model whose UNet takes {shape[1]} numbers a pixel"), BASES
    return None


def _is_embedding(shapes: Shapes) -> bool:
    """Return whether all there is are vectors of a text encoder's width, under the word that they stand for."""
    return 0 < len(shapes) <= 2 and all(
        shape is not None and len(shape) in (1, 2) and shape[-1] in (768, 1024, 1280) and "." not in name
        for name, shape in shapes.items()
    )


def refusal(name: str, kind: str, todo: str = BASES) -> BaseModelError:
    """Return the error for a file or folder that is a model of another kind."""
    why = "Only text-to-image models of SD 1.x, 2.x and SDXL can be trained here."
    return BaseModelError(f"{name} is {kind}.", why, todo)
