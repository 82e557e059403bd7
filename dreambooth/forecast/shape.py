"""The sizes of a base's parts, read from its configuration files without its weights and without torch.

UNet and text encoder are described as units, each kept or recomputed as a whole, with its numbers of weights and of the
values its backward pass needs. The counts are those of diffusers 0.42 and transformers 5.23, and tests compare them.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dreambooth.formats.layout import SD1, Layout, cached_folder, layout_of
from dreambooth.models.base import known_layout, local_base
from dreambooth.models.family import usual_configs

TOKENS = 77
# A configuration may come from anywhere with its base: beyond these it is not a model that can be trained.
MAX_LAYERS, MAX_SIZE = 200, 10**12
UNET_DEFAULTS: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
VAE_DEFAULTS: dict[str, Any] = {"in_channels": 3, "latent_channels": 4, "layers_per_block": 2}


@dataclass(frozen=True)
class Layer:
    """A linear layer or convolution by its weight (out, in, ...): the weight's name in its part, and its sizes.

    num_inputs: the numbers from which one output is computed; num_places: how often it is applied to one image;
    own_values: the numbers kept for backward only if its weight is trained.
    """

    weight: str
    num_inputs: int
    num_outputs: int
    num_places: int
    own_values: int = 0

    @property
    def num_per_rank(self) -> int:
        """Return how many numbers low-rank factors of its weight take per rank."""
        return self.num_inputs + self.num_outputs


@dataclass(frozen=True)
class Unit:
    """A section of a forward pass: its weights, and what it keeps for backward, in numbers per image.

    Values are counted by their use under mixed precision: `norm_values` go in and out of normalisations,
    `product_values` into matrix products, `copied_values` are held once more if normalisations give fp32,
    `boundary_values` are all that is kept if the unit is recomputed (None: it never is). `widest` is its widest tensor,
    `weight_values` those weights that a mixed-precision forward copies, `large_weights` its largest tensors; `layers`
    are those that a LoRA can change.
    """

    name: str
    num_weights: int
    weight_values: int
    norm_values: int
    product_values: int
    copied_values: int
    boundary_values: int | None
    widest: int
    large_weights: tuple[int, ...] = ()
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class ModelShape:
    """A base's sizes: its parts' configurations, from which counts follow; text encoders by name.

    layout: its family's, which says in which number format its parts compute.
    """

    unet: Mapping[str, Any]
    text_encoders: Mapping[str, Mapping[str, Any]]
    vae: Mapping[str, Any]
    layout: Layout = SD1

    @property
    def num_unet(self) -> int:
        """Return the number of the UNet's weights."""
        return sum(unit.num_weights for unit in unet_units(self.unet, 64))

    @property
    def num_text_encoder(self) -> int:
        """Return the number of the text encoders' weights."""
        return sum(unit.num_weights for config in self.text_encoders.values() for unit in text_units(config))

    @property
    def num_vae(self) -> int:
        """Return the number of the VAE's weights."""
        return count_vae(self.vae)

    @property
    def latent_scale(self) -> int:
        """Return how many pixels a latent pixel covers in each direction."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))

    @property
    def native_px(self) -> int:
        """Return the side of the images that the base was trained on."""
        return int(self.unet["sample_size"]) * self.latent_scale


def usual_shape(layout: Layout) -> ModelShape:
    """Return the sizes that models with this layout usually have."""
    configs = usual_configs(layout)
    encoders = {name: configs[name] for name in layout.text_encoders}
    return ModelShape(UNET_DEFAULTS | dict(configs["unet"]), encoders, VAE_DEFAULTS | dict(configs["vae"]), layout)


SD15_SHAPE = usual_shape(SD1)


def read_shape(name: str, models_dir: Path | None = None) -> ModelShape:
    """Return the sizes of a base by its name; those usual for its family if it is not downloaded, or is a single file.

    For a base of an unknown family they are SD 1.5's.
    """
    source = local_base(name, models_dir) or _cached(name)
    if source is None or not source.is_dir():
        layout = known_layout(name, models_dir)
        return SD15_SHAPE if layout is None else usual_shape(layout)
    try:
        layout = layout_of(source)
        parts = {
            part: dict(json.loads((source / part / "config.json").read_text("utf-8"))) for part in layout.part_names
        }
        encoders = {name: parts[name] for name in layout.text_encoders}
        depths = [one["num_hidden_layers"] for one in encoders.values()]
        if max(*depths, *_depths(parts["unet"]), parts["unet"].get("layers_per_block", 2)) > MAX_LAYERS:
            return SD15_SHAPE
        shape = ModelShape(UNET_DEFAULTS | parts["unet"], encoders, VAE_DEFAULTS | parts["vae"], layout)
        sizes = shape.num_unet, shape.num_text_encoder, shape.num_vae, shape.native_px
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError, OverflowError):
        # What cannot be laid out may still load: it then fails later if it does not fit.
        return SD15_SHAPE
    return shape if all(0 < size < MAX_SIZE for size in sizes) else SD15_SHAPE


def _cached(name: str) -> Path | None:
    """Return the folder of a Hub model whose configurations are in the local cache."""
    with contextlib.suppress(ValueError, OSError):  # no name that the Hub could have
        return cached_folder(name)
    return None


# The UNet ------------------------------------------------------------------------------------------------------------


def unet_units(config: Mapping[str, Any], latent_px: int, num_tokens: int = TOKENS) -> list[Unit]:
    """Return the UNet's units in the order of its forward, for latents of this side and prompts of this length."""
    return list(_unet_units(config, latent_px, num_tokens))


def _unet_units(config: Mapping[str, Any], latent_px: int, num_tokens: int) -> Iterator[Unit]:
    widths: list[int] = list(config["block_out_channels"])
    layers, text = int(config["layers_per_block"]), (num_tokens, int(config["cross_attention_dim"]))
    # Convolutions always keep their input for backward, linear layers only if their weight is trained.
    linear_projection = bool(config.get("use_linear_projection"))
    step_width = 4 * widths[0]
    area, side = latent_px * latent_px, latent_px
    yield _plain("time", linear(widths[0], step_width) + linear(step_width, step_width), 0, widths[0] + step_width)
    if added := config.get("projection_class_embeddings_input_dim"):
        weights = linear(int(added), step_width) + linear(step_width, step_width)
        yield _plain("added", weights, 0, int(added) + step_width)
    yield _convolution("conv_in", config["in_channels"], widths[0], area, area)
    width, depths = widths[0], _depths(config)
    for level, kind in enumerate(config["down_block_types"]):
        for layer in range(layers):
            yield _resnet(f"down_blocks.{level}.resnets.{layer}", width, widths[level], area, step_width)
            width = widths[level]
            if "CrossAttn" in kind:
                name = f"down_blocks.{level}.attentions.{layer}"
                yield from _transformer(name, width, area, *text, linear_projection, depths[level])
        if level < len(widths) - 1:
            side = (side + 1) // 2
            yield _convolution(f"down_blocks.{level}.downsamplers.0.conv", width, width, area, side * side)
            area = side * side
    yield _resnet("mid_block.resnets.0", width, width, area, step_width, checkpointed=False)
    yield from _transformer("mid_block.attentions.0", width, area, *text, linear_projection, depths[-1])
    yield _resnet("mid_block.resnets.1", width, width, area, step_width)
    upward = widths[::-1]
    for level, kind in enumerate(config["up_block_types"]):
        below = upward[min(level + 1, len(upward) - 1)]
        for layer in range(layers + 1):
            skip = below if layer == layers else upward[level]
            yield _resnet(f"up_blocks.{level}.resnets.{layer}", width + skip, upward[level], area, step_width)
            width = upward[level]
            if "CrossAttn" in kind:
                name, depth = f"up_blocks.{level}.attentions.{layer}", depths[-1 - level]
                yield from _transformer(name, width, area, *text, linear_projection, depth)
        if level < len(widths) - 1:
            side = min(side * 2, -(-latent_px // 2 ** (len(widths) - 2 - level)))
            area = side * side
            yield _convolution(f"up_blocks.{level}.upsamplers.0.conv", width, width, area, area)
    yield Unit("out norm", 2 * width, 0, 2 * width * area, 0, 0, None, width * area)
    yield _convolution("conv_out", width, config["out_channels"], area, area)


def _plain(name: str, num_weights: int, norm_values: int, product_values: int) -> Unit:
    return Unit(name, num_weights, num_weights, norm_values, product_values, 0, None, product_values)


def _convolution(name: str, inputs: int, outputs: int, area: int, area_after: int) -> Unit:
    weights = convolution(inputs, outputs, 3)
    widest = max(inputs * area, outputs * area_after)
    layer = Layer(f"{name}.weight", 9 * inputs, outputs, area_after)
    return Unit(name, weights, weights, 0, inputs * area, 0, None, widest, (9 * inputs * outputs,), (layer,))


def _resnet(name: str, inputs: int, outputs: int, area: int, step_width: int, *, checkpointed: bool = True) -> Unit:
    """norm, silu, convolution, addition of the timestep, norm, silu, convolution, and addition of the input."""
    products = convolution(inputs, outputs, 3) + convolution(outputs, outputs, 3) + linear(step_width, outputs)
    layers = [
        Layer(f"{name}.conv1.weight", 9 * inputs, outputs, area),
        Layer(f"{name}.time_emb_proj.weight", step_width, outputs, 1, step_width),
        Layer(f"{name}.conv2.weight", 9 * outputs, outputs, area),
    ]
    if inputs != outputs:
        products += convolution(inputs, outputs, 1)
        layers.append(Layer(f"{name}.conv_shortcut.weight", inputs, outputs, area))
    return Unit(
        name,
        products + 2 * inputs + 2 * outputs,
        products,
        norm_values=2 * (inputs + outputs) * area,
        product_values=(inputs + outputs) * area + step_width,
        copied_values=inputs * area if inputs != outputs else 0,
        boundary_values=inputs * area if checkpointed else None,
        widest=max(inputs, outputs) * area,
        large_weights=(9 * inputs * outputs, 9 * outputs * outputs),
        layers=tuple(layers),
    )


def _depths(config: Mapping[str, Any]) -> list[int]:
    """Return the number of transformer blocks in each level."""
    depths = config.get("transformer_layers_per_block", 1)
    return list(depths) if isinstance(depths, list | tuple) else [int(depths)] * len(config["block_out_channels"])


def _transformer(
    name: str, width: int, area: int, num_tokens: int, text_width: int, linear_projection: bool, depth: int
) -> Iterator[Unit]:
    """norm and projection, then blocks (self-attention, attention to the text, gated layer), then projection."""

    def projection(end: str) -> Layer:
        return Layer(f"{name}.proj_{end}.weight", width, width, area, width * area if linear_projection else 0)

    yield Unit(
        f"{name}.proj_in",
        2 * width + linear(width, width),
        linear(width, width),
        norm_values=width * area,
        product_values=width * area,
        copied_values=0,
        boundary_values=None,
        widest=width * area,
        layers=(projection("in"),),
    )
    own = 3 * width * width + linear(width, width)
    cross = width * width + 2 * text_width * width + linear(width, width)
    gated = linear(width, 8 * width) + linear(4 * width, width)
    block = Unit(
        f"{name}.transformer_blocks",
        own + cross + gated + 6 * width,
        own + cross + gated,
        norm_values=3 * width * area,
        # Three norms' outputs, q, k, v and the result, q and the result, and 16 widths in the gated layer.
        product_values=(3 + 4 + 2 + 16) * width * area + 2 * num_tokens * width,
        copied_values=2 * width * area + 2 * num_tokens * text_width,
        boundary_values=width * area,
        widest=8 * width * area,
        large_weights=(8 * width * width, 4 * width * width),
    )
    for number in range(depth):
        one = f"{block.name}.{number}"
        yield replace(block, name=one, layers=_block_layers(one, width, area, num_tokens, text_width))
    yield Unit(
        f"{name}.proj_out",
        linear(width, width),
        linear(width, width),
        norm_values=0,
        product_values=width * area,
        copied_values=0,
        boundary_values=None,
        widest=width * area,
        layers=(projection("out"),),
    )


def _block_layers(name: str, width: int, area: int, num_tokens: int, text_width: int) -> tuple[Layer, ...]:
    """Return the layers of a transformer block; those of attention share their inputs, which are kept in any case."""
    own = [Layer(f"{name}.attn1.{part}.weight", width, width, area) for part in ("to_q", "to_k", "to_v", "to_out.0")]
    cross = [Layer(f"{name}.attn2.{part}.weight", width, width, area) for part in ("to_q", "to_out.0")]
    cross += [Layer(f"{name}.attn2.{part}.weight", text_width, width, num_tokens) for part in ("to_k", "to_v")]
    return (
        *own, *cross, Layer(f"{name}.ff.net.0.proj.weight", width, 8 * width, area, width * area),
        Layer(f"{name}.ff.net.2.weight", 4 * width, width, area, 4 * width * area),
    )  # fmt: skip


def skip_values(config: Mapping[str, Any], latent_px: int) -> int:
    """Return the values that the down blocks pass to the up blocks, per image."""
    widths: list[int] = list(config["block_out_channels"])
    layers = int(config["layers_per_block"])
    side, total = latent_px, widths[0] * latent_px**2
    for level, width in enumerate(widths):
        total += layers * width * side**2
        if level < len(widths) - 1:
            side = (side + 1) // 2
            total += width * side**2
    return total


# Text encoder and VAE ------------------------------------------------------------------------------------------------


def text_units(config: Mapping[str, Any], num_tokens: int = TOKENS) -> list[Unit]:
    """Return the text encoder's units in the order of its forward, for one prompt."""
    width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    words = int(config["vocab_size"])
    embeddings = (words + int(config.get("max_position_embeddings", TOKENS))) * width
    products = 4 * linear(width, width) + linear(width, inner) + linear(inner, width)
    layer = Unit(
        "encoder.layers",
        products + 4 * width,
        products,
        norm_values=2 * width * num_tokens,
        product_values=(2 + 4) * width * num_tokens + 3 * inner * num_tokens,
        copied_values=2 * width * num_tokens,
        boundary_values=width * num_tokens,
        widest=inner * num_tokens,
    )
    first = Unit("embeddings", embeddings, 0, 0, 0, 0, None, width * num_tokens, (words * width,))
    last = Unit("final_layer_norm", 2 * width, 0, width * num_tokens, 0, 0, None, width * num_tokens)
    names = [f"{layer.name}.{number}" for number in range(int(config["num_hidden_layers"]))]
    middle = [replace(layer, name=name, layers=_text_layers(name, width, inner, num_tokens)) for name in names]
    # An encoder that projects its end token has another class.
    projection = width * int(config.get("projection_dim", width))
    has_projection = "CLIPTextModelWithProjection" in (config.get("architectures") or ())
    pooled = [_plain("text_projection", projection, 0, width)] if has_projection else []
    return [first, *middle, last, *pooled]


def _text_layers(name: str, width: int, inner: int, num_tokens: int) -> tuple[Layer, ...]:
    parts = [f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
    attention = [Layer(f"{name}.{part}.weight", width, width, num_tokens) for part in parts]
    return (
        *attention, Layer(f"{name}.mlp.fc1.weight", width, inner, num_tokens, width * num_tokens),
        Layer(f"{name}.mlp.fc2.weight", inner, width, num_tokens, inner * num_tokens),
    )  # fmt: skip


def count_vae(config: Mapping[str, Any]) -> int:
    """Return the number of the VAE's weights."""
    widths: list[int] = list(config["block_out_channels"])
    layers = int(config["layers_per_block"])
    latent, pixels = int(config["latent_channels"]), int(config["in_channels"])
    top = widths[-1]
    middle = 2 * _vae_resnet(top, top) + 2 * top + 4 * linear(top, top)
    total = convolution(pixels, widths[0], 3) + middle + 2 * top + convolution(top, 2 * latent, 3)
    total += convolution(2 * latent, 2 * latent, 1) + convolution(latent, latent, 1)
    width = widths[0]
    for level, out in enumerate(widths):
        total += _vae_resnet(width, out) + (layers - 1) * _vae_resnet(out, out)
        total += convolution(out, out, 3) if level < len(widths) - 1 else 0
        width = out
    total += convolution(latent, top, 3) + middle + 2 * widths[0] + convolution(widths[0], pixels, 3)
    for level, out in enumerate(widths[::-1]):
        total += _vae_resnet(width, out) + layers * _vae_resnet(out, out)
        total += convolution(out, out, 3) if level < len(widths) - 1 else 0
        width = out
    return total


def _vae_resnet(inputs: int, outputs: int) -> int:
    shortcut = convolution(inputs, outputs, 1) if inputs != outputs else 0
    return convolution(inputs, outputs, 3) + convolution(outputs, outputs, 3) + 2 * (inputs + outputs) + shortcut


def convolution(inputs: int, outputs: int, side: int) -> int:
    """Return the weights of a convolution with bias."""
    return inputs * outputs * side * side + outputs


def linear(inputs: int, outputs: int) -> int:
    """Return the weights of a linear layer with bias."""
    return inputs * outputs + outputs
