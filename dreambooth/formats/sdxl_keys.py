"""SDXL's original layout and diffusers' layout of the same weights: names as data, both ways.

The UNet has three levels, transformers in the lower two, and an embedding of sizes and pooled text (`label_emb`). The
second text encoder has open_clip's names. Its projection is x @ P there, but the weight P.T of a linear layer in
transformers: the matrix is square, so no shape check can tell them apart.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dreambooth.formats.ldm import (
    UNET_ENDS,
    UNET_PREFIX,
    UNET_RESNET,
    Pairs,
    under,
    unet_key,
    vae_from_original,
    vae_to_original,
)
from dreambooth.formats.open_clip import from_open_clip, num_open_clip_layers, to_open_clip

if TYPE_CHECKING:
    from torch import Tensor

CLIP_PREFIX = "conditioner.embedders.0.transformer.text_model."
OPEN_CLIP_PREFIX = "conditioner.embedders.1.model."
POSITION_IDS = CLIP_PREFIX + "embeddings.position_ids"
PROJECTION = "text_projection"
# Used to compare whole texts with images, affects no image: log of 100, as in the original.
LOGIT_SCALE, LOGIT_SCALE_VALUE = "logit_scale", 4.6055
# Empty tensors that mark files of models with v-prediction, and with zero-terminal SNR.
V_MARKER, ZERO_TERMINAL_MARKER = "v_pred", "ztsnr"

NUM_LEVELS = 3
UNET_BLOCKS: Pairs = (
    *UNET_ENDS,
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    *((f"down_blocks.{i}.resnets.{j}", f"input_blocks.{3 * i + j + 1}.0") for i in range(NUM_LEVELS) for j in range(2)),
    *((f"down_blocks.{i}.attentions.{j}", f"input_blocks.{3 * i + j + 1}.1") for i in (1, 2) for j in range(2)),
    *((f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{3 * i + 3}.0.op") for i in (0, 1)),
    *((f"up_blocks.{i}.resnets.{j}", f"output_blocks.{3 * i + j}.0") for i in range(NUM_LEVELS) for j in range(3)),
    *((f"up_blocks.{i}.attentions.{j}", f"output_blocks.{3 * i + j}.1") for i in (0, 1) for j in range(3)),
    *((f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{3 * i + 2}.2.conv") for i in (0, 1)),
)


def to_original(parts: "Mapping[str, Mapping[str, Tensor]]") -> "dict[str, Tensor]":
    """Return the parts' weights under the original names; raises KeyError for a name that SDXL does not have."""
    import torch

    result = {
        UNET_PREFIX + unet_key(name, to_original=True, blocks=UNET_BLOCKS): tensor
        for name, tensor in parts["unet"].items()
    }
    result |= vae_to_original(parts["vae"])
    first = without_prefix(parts["text_encoder"])
    result |= {CLIP_PREFIX + name: tensor for name, tensor in first.items()}
    length = first["embeddings.position_embedding.weight"].shape[0]
    result[POSITION_IDS] = torch.arange(length, dtype=torch.int64)[None]
    second = without_prefix(parts["text_encoder_2"])
    projection = second.pop(f"{PROJECTION}.weight")
    result |= {OPEN_CLIP_PREFIX + name: tensor for name, tensor in to_open_clip(second).items()}
    result[OPEN_CLIP_PREFIX + PROJECTION] = projection.T.contiguous()
    result[OPEN_CLIP_PREFIX + LOGIT_SCALE] = torch.tensor(LOGIT_SCALE_VALUE, dtype=projection.dtype)
    return result


def from_original(weights: "Mapping[str, Tensor]") -> "dict[str, dict[str, Tensor]]":
    """Return the parts under diffusers' names, the text encoders' without `text_model.`; raises KeyError."""
    second = dict(under(weights, OPEN_CLIP_PREFIX))
    projection = second.pop(PROJECTION)
    text_encoder_2 = from_open_clip(second, num_open_clip_layers(second))
    text_encoder_2[f"{PROJECTION}.weight"] = projection.T.contiguous()
    return {
        "unet": {
            unet_key(name, to_original=False, blocks=UNET_BLOCKS): tensor
            for name, tensor in under(weights, UNET_PREFIX)
        },
        "vae": vae_from_original(weights),
        "text_encoder": without_prefix(dict(under(weights, CLIP_PREFIX))),
        "text_encoder_2": text_encoder_2,
    }


def without_prefix(text_encoder: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return a text encoder's tensors without the prefix that some versions write, and without position_ids."""
    bare = {name.removeprefix("text_model."): tensor for name, tensor in text_encoder.items()}
    return {name: tensor for name, tensor in bare.items() if not name.endswith("position_ids")}


# In LoRA files --------------------------------------------------------------------------------------------------------

# Longest first: `input_blocks_1` is a prefix of `input_blocks_11`, so an underscore must follow.
_NAMES_IN_LORAS: Pairs = tuple(
    sorted(
        ((ours.replace(".", "_"), theirs.replace(".", "_")) for ours, theirs in UNET_BLOCKS),
        key=lambda pair: -len(pair[0]),
    )
)
_RESNETS_IN_LORAS: Pairs = tuple((ours, theirs.replace(".", "_")) for ours, theirs in UNET_RESNET)
_FIRST_ENCODER, _ITS_NAME = "lora_te_", "lora_te1_"
_UNET = "lora_unet_"


def lora_name(module: str) -> str:
    """Return a module's name in LoRA files for SDXL: the UNet's blocks have the names of the original layout."""
    if module.startswith(_FIRST_ENCODER):
        return _ITS_NAME + module.removeprefix(_FIRST_ENCODER)
    if not module.startswith(_UNET):
        return module
    return _UNET + _renamed(module.removeprefix(_UNET), 0)


def from_original_name(path: str) -> str:
    """Return the path of a UNet layer in diffusers, with underscores for dots; other names unchanged."""
    is_original = path.startswith(
        ("input_blocks_", "middle_block_", "output_blocks_", "out_", "time_embed_", "label_emb_")
    )
    return _renamed(path, 1) if is_original else path


def _renamed(path: str, source: int) -> str:
    for pair in _NAMES_IN_LORAS:
        if (path + "_").startswith(pair[source] + "_"):
            inner = path.removeprefix(pair[source])
            if "_resnets_" in pair[0]:
                inner = _renamed_in_resnet(inner, source)
            return pair[1 - source] + inner
    return path


def _renamed_in_resnet(inner: str, source: int) -> str:
    for pair in _RESNETS_IN_LORAS:
        if inner == f"_{pair[source]}":
            return f"_{pair[1 - source]}"
    return inner
