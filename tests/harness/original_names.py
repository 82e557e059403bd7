"""The names of the tensors in an original checkpoint, block by block as its constructors count them."""

from collections.abc import Iterator


def both(name: str) -> list[str]:
    """Return a layer's weight and bias."""
    return [f"{name}.weight", f"{name}.bias"]


def unet_resnet(block: str, *, skip: bool) -> Iterator[str]:
    """Yield the names of a residual block of the UNet."""
    for layer in ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"):
        yield from both(f"{block}.{layer}")
    if skip:
        yield from both(f"{block}.skip_connection")


def unet_transformer(block: str) -> Iterator[str]:
    """Yield the names of a spatial transformer."""
    yield from both(f"{block}.norm")
    yield from both(f"{block}.proj_in")
    yield from both(f"{block}.proj_out")
    inner = f"{block}.transformer_blocks.0"
    for attention in ("attn1", "attn2"):
        yield from (f"{inner}.{attention}.{matrix}.weight" for matrix in ("to_q", "to_k", "to_v"))
        yield from both(f"{inner}.{attention}.to_out.0")
    for name in ("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"):
        yield from both(f"{inner}.{name}")


def original_unet_names() -> Iterator[str]:
    """Count as the original does: levels of two blocks, a downsampler after all but the last, then all mirrored."""
    widths = (1, 2, 4, 4)
    yield from both("time_embed.0")
    yield from both("time_embed.2")
    yield from both("input_blocks.0.0")
    width, skips, number = 1, [1], 1
    for level, wanted in enumerate(widths):
        for _ in range(2):
            yield from unet_resnet(f"input_blocks.{number}.0", skip=width != wanted)
            if level < 3:
                yield from unet_transformer(f"input_blocks.{number}.1")
            width, number = wanted, number + 1
            skips.append(width)
        if level < 3:
            yield from both(f"input_blocks.{number}.0.op")
            number += 1
            skips.append(width)
    yield from unet_resnet("middle_block.0", skip=False)
    yield from unet_transformer("middle_block.1")
    yield from unet_resnet("middle_block.2", skip=False)
    for number in range(12):
        level = 3 - number // 3
        yield from unet_resnet(f"output_blocks.{number}.0", skip=width + skips.pop() != widths[level])
        width, place = widths[level], 1
        if level < 3:
            yield from unet_transformer(f"output_blocks.{number}.1")
            place = 2
        if level and number % 3 == 2:
            yield from both(f"output_blocks.{number}.{place}.conv")
    yield from both("out.0")
    yield from both("out.2")


def vae_resnet(block: str, *, skip: bool) -> Iterator[str]:
    for layer in ("norm1", "conv1", "norm2", "conv2", *(["nin_shortcut"] if skip else [])):
        yield from both(f"{block}.{layer}")


def original_vae_names() -> Iterator[str]:
    """Count as the original does: encoder and decoder, with the attention between."""
    widths = (1, 2, 4, 4)
    for half, num_blocks, levels in (("encoder", 2, range(4)), ("decoder", 3, range(3, -1, -1))):
        yield from both(f"{half}.conv_in")
        width = 1 if half == "encoder" else 4
        way = "down" if half == "encoder" else "up"
        for level in levels:
            for block in range(num_blocks):
                yield from vae_resnet(f"{half}.{way}.{level}.block.{block}", skip=width != widths[level])
                width = widths[level]
            if level != levels[-1]:
                yield from both(f"{half}.{way}.{level}.{way}sample.conv")
        yield from vae_resnet(f"{half}.mid.block_1", skip=False)
        for name in ("norm", "q", "k", "v", "proj_out"):
            yield from both(f"{half}.mid.attn_1.{name}")
        yield from vae_resnet(f"{half}.mid.block_2", skip=False)
        yield from both(f"{half}.norm_out")
        yield from both(f"{half}.conv_out")
    yield from both("quant_conv")
    yield from both("post_quant_conv")


def original_text_names(num_layers: int) -> Iterator[str]:
    """Yield the names of a CLIP text encoder of so many layers."""
    yield "embeddings.token_embedding.weight"
    yield "embeddings.position_embedding.weight"
    yield "embeddings.position_ids"
    yield from both("final_layer_norm")
    for layer in range(num_layers):
        for name in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"):
            yield from both(f"encoder.layers.{layer}.{name}")
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from both(f"encoder.layers.{layer}.self_attn.{name}")
