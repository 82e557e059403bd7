"""What both quality benchmarks share: the starter's judge with its validity printed first, and pictures to judge."""

import argparse
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth.config.generation import GenerationConfig
from dreambooth.models.base import Base, starter_folder
from dreambooth.pictures.generation import generate_images
from dreambooth.scoring.judge import Judge, load_judge
from dreambooth.starter.judging import validity

NUM_STEPS = 24


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every judged benchmark takes."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write the figures there too.")
    parser.add_argument("--validity_scenes", type=int, default=2000, help="Held-out scenes to measure the judge on.")


def judge_with_validity(vae: Any, num_scenes: int) -> tuple[Judge, dict[str, Any]]:
    """Return the judge, and how far it is right on held-out renders as painted and as the VAE gives them back.

    Prints the figures: nothing that the judge says counts without them.
    """
    judge = load_judge(starter_folder())
    figures: dict[str, Any] = {}
    print("Judge on held-out renders: share right, retrieval among 20 of the class, AUC against the plain class")
    for name, through in (("painted", None), ("through the VAE", vae)):
        found = validity(judge, through, seed=0, num_scenes=num_scenes)
        figures[name] = {**found.attributes, "retrieval": found.retrieval, "auc": found.auc, "holds": found.holds}
        shares = "  ".join(f"{attribute} {share:.3f}" for attribute, share in found.attributes.items())
        verdict = "holds" if found.holds else "DOES NOT HOLD (bounds: 0.99 each, 0.90, 0.95)"
        print(f"  {name:16} {shares}  retrieval {found.retrieval:.3f}  AUC {found.auc:.3f}  {verdict}")
    return judge, figures


def pictures_for(base: Base, prompt: str, count: int, seed: int, guidance_scale: float) -> list[Image.Image]:
    """Return `count` pictures of a prompt by 24 steps of DDIM, seeds `seed`, `seed` + 1, ..."""
    side_px = base.card.native_px
    config = GenerationConfig(
        prompt=prompt,
        num_images_per_prompt=count,
        num_inference_steps=NUM_STEPS,
        guidance_scale=guidance_scale,
        height=side_px,
        width=side_px,
        seed=seed,
    )
    return [picture.image for picture in generate_images(base, config)]


def pictures_of(base: Base, prompts: list[str], seeds: list[int], guidance_scale: float) -> list[Image.Image]:
    """Return a picture of each prompt from its seed, as `pictures_for` makes them, but all of them in one batch."""
    import torch
    from diffusers import DDIMScheduler

    from dreambooth import rng

    device, side = next(base.unet.parameters()).device, base.unet.config.sample_size
    scheduler = DDIMScheduler.from_config(base.noise_scheduler_config, clip_sample=False)
    scheduler.set_timesteps(NUM_STEPS)
    texts = [""] + sorted(set(prompts))
    ids = base.tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    noise = [torch.randn((4, side, side), generator=rng.generator(seed, "generation")) for seed in seeds]
    with torch.no_grad():
        states = dict(zip(texts, base.text_encoder(ids.to(device))[0], strict=True))
        shown = torch.stack([states[""]] * len(prompts) + [states[prompt] for prompt in prompts])
        latents = torch.stack(noise).to(device)
        for t in scheduler.timesteps:
            avoid, show = base.unet(torch.cat([latents, latents]), t, shown).sample.chunk(2)
            latents = scheduler.step(avoid + guidance_scale * (show - avoid), t, latents).prev_sample
        values = base.vae.decode(latents / base.vae.config.scaling_factor).sample.cpu()
    levels = ((values / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return [Image.fromarray(one.numpy()) for one in levels]


def contact_sheet(images: list[Image.Image], columns: int, path: Path, *, zoom: int = 1) -> None:
    """Write the images side by side, row after row."""
    width, height = images[0].width * zoom, images[0].height * zoom
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + 2), rows * (height + 2)), "white")
    for number, image in enumerate(images):
        place = ((number % columns) * (width + 2), (number // columns) * (height + 2))
        sheet.paste(image.resize((width, height)), place)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
