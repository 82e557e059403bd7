"""The text encoder of SD 2.x in its original files and in transformers: names as data, both ways."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

OPEN_CLIP_PREFIX = "cond_stage_model.model."
# (transformers, open_clip) outside the layers, and inside each.
OUTER = (
    ("embeddings.token_embedding.weight", "token_embedding.weight"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("final_layer_norm.weight", "ln_final.weight"),
    ("final_layer_norm.bias", "ln_final.bias"),
)
INNER = (
    ("layer_norm1.", "ln_1."),
    ("layer_norm2.", "ln_2."),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
    ("self_attn.out_proj.", "attn.out_proj."),
)
QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")
LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
RESBLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")


def to_open_clip(text_encoder: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return transformers' tensors (without `text_model.`) under open_clip's names, with one matrix for q, k and v.

    Raises KeyError for a name that such a text encoder does not have.
    """
    import torch

    outer = dict(OUTER)
    result: dict[str, Tensor] = {}
    for name, tensor in text_encoder.items():
        match = LAYER.fullmatch(name)
        if match is None:
            if name != "embeddings.position_ids":
                result[outer[name]] = tensor
            continue
        block, inner = f"transformer.resblocks.{match[1]}.", match[2]
        if not inner.startswith(tuple(f"self_attn.{one}." for one in QUERY_KEY_VALUE)):
            result[block + _swapped(inner, 0)] = tensor
        elif inner.startswith("self_attn.q_proj."):
            kind = inner.rpartition(".")[2]
            three = [text_encoder[f"encoder.layers.{match[1]}.self_attn.{one}.{kind}"] for one in QUERY_KEY_VALUE]
            result[f"{block}attn.in_proj_{kind}"] = torch.cat(three)
    return result


def from_open_clip(weights: "Mapping[str, Tensor]", num_layers: int) -> "dict[str, Tensor]":
    """Return open_clip's tensors under transformers' names (without `text_model.`), of the first `num_layers` layers.

    The original has one layer and a projection that SD 2.x does not use. Raises KeyError for missing tensors.
    """
    outer = {theirs: ours for ours, theirs in OUTER}
    result = {ours: weights[theirs] for theirs, ours in outer.items()}
    for name, tensor in weights.items():
        match = RESBLOCK.fullmatch(name)
        if match is None or int(match[1]) >= num_layers:
            continue
        block, inner = f"encoder.layers.{match[1]}.", match[2]
        if inner.startswith("attn.in_proj_"):
            kind = inner.removeprefix("attn.in_proj_")
            for one, part in zip(QUERY_KEY_VALUE, tensor.chunk(3), strict=True):
                result[f"{block}self_attn.{one}.{kind}"] = part.contiguous()
        else:
            result[block + _swapped(inner, 1)] = tensor
    return result


def num_open_clip_layers(weights: "Mapping[str, Tensor]") -> int:
    """Return how many layers the tensors (named without the prefix) have."""
    return 1 + max((int(match[1]) for match in map(RESBLOCK.fullmatch, weights) if match), default=-1)


def _swapped(inner: str, source: int) -> str:
    for pair in INNER:
        if inner.startswith(pair[source]):
            return pair[1 - source] + inner.removeprefix(pair[source])
    raise KeyError(inner)
