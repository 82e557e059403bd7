"""Pre-training of the starter on the painted world: VAE, text encoder, UNet with text encoder, and judge."""

import json
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth import rng
from dreambooth.device.precision import autocast
from dreambooth.durable import new_folder
from dreambooth.models.sd import SD15_SCHEDULER
from dreambooth.scoring.judge import Judge, load_judge, write_judge
from dreambooth.starter import tokens
from dreambooth.starter.judging import new_judge, train_judge
from dreambooth.starter.loop import Report, Stage, logged, run_stage
from dreambooth.starter.recipe import Recipe
from dreambooth.starter.vae import train_vae
from dreambooth.starter.worlds import WORLDS
from dreambooth.training import objective

if TYPE_CHECKING:
    from torch import Tensor

# When each stage ends, as shares of the build's time. The VAE is finished before the UNet learns its latents.
VAE_END, READING_END, UNET_END = 0.30, 0.33, 0.88
# Longest caption of the world, including its two marks; four steps of five pad to this, the fifth to CLIP's 77, as
# every tool does. Attention over 77 tokens would double the cost of each step.
SHORT_TOKENS = 32
LATENTS_PER_FOLDER = 3200


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
    """Train every stage for its share of `minutes`, and write model and judge to `out_dir`.

    Progress is saved in `work_dir` every few hundred steps, and the same call continues from there. With
    `continue_from_weights` the first start uses the weights of `out_dir` instead of random ones.
    """
    started_s = time.monotonic()
    on_progress = logged(on_progress, work_dir / "log.txt")

    def end_of(share: float) -> float:
        return started_s + 60 * minutes * share

    parts = _parts(recipe, seed, work_dir, out_dir if continue_from_weights else None)
    for part in (parts.vae, parts.unet, parts.text_encoder):
        part.to(recipe.device)
    train_vae(parts.vae, recipe, seed, work_dir, end_of(VAE_END), on_progress)
    if not continue_from_weights:
        _train_reading(parts, recipe, seed, work_dir, end_of(READING_END), on_progress)
    _train_unet(parts, recipe, seed, work_dir, end_of(UNET_END), on_progress)
    judge = load_judge(out_dir) if continue_from_weights else new_judge(recipe, seed)
    train_judge(judge, parts.vae, recipe, seed, work_dir, end_of(1.0), on_progress)
    for part in (parts.vae, parts.unet, parts.text_encoder, judge.attributes, judge.instance):
        part.to("cpu")
    _write(parts, judge, recipe, out_dir)


@dataclass
class Parts:
    """The models being trained."""

    vae: Any
    unet: Any
    text_encoder: Any
    tokenizer: Any


def _parts(recipe: Recipe, seed: int, work_dir: Path, weights: Path | None) -> Parts:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    vocabulary_size = tokens.write_tokenizer(work_dir / "tokenizer", WORLDS[recipe.world].words())
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
    if recipe.starts_from_shipped:
        _take_shipped(parts)
    if weights is not None:
        from dreambooth.models.base import load_base

        base = load_base(str(weights))
        parts = Parts(base.vae, base.unet, base.text_encoder, base.tokenizer)
    return parts


def _take_shipped(parts: Parts) -> None:
    """Load the shipped starter's weights into VAE and UNet where their shapes match."""
    from dreambooth.models.base import STARTER, load_base

    shipped = load_base(STARTER)
    for part, known in ((parts.vae, shipped.vae), (parts.unet, shipped.unet)):
        fitting = known.state_dict()
        own = part.state_dict()
        part.load_state_dict({name: value if value.shape != fitting[name].shape else fitting[name]
                              for name, value in own.items()})  # fmt: skip


# Text encoder ---------------------------------------------------------------------------------------------------------


def _train_reading(
    parts: Parts, recipe: Recipe, seed: int, work_dir: Path, deadline_s: float, on_progress: Report
) -> bool:
    """Train the text encoder to read captions, as CLIP's was trained before any UNet saw it.

    Every token from the caption's end on must predict each attribute, so that attention finds it wherever it looks.
    """
    import torch

    world = WORLDS[recipe.world]
    choices = world.choices
    number_of = {name: {value: place + 1 for place, value in enumerate(values)} for name, values in choices.items()}
    with torch.random.fork_rng():
        torch.manual_seed(rng.derived_seed(seed, "starter", 8))
        heads = torch.nn.ModuleDict(
            {name: torch.nn.Linear(recipe.text_width, len(values) + 1) for name, values in choices.items()}
        ).to(recipe.device)
    end = parts.tokenizer.eos_token_id

    def loss(step: int) -> "Tensor":
        painter = random.Random(rng.derived_seed(seed, "starter", 9, step))
        drawn = [world.captioned(painter) for _ in range(recipe.reading_batch)]
        captions = [caption for caption, _ in drawn]
        ids = torch.stack([_token_ids(parts.tokenizer, caption) for caption in captions])
        ids = ids[:, : _num_tokens(step)].to(recipe.device)
        states = parts.text_encoder(ids)[0]
        attributes = [told for _, told in drawn]
        total = torch.zeros((), device=recipe.device)
        for name, head in heads.items():
            wanted = torch.tensor([number_of[name].get(words.get(name, ""), 0) for words in attributes]).to(ids)
            wanted = torch.where(ids == end, wanted[:, None], -100)
            total = total + torch.nn.functional.cross_entropy(head(states).transpose(1, 2), wanted)
        return total

    modules = [parts.text_encoder, heads]
    stage = Stage("reading", modules, loss, recipe.reading_steps, recipe.reading_rate, is_exact=recipe.is_exact)
    return run_stage(stage, work_dir, deadline_s, on_progress)


def _num_tokens(step: int) -> int:
    return 77 if step % 5 == 4 else SHORT_TOKENS


# UNet and text encoder -----------------------------------------------------------------------------------------------


def _train_unet(
    parts: Parts, recipe: Recipe, seed: int, work_dir: Path, deadline_s: float, on_progress: Report
) -> bool:
    """Train with the same objective as DreamBooth training, on latents of painted scenes."""
    import torch
    from diffusers import DDPMScheduler
    from diffusers.models.attention_processor import AttnProcessor

    latents, captions = _encoded_world(parts, recipe, seed, work_dir, on_progress)
    ids = {caption: _token_ids(parts.tokenizer, caption) for caption in {*captions, ""}}
    alpha_bar = DDPMScheduler.from_config(SD15_SCHEDULER).alphas_cumprod
    format_there = torch.float32 if recipe.device == "cpu" else torch.bfloat16

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
        told = torch.stack([ids[text] for text in words])[:, : _num_tokens(step)]
        clean, noise, level, timesteps, told = (one.to(recipe.device) for one in (clean, noise, level, timesteps, told))
        with autocast(recipe.device, format_there, cache=True):
            states = parts.text_encoder(told)[0]
            prediction = parts.unet(objective.noised(clean, noise, level), timesteps, states).sample.float()
        wanted = objective.target(clean, noise, level, "epsilon")
        return objective.prior_preservation(prediction, wanted, recipe.unet_batch, 0.0).total

    if recipe.device == "cpu":
        # Heads of few channels: plain products beat the fused kernel by a tenth here, and float32 bfloat16 by half.
        parts.unet.set_attn_processor(AttnProcessor())
    modules = [parts.unet, parts.text_encoder]
    stage = Stage("unet", modules, loss, recipe.unet_steps, recipe.unet_rate, recipe.save_every, recipe.is_exact)
    return run_stage(stage, work_dir, deadline_s, on_progress)


def _token_ids(tokenizer: Any, caption: str) -> "Tensor":
    encoded = tokenizer(caption, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    ids: Tensor = encoded.input_ids[0]
    return ids


def _encoded_world(
    parts: Parts, recipe: Recipe, seed: int, work_dir: Path, on_progress: Report
) -> "tuple[Tensor, list[str]]":
    """Return the latents of the first scenes and their captions; parts that exist are not computed again."""
    import torch
    from safetensors.torch import load_file

    from dreambooth.models.fingerprint import weights_fingerprint

    folder = work_dir / f"latents-{weights_fingerprint(parts.vae)}"
    latents, captions = [], []
    for first in range(0, recipe.num_latents, LATENTS_PER_FOLDER):
        kept = folder / f"{first:07d}"
        if not kept.exists():
            on_progress("latents", 100 * first // recipe.num_latents, "")
            _encode(parts, recipe, seed, range(first, min(first + LATENTS_PER_FOLDER, recipe.num_latents)), kept)
        latents.append(load_file(kept / "latents.safetensors")["latents"])
        captions += json.loads((kept / "captions.json").read_text("utf-8"))
    return torch.cat(latents), captions


def _encode(parts: Parts, recipe: Recipe, seed: int, numbers: range, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    world, chunks = WORLDS[recipe.world], []
    for first in range(0, len(numbers), 64):
        pictures, _ = world.pictures(seed, numbers[first : first + 64], recipe.size_px, recipe.device)
        with torch.no_grad(), autocast(recipe.device, torch.bfloat16, cache=True):
            chunks.append(parts.vae.encode(pictures).latent_dist.mean.half().cpu())
    with new_folder(folder) as temporary:
        save_file({"latents": torch.cat(chunks).contiguous()}, temporary / "latents.safetensors")
        (temporary / "captions.json").write_text(json.dumps(world.captions(seed, numbers)), "utf-8")


def _write(parts: Parts, judge: Judge, recipe: Recipe, out_dir: Path) -> None:
    """Write the model as fp16 into `out_dir`, beside the existing card and texts."""
    import torch

    from dreambooth.models.base import Base, read_card
    from dreambooth.models.card import BaseCard
    from dreambooth.models.saving import write_model

    card = read_card(str(out_dir)) if (out_dir / "card.json").exists() else BaseCard(native_px=recipe.size_px)
    with new_folder(out_dir.with_name(f"{out_dir.name}.next")) as temporary:
        base = Base("starter", parts.unet, parts.text_encoder, parts.vae, parts.tokenizer, SD15_SCHEDULER, card)
        write_model(temporary, base, torch.float16)
        write_judge(judge, temporary)
    for kept in out_dir.glob("*.md"):
        shutil.copy(kept, out_dir.with_name(f"{out_dir.name}.next") / kept.name)
    shutil.rmtree(out_dir, ignore_errors=True)
    out_dir.with_name(f"{out_dir.name}.next").rename(out_dir)
