"""Pre-training of the starter: first the VAE, then UNet and text encoder together, on the painted world.

Every step is a function of (seed, step): interrupted, the build goes on from the last weights it kept, with a fresh
optimizer, and rates stay constant while a moving average of the weights is what ships.
"""

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth import rng
from dreambooth.models.sd15 import SD15_SCHEDULER
from dreambooth.starter import scenes, tokens
from dreambooth.training import objective
from dreambooth.workspace import new_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Report = Callable[[str], None]
VAE_SHARE = 0.45


@dataclass(frozen=True)
class Recipe:
    """Sizes and lengths of the build; the defaults are the shipped starter's."""

    size_px: int = 64
    vae_widths: tuple[int, ...] = (16, 32, 64, 64)
    unet_widths: tuple[int, ...] = (32, 64, 96, 96)
    norm_groups: int = 8
    text_width: int = 96
    text_layers: int = 3
    vae_steps: int = 20_000
    vae_batch: int = 8
    vae_rate: float = 1.5e-3
    unet_steps: int = 30_000
    unet_batch: int = 16
    unet_rate: float = 8e-4
    num_latents: int = 40_000
    caption_dropout: float = 0.1
    save_every: int = 500
    ema_decay: float = 0.999


def build_starter(
    seed: int,
    minutes: float,
    continue_from_weights: bool,
    out_dir: Path,
    on_progress: Report,
    *,
    recipe: Recipe = Recipe(),  # noqa: B008 - frozen, so one shared default is safe
    work_dir: Path = Path("outputs/starter-build"),
) -> None:
    """Train VAE, then UNet and text encoder, for at most `minutes`, and write the model to `out_dir`.

    The VAE has at most VAE_SHARE of the time, since it has to stand still before the UNet learns its latents. What is
    reached is kept in `work_dir` every few hundred steps, and the same call goes on from there. With
    `continue_from_weights` the first start takes the weights of `out_dir` instead of random ones.
    """
    started_s = time.monotonic()
    parts = _parts(recipe, seed, work_dir, out_dir if continue_from_weights else None)
    _train_vae(parts, recipe, seed, work_dir, started_s + 60 * VAE_SHARE * minutes, on_progress)
    _train_unet(parts, recipe, seed, work_dir, started_s + 60 * minutes, on_progress)
    _write(parts, recipe, out_dir)


@dataclass
class Parts:
    """The models in the making."""

    vae: Any
    unet: Any
    text_encoder: Any
    tokenizer: Any


def _parts(recipe: Recipe, seed: int, work_dir: Path, weights: Path | None) -> Parts:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    vocabulary_size = tokens.write_tokenizer(work_dir / "tokenizer", world_words())
    with torch.random.fork_rng():
        torch.manual_seed(rng.derived_seed(seed, "starter", 0))
        vae = AutoencoderKL(
            block_out_channels=recipe.vae_widths,
            layers_per_block=2,
            norm_num_groups=recipe.norm_groups,
            sample_size=recipe.size_px,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
        )
        unet = UNet2DConditionModel(
            sample_size=recipe.size_px // 8,
            block_out_channels=recipe.unet_widths,
            cross_attention_dim=recipe.text_width,
            attention_head_dim=8,
            norm_num_groups=recipe.norm_groups,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary_size,
                hidden_size=recipe.text_width,
                intermediate_size=4 * recipe.text_width,
                num_hidden_layers=recipe.text_layers,
                num_attention_heads=4,
                projection_dim=recipe.text_width,
                bos_token_id=vocabulary_size - 2,
                eos_token_id=vocabulary_size - 1,
                pad_token_id=vocabulary_size - 1,
            )
        )
    tokenizer = CLIPTokenizer.from_pretrained(work_dir / "tokenizer")
    parts = Parts(vae, unet, text_encoder, tokenizer)
    if weights is not None:
        from dreambooth.models.base import load_base

        base = load_base(str(weights))
        parts = Parts(base.vae, base.unet, base.text_encoder, base.tokenizer)
    return parts


def world_words() -> list[str]:
    """Return every word that a caption of the world may have."""
    everything = [place for place, _ in scenes.CONTEXTS.values()]
    everything += [*scenes.CLASSES, *scenes.COLOURS, *scenes.PATTERNS, "a photo of wearing hat"]
    return sorted({word for text in everything for word in text.split()})


# VAE -----------------------------------------------------------------------------------------------------------------


def _train_vae(parts: Parts, recipe: Recipe, seed: int, work_dir: Path, deadline_s: float, on_progress: Report) -> bool:
    """Squared error with a whisper of KL, which keeps the latents' spread near the mean's noise floor."""
    import torch

    def loss(step: int) -> "Tensor":
        pictures = pictures_of(seed, range(step * recipe.vae_batch, (step + 1) * recipe.vae_batch), recipe.size_px)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = parts.vae.encode(pictures).latent_dist
            draw = torch.randn(posterior.mean.shape, generator=rng.generator(seed, "starter", 1, step))
            decoded = parts.vae.decode(posterior.mean + posterior.std * draw).sample
        value: Tensor = (decoded.float() - pictures).square().mean() + 1e-6 * posterior.kl().float().mean()
        return value

    steps, rate = recipe.vae_steps, recipe.vae_rate
    done = _train([parts.vae], loss, "vae", steps, rate, recipe, work_dir, deadline_s, on_progress)
    pictures = pictures_of(seed, range(10**9, 10**9 + 256), recipe.size_px)
    with torch.no_grad():
        latents = parts.vae.encode(pictures).latent_dist.mean
        error = (parts.vae.decode(latents).sample.clamp(-1, 1) - pictures).square().mean()
    parts.vae.register_to_config(scaling_factor=round(float(1 / latents.std()), 5))
    on_progress(f"vae: {float(10 * torch.log10(4 / error)):.2f} dB on 256 held-out scenes")
    return done


def pictures_of(seed: int, numbers: range, size_px: int) -> "Tensor":
    """Return the numbered scenes of the world as (batch, 3, size, size) in [-1, 1]."""
    return _stacked([_numbered(seed, number, size_px)[0] for number in numbers])


def _numbered(seed: int, number: int, size_px: int) -> tuple[Any, str]:
    painter = random.Random(rng.derived_seed(seed, "starter", 2, number))
    scene = scenes.random_scene(painter)
    picture = scenes.render(scene, size_px, painter)
    return picture, scenes.training_caption(scene, painter)


def _stacked(pictures: list[Any]) -> "Tensor":
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 127.5 - 1


# UNet and text encoder -----------------------------------------------------------------------------------------------


def _train_unet(
    parts: Parts, recipe: Recipe, seed: int, work_dir: Path, deadline_s: float, on_progress: Report
) -> bool:
    """The same objective as DreamBooth training, on latents of painted scenes."""
    import torch
    from diffusers import DDPMScheduler

    latents, captions = _encoded_world(parts, recipe, seed, work_dir, on_progress)
    ids = {caption: _token_ids(parts.tokenizer, caption) for caption in {*captions, ""}}
    alpha_bar = DDPMScheduler.from_config(SD15_SCHEDULER).alphas_cumprod

    def loss(step: int) -> "Tensor":
        draws = rng.generator(seed, "starter", 3, step)
        picked = torch.randint(len(latents), (recipe.unet_batch,), generator=draws)
        dropped = torch.rand(recipe.unet_batch, generator=draws) < recipe.caption_dropout
        timesteps = torch.randint(len(alpha_bar), (recipe.unet_batch,), generator=draws)
        level = alpha_bar[timesteps]
        clean = latents[picked].float() * parts.vae.config.scaling_factor
        noise = torch.randn(clean.shape, generator=draws)
        shown = zip(picked.tolist(), dropped.tolist(), strict=True)
        words = ["" if is_dropped else captions[number] for number, is_dropped in shown]
        states = parts.text_encoder(torch.stack([ids[text] for text in words]))[0]
        prediction = parts.unet(objective.noised(clean, noise, level), timesteps, states).sample
        wanted = objective.target(clean, noise, level, "epsilon")
        return objective.prior_preservation(prediction, wanted, recipe.unet_batch, 0.0).total

    # On 8x8 latents float32 in this layout goes at twice the pace of bfloat16 autocast (28 and 15 pictures/s a core).
    parts.unet.to(memory_format=torch.channels_last)
    modules = [parts.unet, parts.text_encoder]
    return _train(modules, loss, "unet", recipe.unet_steps, recipe.unet_rate, recipe, work_dir, deadline_s, on_progress)


def _token_ids(tokenizer: Any, caption: str) -> "Tensor":
    encoded = tokenizer(caption, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    ids: Tensor = encoded.input_ids[0]
    return ids


def _encoded_world(
    parts: Parts, recipe: Recipe, seed: int, work_dir: Path, on_progress: Report
) -> "tuple[Tensor, list[str]]":
    """Return the latents of the first scenes and their captions, from the cache when they are there."""
    import torch
    from safetensors.torch import load_file, save_file

    from dreambooth.models.base import weights_fingerprint

    folder = work_dir / f"latents-{weights_fingerprint(parts.vae)}"
    if not folder.exists():
        chunks, captions = [], []
        for first in range(0, recipe.num_latents, 64):
            painted = [_numbered(seed, number, recipe.size_px) for number in range(first, first + 64)]
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                chunks.append(parts.vae.encode(_stacked([picture for picture, _ in painted])).latent_dist.mean.half())
            captions += [caption for _, caption in painted]
            if first % 6400 == 0:
                on_progress(f"latents: {first} of {recipe.num_latents}")
        with new_folder(folder) as temporary:
            save_file({"latents": torch.cat(chunks).contiguous()}, temporary / "latents.safetensors")
            (temporary / "captions.json").write_text(json.dumps(captions), "utf-8")
    latents = load_file(folder / "latents.safetensors")["latents"]
    return latents, json.loads((folder / "captions.json").read_text("utf-8"))


# The loop both share -------------------------------------------------------------------------------------------------


def _train(
    modules: list[Any],
    loss_of: "Callable[[int], Tensor]",
    name: str,
    num_steps: int,
    rate: float,
    recipe: Recipe,
    work_dir: Path,
    deadline_s: float,
    on_progress: Report,
) -> bool:
    """Step from where the kept weights end to `num_steps` or the deadline; leaves the moving average in the modules."""
    import torch
    from diffusers.training_utils import EMAModel

    parameters = [parameter for module in modules for parameter in module.parameters()]
    ema = EMAModel(parameters, decay=recipe.ema_decay)
    first = _load_kept(work_dir / name, modules, ema)
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-3)
    started_s, recent = time.monotonic(), 0.0
    step = first
    while step < num_steps and time.monotonic() < deadline_s:
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step - first + 1) / 200, 1.0)
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.step(parameters)
        step += 1
        recent = loss.item() if step == first + 1 else 0.99 * recent + 0.01 * loss.item()
        if step % 100 == 0:
            left_min = (time.monotonic() - started_s) / (step - first) * (num_steps - step) / 60
            on_progress(f"{name}: step {step} of {num_steps}, loss {recent:.5f}, {left_min:.0f} min left")
        if step % recipe.save_every == 0:
            _keep(work_dir / name, modules, ema, step)
    _keep(work_dir / name, modules, ema, step)
    ema.copy_to(parameters)
    return step >= num_steps


def _named(modules: list[Any]) -> "Iterator[tuple[str, torch.nn.Parameter]]":
    for number, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            yield f"{number}.{name}", parameter


def _keep(folder: Path, modules: list[Any], ema: Any, step: int) -> None:
    from safetensors.torch import save_file

    named = list(_named(modules))
    weights = {f"weights.{name}": parameter.detach().contiguous() for name, parameter in named}
    weights |= {f"ema.{name}": shadow.contiguous() for (name, _), shadow in zip(named, ema.shadow_params, strict=True)}
    target = folder / f"{step:07d}"
    if target.exists():
        return
    with new_folder(target) as temporary:
        save_file(weights, temporary / "weights.safetensors")
    for older in sorted(folder.glob("[0-9]*"))[:-2]:
        shutil.rmtree(older)


def _load_kept(folder: Path, modules: list[Any], ema: Any) -> int:
    """Put the newest kept weights into the modules and the average; returns their step, 0 when there are none."""
    import torch
    from safetensors.torch import load_file

    kept = sorted(folder.glob("[0-9]*"))
    if not kept:
        return 0
    weights = load_file(kept[-1] / "weights.safetensors")
    with torch.no_grad():
        for (name, parameter), shadow in zip(_named(modules), ema.shadow_params, strict=True):
            parameter.copy_(weights[f"weights.{name}"])
            shadow.copy_(weights[f"ema.{name}"])
    ema.optimization_step = int(kept[-1].name)
    return int(kept[-1].name)


def _write(parts: Parts, recipe: Recipe, out_dir: Path) -> None:
    """Write the model as fp16 into `out_dir`, beside the card and the texts that are there already."""
    import torch

    from dreambooth.models.base import BaseCard, read_card, write_model

    card = read_card(str(out_dir)) if (out_dir / "card.json").exists() else BaseCard(native_px=recipe.size_px)
    with new_folder(out_dir.with_name(f"{out_dir.name}.next")) as temporary:
        write_model(
            temporary,
            unet=parts.unet,
            text_encoder=parts.text_encoder,
            vae=parts.vae,
            tokenizer=parts.tokenizer,
            scheduler_config=SD15_SCHEDULER,
            dtype=torch.float16,
            card=card,
        )
    for kept in out_dir.glob("*.md"):
        shutil.copy(kept, out_dir.with_name(f"{out_dir.name}.next") / kept.name)
    shutil.rmtree(out_dir, ignore_errors=True)
    out_dir.with_name(f"{out_dir.name}.next").rename(out_dir)
