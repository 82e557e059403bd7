"""The starter's VAE: its training, and its reconstruction of pictures and of their small features."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth import rng
from dreambooth.device.precision import autocast
from dreambooth.starter.loop import Report, Stage, run_stage
from dreambooth.starter.recipe import Recipe
from dreambooth.starter.rendering import IN_DETAIL, IN_EMBLEM, IN_PATTERN
from dreambooth.starter.worlds import WORLDS, RichWorld, stacked

if TYPE_CHECKING:
    from torch import Tensor

HELD_OUT = 10**9
FEATURES = {"pattern": IN_PATTERN, "emblem": IN_EMBLEM, "detail": IN_DETAIL}


def train_vae(vae: Any, recipe: Recipe, seed: int, work_dir: Path, deadline_s: float, on_progress: Report) -> bool:
    """Train on the recipe's world with a little KL, which keeps the latents' spread near the mean's noise floor.

    Returns whether all steps were made; sets the scaling factor.
    """
    import torch

    world = WORLDS[recipe.world]
    if recipe.is_exact:
        vae.to(memory_format=torch.channels_last)

    def loss(step: int) -> "Tensor":
        numbers = range(step * recipe.vae_batch, (step + 1) * recipe.vae_batch)
        pictures, weights = world.pictures(seed, numbers, recipe.size_px, recipe.device)
        with autocast(recipe.device, torch.float32 if recipe.is_exact else torch.bfloat16, cache=True):
            posterior = vae.encode(pictures).latent_dist
            draw = torch.randn(posterior.mean.shape, generator=rng.generator(seed, "starter", 1, step)).to(pictures)
            decoded = vae.decode(posterior.mean + posterior.std * draw).sample
        value = restoration_loss(decoded.float() - pictures, weights, recipe)
        return value + 1e-6 * posterior.kl().float().mean()  # type: ignore[no-any-return]

    def check() -> str:
        photos = " ".join(f"{value:.2f}" for value in sample_restoration(vae, recipe.size_px))
        return f"sample photos {photos} dB"

    stage = Stage(
        "vae", [vae], loss, recipe.vae_steps, recipe.vae_rate, recipe.save_every, recipe.is_exact,
        check if recipe.is_exact else None,
    )  # fmt: skip
    is_complete = run_stage(stage, work_dir, deadline_s, on_progress)
    pictures, _ = world.pictures(seed, range(HELD_OUT, HELD_OUT + recipe.vae_held_out), recipe.size_px, recipe.device)
    with torch.no_grad():
        latents = torch.cat([vae.encode(some).latent_dist.mean for some in pictures.split(32)])
    vae.register_to_config(scaling_factor=round(float(1 / latents.std()), 5))
    on_progress(
        "vae",
        100,
        f"{decibels(restored(vae, pictures), pictures).mean():.2f} dB on {recipe.vae_held_out} held-out scenes",
    )
    return is_complete


def restoration_loss(error: "Tensor", weights: "Tensor", recipe: Recipe) -> "Tensor":
    """Return the weighted squared error of the pixels, plus the recipe's shares of absolute and of edge error."""
    share = weights / weights.mean()
    value = (share * error.square()).mean()
    if recipe.vae_absolute:
        value = value + recipe.vae_absolute * (share * error.abs()).mean()
    if recipe.vae_edges:
        across = (share[..., 1:] * error.diff(dim=-1).abs()).mean()
        down = (share[..., 1:, :] * error.diff(dim=-2).abs()).mean()
        value = value + recipe.vae_edges * (across + down)
    return value


# What it gives back ---------------------------------------------------------------------------------------------------


def restored(vae: Any, pictures: "Tensor") -> "Tensor":
    """Return the VAE's reconstruction of the pictures, (batch, 3, size, size) in [-1, 1]."""
    import torch

    with torch.no_grad():
        some = [vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1) for part in pictures.split(32)]
    return torch.cat(some)


def decibels(found: "Tensor", pictures: "Tensor") -> "Tensor":
    """Return each picture's peak signal-to-noise ratio in dB, (batch,)."""
    return 10 * (4 / (found - pictures).square().mean((1, 2, 3))).log10()


def sample_restoration(vae: Any, size_px: int) -> list[float]:
    """Return how well the VAE reconstructs each bundled sample photo at this size, in dB."""
    from PIL import Image

    from dreambooth.data.samples import sample_folder

    opened = [Image.open(file).convert("RGB") for file in sorted(sample_folder().glob("*.png"))]
    pictures = stacked([image.resize((size_px, size_px), Image.Resampling.BOX) for image in opened]).to(vae.device)
    return [float(value) for value in decibels(restored(vae, pictures), pictures)]


@dataclasses.dataclass(frozen=True)
class FeatureRestoration:
    """The reconstruction of one kind of small feature.

    `colour_error` is the mean distance of its pixels in levels of 255; `contrast` how much of the mean difference
    between the feature and the surrounding pixels is left, 1 for all; `pictures` is how many showed one.
    """

    colour_error: float
    contrast: float
    pictures: int


def feature_restoration(vae: Any, seed: int, size_px: int, num_pictures: int = 128) -> dict[str, FeatureRestoration]:
    """Measure the reconstruction of patterns, emblems and small details such as eyes, on held-out scenes."""
    from dreambooth.starter import rendering

    rich = RichWorld()
    drawn = [rich.scene(seed, HELD_OUT + number)[:2] for number in range(num_pictures)]
    images, features = rendering.render(drawn, size_px)
    pictures = images.permute(0, 3, 1, 2) / 127.5 - 1
    found = restored(vae, pictures.to(vae.device)).cpu()
    return {name: _feature(pictures, found, features == kind) for name, kind in FEATURES.items()}


def _feature(pictures: "Tensor", found: "Tensor", mask: "Tensor") -> FeatureRestoration:
    import torch

    errors, contrasts = [], []
    near = torch.nn.functional.max_pool2d(mask[:, None].float(), 7, 1, 3)[:, 0] > 0
    for before, after, inside, ring in zip(pictures, found, mask, near & ~mask, strict=True):
        if inside.sum() < 4 or not ring.any():
            continue
        errors.append(127.5 * (after - before)[:, inside].abs().mean())
        wanted, kept = (one[:, inside].mean(1) - one[:, ring].mean(1) for one in (before, after))
        if wanted.norm() > 0.1:
            contrasts.append((kept @ wanted) / (wanted @ wanted))
    if not errors:
        return FeatureRestoration(float("nan"), float("nan"), 0)
    contrast = float(torch.stack(contrasts).mean()) if contrasts else float("nan")
    return FeatureRestoration(float(torch.stack(errors).mean()), contrast, len(errors))
