"""The original layout of SD 1.x and 2.x files and diffusers' layout of the same weights: names as data, both ways.

In the original layout the UNet's blocks are numbered consecutively, the VAE's decoder counts from the bottom, and the
VAE's one attention consists of 1x1 convolutions.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from dreambooth.formats.open_clip import OPEN_CLIP_PREFIX, from_open_clip, num_open_clip_layers, to_open_clip
from dreambooth.formats.original import unet_names

if TYPE_CHECKING:
    from torch import Tensor

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer.text_model."
EMA_PREFIX = "model_ema."
POSITION_IDS = TEXT_PREFIX + "embeddings.position_ids"

# What a text encoder may contain without affecting any image.
UNUSED_TEXT_TENSORS = ("position_ids", "text_projection.weight", "text_projection", "logit_scale")

NUM_LEVELS = 4
SD2_TEXT_LAYERS = 23
Pairs = tuple[tuple[str, str], ...]

# (diffusers, original) for the UNet's beginning, end and middle; for whole blocks ...
UNET_ENDS: Pairs = (
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("mid_block.resnets.0", "middle_block.0"),
    ("mid_block.attentions.0", "middle_block.1"),
    ("mid_block.resnets.1", "middle_block.2"),
)
UNET_BLOCKS: Pairs = (
    *UNET_ENDS,
    *((f"down_blocks.{i}.resnets.{j}", f"input_blocks.{3 * i + j + 1}.0") for i in range(NUM_LEVELS) for j in range(2)),
    *((f"down_blocks.{i}.attentions.{j}", f"input_blocks.{3 * i + j + 1}.1") for i in range(3) for j in range(2)),
    *((f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{3 * i + 3}.0.op") for i in range(3)),
    *((f"up_blocks.{i}.resnets.{j}", f"output_blocks.{3 * i + j}.0") for i in range(NUM_LEVELS) for j in range(3)),
    *((f"up_blocks.{i}.attentions.{j}", f"output_blocks.{3 * i + j}.1") for i in range(1, 4) for j in range(3)),
    # The lowest level has no attention, so its upsampler has one index less.
    *((f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{3 * i + 2}.{2 if i else 1}.conv") for i in range(3)),
)
VAE_BLOCKS: Pairs = (
    *((f"encoder.down_blocks.{i}.resnets.{j}", f"encoder.down.{i}.block.{j}") for i in range(4) for j in range(2)),
    *((f"encoder.down_blocks.{i}.downsamplers.0.conv", f"encoder.down.{i}.downsample.conv") for i in range(3)),
    *((f"decoder.up_blocks.{i}.resnets.{j}", f"decoder.up.{3 - i}.block.{j}") for i in range(4) for j in range(3)),
    *((f"decoder.up_blocks.{i}.upsamplers.0.conv", f"decoder.up.{3 - i}.upsample.conv") for i in range(3)),
    *(
        (f"{half}.mid_block.resnets.{j}", f"{half}.mid.block_{j + 1}")
        for half in ("encoder", "decoder")
        for j in (0, 1)
    ),
    *((f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1") for half in ("encoder", "decoder")),
    *((f"{half}.conv_norm_out", f"{half}.norm_out") for half in ("encoder", "decoder")),
    *((f"{half}.conv_{end}", f"{half}.conv_{end}") for half in ("encoder", "decoder") for end in ("in", "out")),
    ("quant_conv", "quant_conv"),
    ("post_quant_conv", "post_quant_conv"),
)
# ... and for what is inside them.
UNET_RESNET: Pairs = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)
VAE_RESNET: Pairs = (
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("conv_shortcut", "nin_shortcut"),
)
VAE_ATTENTION: Pairs = (
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
)
# Folders written before diffusers 0.18 name the VAE's attention differently.
OLD_VAE_ATTENTION: Pairs = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))


def to_ldm(
    unet: Mapping[str, "Tensor"],
    vae: Mapping[str, "Tensor"],
    text_encoder: Mapping[str, "Tensor"],
    *,
    open_clip: bool = False,
) -> "dict[str, Tensor]":
    """Return the three parts' weights under the original names; raises KeyError for a name neither family has.

    `open_clip` is for the text encoder of SD 2.x. That of SD 1.x gets its position_ids, which some loaders need.
    """
    import torch

    result = {UNET_PREFIX + unet_key(name, to_original=True): tensor for name, tensor in unet.items()}
    result |= vae_to_original(vae)
    text = without_text_model(text_encoder)
    if open_clip:
        return result | {OPEN_CLIP_PREFIX + name: tensor for name, tensor in to_open_clip(text).items()}
    result |= {TEXT_PREFIX + name: tensor for name, tensor in text.items()}
    length = result[TEXT_PREFIX + "embeddings.position_embedding.weight"].shape[0]
    result[POSITION_IDS] = torch.arange(length, dtype=torch.int64)[None]
    return result


def vae_to_original(vae: Mapping[str, "Tensor"]) -> "dict[str, Tensor]":
    """Return a VAE's weights under the original names, prefix included."""
    result = {}
    for name, tensor in vae.items():
        original = vae_key(modern_vae_key(name), to_original=True)
        if _is_vae_attention_matrix(original):
            tensor = tensor.reshape(*tensor.shape[:2], 1, 1)
        result[VAE_PREFIX + original] = tensor
    return result


def vae_from_original(weights: Mapping[str, "Tensor"]) -> "dict[str, Tensor]":
    """Return the VAE of a file under diffusers' names."""
    vae = {}
    for name, tensor in under(weights, VAE_PREFIX):
        if name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")):
            matrix = tensor[:, :, 0, 0] if _is_vae_attention_matrix(name) and tensor.ndim == 4 else tensor
            vae[vae_key(name, to_original=False)] = matrix
    return vae


def from_ldm(
    weights: Mapping[str, "Tensor"],
) -> "tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]":
    """Return (unet, vae, text encoder) under diffusers' names; the text encoder's without `text_model.`.

    If a file holds only the moving average of the UNet, that is used. The original has one more text encoder layer for
    SD 2.x than is used.
    """
    unet = {unet_key(name, to_original=False): tensor for name, tensor in under(weights, UNET_PREFIX)}
    if not unet:
        unet = {unet_key(name, to_original=False): tensor for name, tensor in _averages(weights)}
    vae = vae_from_original(weights)
    open_clip = dict(under(weights, OPEN_CLIP_PREFIX))
    if open_clip:
        num_layers = num_open_clip_layers(open_clip)
        # An original file has all 24, one of ours or of diffusers' the 23 that are used.
        return unet, vae, from_open_clip(open_clip, min(num_layers, SD2_TEXT_LAYERS))
    return unet, vae, without_text_model(dict(under(weights, "cond_stage_model.transformer.")))


def without_text_model(text_encoder: Mapping[str, "Tensor"]) -> "dict[str, Tensor]":
    """Return a text encoder's tensors without the prefix that some versions write, and without unused tensors.

    Those are position_ids, and CLIP's projection and scale, which compare whole texts with images.
    """
    bare = {name.removeprefix("text_model."): tensor for name, tensor in text_encoder.items()}
    return {name: tensor for name, tensor in bare.items() if not name.endswith(UNUSED_TEXT_TENSORS)}


def _averages(weights: Mapping[str, "Tensor"]) -> "Iterable[tuple[str, Tensor]]":
    """Return the UNet's moving averages under its own names: their names lack the dots."""
    dotted = {name.replace(".", ""): name for name in unet_names((1, 2, 4, 4))}
    prefix = EMA_PREFIX + "diffusion_model"
    return ((dotted[name], tensor) for name, tensor in under(weights, prefix) if name in dotted)


def unet_key(name: str, *, to_original: bool, blocks: Pairs = UNET_BLOCKS) -> str:
    """Return the UNet tensor's name in the other layout; `blocks` are those of SD 1.x and 2.x by default."""
    block, inner = _split(name, blocks, to_original)
    is_resnet = ".resnets." in (name if to_original else block)
    return block + (_swapped(inner, UNET_RESNET, to_original) if is_resnet else inner)


def vae_key(name: str, *, to_original: bool) -> str:
    """Return the VAE tensor's name in the other layout."""
    block, inner = _split(name, VAE_BLOCKS, to_original)
    diffusers_name = name if to_original else block
    if ".resnets." in diffusers_name:
        inner = _swapped(inner, VAE_RESNET, to_original)
    elif ".attentions." in diffusers_name:
        inner = _swapped(inner, VAE_ATTENTION, to_original)
    return block + inner


def modern_vae_key(name: str) -> str:
    """Return a diffusers VAE name in the current spelling of its attention."""
    for old, new in OLD_VAE_ATTENTION:
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return name


def _is_vae_attention_matrix(original: str) -> bool:
    return re.search(r"\.attn_1\.(q|k|v|proj_out)\.weight$", original) is not None


def under(weights: Mapping[str, "Tensor"], prefix: str) -> "Iterable[tuple[str, Tensor]]":
    """Return the tensors whose names begin with the prefix, with the prefix removed."""
    return ((name[len(prefix) :], tensor) for name, tensor in weights.items() if name.startswith(prefix))


def _split(name: str, blocks: Pairs, to_original: bool) -> tuple[str, str]:
    """Return the block's name in the other layout and the rest of the name."""
    source, wanted = (0, 1) if to_original else (1, 0)
    matches = [pair for pair in blocks if name.startswith(pair[source] + ".")]
    if not matches:
        raise KeyError(name)
    longest = max(matches, key=lambda pair: len(pair[source]))
    return longest[wanted], name[len(longest[source]) :]


def _swapped(inner: str, pairs: Pairs, to_original: bool) -> str:
    source, wanted = (0, 1) if to_original else (1, 0)
    for pair in pairs:
        if inner.startswith(f".{pair[source]}."):
            return f".{pair[wanted]}" + inner[len(pair[source]) + 1 :]
    raise KeyError(inner)
