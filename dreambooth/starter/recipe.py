"""Sizes and lengths of a starter's build."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """Sizes and lengths of the build; the defaults are the shipped starter's."""

    size_px: int = 64
    device: str = "cpu"
    world: Literal["plain", "rich"] = "plain"
    # Whether stages go by steps alone, so that a build that was interrupted ends in the same weights.
    is_exact: bool = False
    save_every: int = 500
    # Beside the squared error: absolute error, and that of neighbours' differences, which keeps edges.
    vae_absolute: float = 0.0
    vae_edges: float = 0.0
    vae_widths: tuple[int, ...] = (16, 32, 64, 64)
    unet_widths: tuple[int, ...] = (64, 80, 88, 88)
    norm_groups: int = 8
    text_width: int = 96
    text_layers: int = 3
    vae_steps: int = 40_000
    vae_batch: int = 8
    vae_rate: float = 1.5e-3
    # On how many scenes that it never saw the VAE's latents are scaled.
    vae_held_out: int = 256
    reading_steps: int = 600
    reading_batch: int = 128
    reading_rate: float = 1e-3
    unet_steps: int = 40_000
    unet_batch: int = 32
    unet_rate: float = 1e-3
    num_latents: int = 40_000
    caption_dropout: float = 0.1
    judge_steps: int = 8_000
    # Whether VAE and UNet begin as the shipped starter's, where their shapes agree.
    starts_from_shipped: bool = False


# The 128 px starter. Its picture shows the same share of a thing to each latent as at 64 px, sharper by half.
RECIPES = {
    64: Recipe(),
    128: Recipe(
        size_px=128,
        world="rich",
        is_exact=True,
        save_every=200,
        vae_absolute=0.1,
        vae_edges=0.1,
        vae_steps=16_000,
        vae_rate=1e-3,
        reading_steps=1_500,
        unet_steps=60_000,
        num_latents=64_000,
        judge_steps=12_000,
        starts_from_shipped=True,
    ),
}


def recipe_for(size_px: int, device: str) -> Recipe:
    """Return the recipe for a size; on a GPU stages end by time instead of steps, with larger batches, in bfloat16."""
    recipe = RECIPES[size_px]
    if device == "cpu":
        return recipe
    return replace(
        recipe, device=device, is_exact=False, save_every=1000, vae_steps=10**6, vae_batch=32, unet_steps=10**6,
        unet_batch=256, judge_steps=10**6,
    )  # fmt: skip
