"""What the well-known SDXL script does wrong at batch 2: words, sizes and weights of one half given to the other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dreambooth import rng
from dreambooth.commands.cli import main
from dreambooth.data.dataset import CLASS, INSTANCE, pixels
from dreambooth.models.base import load_base
from dreambooth.models.sdxl import StableDiffusionXL
from dreambooth.training import step as steps
from tests.harness.tiny import TINY_PX, tiny_sdxl_base

GAMMA, PRIOR_WEIGHT, SEED = 1.0, 0.5, 5
# By upright (height, width), which no two pictures share: the colour and the words of each.
SUBJECT = {(48, 48): ("red", "a red zwx dog"), (40, 64): ("blue", "a zwx dog at sea"), (96, 32): ("lime", "zwx dog")}
CLASS_SIZES = {(56, 56): "grey", (32, 80): "gold"}


def write(folder: Path, size: tuple[int, int], colour: str, words: str = "") -> None:
    """Write a picture of one colour, of which every crop is the same."""
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (size[1], size[0]), colour).save(folder / f"{colour}.png")
    if words:
        (folder / f"{colour}.txt").write_text(words)


def test_words_sizes_and_weights_are_those_of_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DDPMScheduler

    folder = tiny_sdxl_base(tmp_path / "base")
    for size, (colour, words) in SUBJECT.items():
        write(tmp_path / "photos", size, colour, words)
    for size, colour in CLASS_SIZES.items():
        write(tmp_path / "class", size, colour)
    found: list[tuple[Any, Any, Any]] = []
    predictions: list[torch.Tensor] = []
    step_loss, predict = steps.step_loss, StableDiffusionXL.predict

    def noting_loss(family: Any, unet: Any, condition: Any, batch: Any, *settings: Any) -> Any:
        losses = step_loss(family, unet, condition, batch, *settings)
        found.append((condition, batch, losses.detached()))
        return losses

    def noting_prediction(self: Any, *arguments: Any) -> torch.Tensor:
        prediction = predict(self, *arguments)
        predictions.append(prediction.detach())
        return prediction

    monkeypatch.setattr(steps, "step_loss", noting_loss)
    monkeypatch.setattr(StableDiffusionXL, "predict", noting_prediction)
    asked = [
        "train", "--pretrained_model_name_or_path", folder, "--method", "lora", "--instance_data_dir",
        tmp_path / "photos", "--instance_prompt", "zwx dog", "--read_prompts_from_txts", "--with_prior_preservation",
        "--class_prompt", "photo of dog", "--class_data_dir", tmp_path / "class", "--num_class_images", "2",
        "--resolution", TINY_PX, "--train_batch_size", "2", "--snr_gamma", GAMMA, "--prior_loss_weight", PRIOR_WEIGHT,
        "--max_train_steps", "3", "--num_crop_variants", "1", "--gauge_interval", "0", "--seed", SEED,
        "--output_dir", tmp_path / "run",
    ]  # fmt: skip
    assert main([*map(str, asked)]) == 0

    base = load_base(str(folder))
    alpha_bar = DDPMScheduler.from_config(base.noise_scheduler_config).alphas_cumprod
    assert len(found) == len(predictions) == 3
    for step, ((condition, batch, losses), prediction) in enumerate(zip(found, predictions, strict=True)):
        assert batch.num_instance == 2
        originals = [tuple(map(int, ids[:2])) for ids in condition.size_ids]
        assert set(originals[:2]) <= set(SUBJECT)
        assert set(originals[2:]) <= set(CLASS_SIZES)
        wanted = [SUBJECT[size] for size in originals[:2]] + [
            (CLASS_SIZES[one], "photo of dog") for one in originals[2:]
        ]
        # (a) The UNet is told the words of each picture, (b) and its own size.
        inputs = base.family.text_inputs(base, [words for _, words in wanted], length=None)
        with torch.no_grad():
            own = base.family.encode_text(base, inputs)
        torch.testing.assert_close(condition.states, own.states)
        torch.testing.assert_close(condition.pooled, own.pooled)
        for place, (colour, _) in enumerate(wanted):
            picture = pixels(Image.new("RGB", (TINY_PX, TINY_PX), colour))[None]
            posterior = base.family.encode(base.vae, picture)
            position = (2 * step + place % 2, INSTANCE if place < 2 else CLASS)
            drawn = torch.randn(posterior.mean[0].shape, generator=rng.generator(SEED, "posterior", *position))
            latents = (posterior.mean[0] + posterior.std[0] * drawn) * base.vae.config.scaling_factor
            torch.testing.assert_close(batch.latents[place], latents, rtol=1e-4, atol=1e-4)
        # (c) Each picture's error has the weight of its own noise level, in both halves.
        level = alpha_bar[batch.timesteps]
        snr = level / (1 - level)
        errors = (prediction - batch.noise).square().flatten(1).mean(1) * snr.clamp(max=GAMMA) / snr
        torch.testing.assert_close(losses.instance, errors[:2].mean(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(losses.prior, errors[2:].mean(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(losses.total, losses.instance + PRIOR_WEIGHT * losses.prior)
