"""The tensors that a file in the original layout must hold, derived from the model's structure.

It is independent of diffusers' names, so that the mapping in `ldm` can be checked against it.
"""

from collections.abc import Iterator, Sequence

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer.text_model."
OPEN_CLIP = "cond_stage_model.model."


def original_names(
    unet_widths: Sequence[int], vae_widths: Sequence[int], num_text_layers: int, *, open_clip: bool = False
) -> set[str]:
    """Return every name of a file whose UNet and VAE have these widths (four levels, from the outside in).

    `open_clip` is for the text encoder of SD 2.x, of which diffusers keeps one layer less than the original has, and
    neither `text_projection` nor `logit_scale`: they affect no image.
    """
    names = {UNET + name for name in unet_names(unet_widths)} | {VAE + name for name in vae_names(vae_widths)}
    if open_clip:
        return names | {OPEN_CLIP + name for name in open_clip_names(num_text_layers)}
    return names | {CLIP + name for name in clip_names(num_text_layers)}


def sdxl_names(
    unet_widths: Sequence[int], depths: Sequence[int], vae_widths: Sequence[int], num_text_layers: tuple[int, int]
) -> set[str]:
    """Return every name of an SDXL file: a UNet of three levels with transformers of these depths, and two encoders."""
    first, second = num_text_layers
    names = {UNET + name for name in unet_names(unet_widths, depths)}
    names |= {UNET + name for name in _both("label_emb.0.0", "label_emb.0.2")}
    names |= {VAE + name for name in vae_names(vae_widths)}
    names |= {f"conditioner.embedders.0.transformer.text_model.{name}" for name in clip_names(first)}
    own = (*open_clip_names(second), "text_projection", "logit_scale")
    return names | {f"conditioner.embedders.1.model.{name}" for name in own}


def unet_names(widths: Sequence[int], depths: Sequence[int] = (1, 1, 1, 0)) -> Iterator[str]:
    """Count as the original does: levels of two blocks, a downsampler after all but the last, then everything mirrored.

    depths: the number of transformer blocks in each level, 0 for none; the middle has as many as the deepest.
    """
    yield from _both("time_embed.0", "time_embed.2", "input_blocks.0.0")
    width, skips, number, last = widths[0], [widths[0]], 1, len(widths) - 1
    for level, wanted in enumerate(widths):
        for _ in range(2):
            yield from _unet_resnet(f"input_blocks.{number}.0", changes_width=width != wanted)
            yield from _unet_transformer(f"input_blocks.{number}.1", depths[level])
            width, number = wanted, number + 1
            skips.append(width)
        if level < last:
            yield from _both(f"input_blocks.{number}.0.op")
            number += 1
            skips.append(width)
    yield from _unet_resnet("middle_block.0", changes_width=False)
    yield from _unet_transformer("middle_block.1", max(depths))
    yield from _unet_resnet("middle_block.2", changes_width=False)
    for number in range(3 * len(widths)):
        level = last - number // 3
        yield from _unet_resnet(f"output_blocks.{number}.0", changes_width=width + skips.pop() != widths[level])
        width = widths[level]
        yield from _unet_transformer(f"output_blocks.{number}.1", depths[level])
        if level and number % 3 == 2:
            # In a level without a transformer the upsampler has one index less.
            yield from _both(f"output_blocks.{number}.{2 if depths[level] else 1}.conv")
    yield from _both("out.0", "out.2")


def _unet_resnet(block: str, *, changes_width: bool) -> Iterator[str]:
    yield from _both(*(f"{block}.{layer}" for layer in ("in_layers.0", "in_layers.2", "emb_layers.1")))
    yield from _both(f"{block}.out_layers.0", f"{block}.out_layers.3")
    if changes_width:
        yield from _both(f"{block}.skip_connection")


def _unet_transformer(block: str, depth: int) -> Iterator[str]:
    if depth:
        yield from _both(f"{block}.norm", f"{block}.proj_in", f"{block}.proj_out")
    for number in range(depth):
        inner = f"{block}.transformer_blocks.{number}"
        for attention in ("attn1", "attn2"):
            yield from (f"{inner}.{attention}.{matrix}.weight" for matrix in ("to_q", "to_k", "to_v"))
            yield from _both(f"{inner}.{attention}.to_out.0")
        yield from _both(*(f"{inner}.{name}" for name in ("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2")))


def vae_names(widths: Sequence[int]) -> Iterator[str]:
    """Yield the encoder's and the decoder's names; the decoder counts its levels from the outside too."""
    for half, way, num_blocks, levels in (("encoder", "down", 2, (0, 1, 2, 3)), ("decoder", "up", 3, (3, 2, 1, 0))):
        yield from _both(f"{half}.conv_in", f"{half}.norm_out", f"{half}.conv_out")
        width = widths[levels[0]]
        for level in levels:
            for block in range(num_blocks):
                yield from _vae_resnet(f"{half}.{way}.{level}.block.{block}", changes_width=width != widths[level])
                width = widths[level]
            if level != levels[-1]:
                yield from _both(f"{half}.{way}.{level}.{way}sample.conv")
        for block in (1, 2):
            yield from _vae_resnet(f"{half}.mid.block_{block}", changes_width=False)
        yield from _both(*(f"{half}.mid.attn_1.{name}" for name in ("norm", "q", "k", "v", "proj_out")))
    yield from _both("quant_conv", "post_quant_conv")


def _vae_resnet(block: str, *, changes_width: bool) -> Iterator[str]:
    yield from _both(*(f"{block}.{layer}" for layer in ("norm1", "conv1", "norm2", "conv2")))
    if changes_width:
        yield from _both(f"{block}.nin_shortcut")


def clip_names(num_layers: int) -> Iterator[str]:
    """Yield the names of the text encoder of SD 1.x, transformers' own."""
    yield from (f"embeddings.{name}" for name in ("token_embedding.weight", "position_embedding.weight"))
    yield "embeddings.position_ids"
    yield from _both("final_layer_norm")
    for layer in range(num_layers):
        block = f"encoder.layers.{layer}"
        yield from _both(*(f"{block}.{name}" for name in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")))
        yield from _both(*(f"{block}.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")))


def open_clip_names(num_layers: int) -> Iterator[str]:
    """Yield the names of the text encoder of SD 2.x, or SDXL's second: queries, keys and values are one matrix."""
    yield from ("token_embedding.weight", "positional_embedding")
    yield from _both("ln_final")
    for layer in range(num_layers):
        block = f"transformer.resblocks.{layer}"
        yield from (f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias")
        yield from _both(*(f"{block}.{name}" for name in ("attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")))


def _both(*layers: str) -> Iterator[str]:
    for layer in layers:
        yield from (f"{layer}.weight", f"{layer}.bias")
