"""Generates images from a prompt with models in memory; each image records how to make it again.

Image i of a request with seed S starts from the noise of seed S + i, on its own CPU generator. So it is the same in any
batch size, and on any device up to rounding, and requesting one image with the seed in its metadata gives it again.
"""

import contextlib
import dataclasses
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth import rng
from dreambooth.config.generation import GenerationConfig
from dreambooth.device.capture import CapturedWork
from dreambooth.device.precision import autocast
from dreambooth.durable import new_file
from dreambooth.events import OnProgress
from dreambooth.models.family import Condition, PictureSize
from dreambooth.pictures.prompts import literal_notice
from dreambooth.pictures.samplers import adds_noise, scheduler_for
from dreambooth.pictures.settings_text import CHUNK, loras_used, recipe_text

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from dreambooth.models.base import Base

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Picture:
    """One image, the seed that makes it alone, and its settings as the text that other tools read and write in PNGs.

    latents: what it was decoded from, (channels, height / 8, width / 8) fp32 on the CPU, scaled.
    """

    image: "Image.Image"
    seed: int
    recipe: str
    latents: "Tensor | None" = None


def generate_images(
    base: "Base",
    config: GenerationConfig,
    *,
    on_step: OnProgress | None = None,
    should_stop: Callable[[], bool] | None = None,
    stream: rng.Stream = "generation",
    batch_size: int = 4,
    autocast_dtype: "torch.dtype | None" = None,
    native_px: int | None = None,
    indices: Sequence[int] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Iterator[Picture]:
    """Yield the images of a request, a batch at a time.

    The models are used on the devices and in the number formats they have, or where the base's `bring` puts them, with
    the request's LoRAs already attached (`saved_step.resident`). They may be in training: modes and weights are
    restored afterwards. `on_step` gets (denoising steps done, in total); `should_stop` is asked after each of them, and
    True ends everything without the images of that batch. The default size is `native_px`, else the UNet's own.
    `indices` selects images of the request instead of the first `num_images_per_prompt`. `notice` is called with what
    was cut from a prompt or is read literally in it, and with images that overflowed.
    """
    seed = secrets.randbelow(2**32) if config.seed is None else config.seed
    wanted = range(config.num_images_per_prompt) if indices is None else indices
    seeds = [(seed + index) % (MAX_SEED + 1) for index in wanted]
    batches = [seeds[start : start + batch_size] for start in range(0, len(seeds), batch_size)]
    width, height = _size_px(base, config, native_px)
    say = notice or (lambda text: None)
    num_steps, done = config.num_inference_steps, 0
    loras = loras_used(config)

    def step_done() -> bool:
        """Report one more step, and return whether to continue."""
        nonlocal done
        done += 1
        if on_step is not None:
            on_step(done, num_steps * len(batches))
        return should_stop is None or not should_stop()

    def bring(*parts: str) -> None:
        if base.bring is not None:
            base.bring(parts)

    bring(*base.family.layout.text_encoders)
    with _inference(base, autocast_dtype):
        condition = _condition(base, config, (height, width), say)
    for batch in batches:
        # No yield inside: the inference context must not leak to the caller.
        bring("unet")
        with _inference(base, autocast_dtype):
            noise = _noise(base, batch, stream, width, height)
            # During a training the UNet's memory belongs to the training: a recording would keep some of its own. And a
            # UNet that leaves the device returns to another address than was recorded.
            records = autocast_dtype is None and base.bring is None and noise.device.type == "cuda"
            latents = _denoised(base, config, condition, noise, step_done, batch, stream, records=records)
            if latents is not None:
                bring("vae")
            images = [] if latents is None else _decoded(base, latents, say)
        if latents is None:
            return
        for image, own_seed, own_latents in zip(images, batch, latents.float().cpu(), strict=True):
            text = recipe_text(config, own_seed, image.size, base.name, loras)
            yield Picture(image, own_seed, text, own_latents.clone())


def save_picture(picture: Picture, path: Path) -> None:
    """Write the image atomically as a PNG with its settings in the text chunk `parameters`."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(CHUNK, picture.recipe)
    with new_file(path) as temporary:
        picture.image.save(temporary, format="PNG", pnginfo=info)


# Inference -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _inference(base: "Base", autocast_dtype: "torch.dtype | None") -> Iterator[None]:
    """Compute without gradients, in evaluation mode, and restore each module's mode afterwards."""
    import torch

    models = list(base.modules().values())
    training = [module for model in models for module in model.modules() if module.training]
    # Parts that are not used yet may wait on the CPU.
    device_type = next((kind for model in models if (kind := _parameter(model).device.type) != "cpu"), "cpu")
    try:
        for model in models:
            model.eval()
        # no_grad and not inference_mode: tensors that modules cache must stay usable in training.
        with torch.no_grad(), autocast(device_type, autocast_dtype):
            yield
    finally:
        for module in training:
            module.training = True


def _parameter(model: Any) -> "Tensor":
    parameter: Tensor = next(model.parameters())
    return parameter


def _latent_scale(base: "Base") -> int:
    """Return how many pixels a latent pixel covers in each direction."""
    scale: int = 2 ** (len(base.vae.config.block_out_channels) - 1)
    return scale


def _size_px(base: "Base", config: GenerationConfig, native_px: int | None) -> tuple[int, int]:
    side = native_px or base.unet.config.sample_size * _latent_scale(base)
    return config.width or side, config.height or side


def _condition(base: "Base", config: GenerationConfig, size: tuple[int, int], say: Callable[[str], None]) -> Condition:
    """Return the condition of the prompt, preceded under guidance by that of the negative prompt: one or two captions.

    size: height and width of the images, in pixels: they are whole, not cropped.
    """
    prompts = [config.negative_prompt, config.prompt] if config.guidance_scale > 1 else [config.prompt]
    limit = base.tokenizer.model_max_length
    if literal := literal_notice(*reversed(prompts)):
        say(literal)
    for prompt in prompts:
        ids = base.tokenizer(prompt, verbose=False).input_ids
        if len(ids) > limit:
            cut = base.tokenizer.decode(ids[limit - 1 : -1])
            say(f'The prompt has more than {limit - 2} tokens; not read: "{cut}"')
    device = _parameter(base.text_encoders()[0]).device
    # An empty prompt is still a prompt; an empty negative prompt is none.
    left_out = [not prompt for prompt in prompts[:-1]] + [False]
    inputs = base.family.text_inputs(base, prompts, length=limit, left_out=left_out).each(lambda ids: ids.to(device))
    condition = base.family.encode_text(base, inputs).each(lambda tensor: tensor.to(_parameter(base.unet)))
    size_ids = base.family.size_ids([PictureSize(size, (0, 0), size)] * len(prompts))
    return condition if size_ids is None else dataclasses.replace(condition, size_ids=size_ids.to(device))


def _noise(base: "Base", seeds: Sequence[int], stream: rng.Stream, width: int, height: int) -> "Tensor":
    """Return the starting noise, (batch, channels, height / 8, width / 8) fp32, on the UNet's device."""
    import torch

    scale = _latent_scale(base)
    shape = (base.unet.config.in_channels, height // scale, width // scale)
    noise = [torch.randn(shape, generator=rng.generator(seed, stream)) for seed in seeds]
    return torch.stack(noise).to(_parameter(base.unet).device)


def _denoised(
    base: "Base",
    config: GenerationConfig,
    condition: Condition,
    noise: "Tensor",
    step_done: Callable[[], bool],
    seeds: Sequence[int],
    stream: rng.Stream,
    *,
    records: bool,
) -> "Tensor | None":
    """Return clean latents, or None if stopped; `records` its steps as a CUDA graph.

    With the guidance of Ho & Salimans 2022 (arXiv 2207.12598, eq. 6): eps = eps_negative + scale (eps_prompt -
    eps_negative).
    """
    import torch

    scheduler = scheduler_for(config.sampler, base.noise_scheduler_config, config.num_inference_steps)
    guided = len(condition.states) == 2
    condition = condition.each(lambda tensor: tensor.to(noise.device).repeat_interleave(len(noise), dim=0))
    number_format = _parameter(base.unet).dtype
    latents: Tensor = noise * scheduler.init_noise_sigma

    def predicted(inputs: "Sequence[Tensor]") -> "Sequence[Tensor]":
        noisy, timestep, *rest = inputs
        return [base.family.predict(base.unet, noisy, timestep, condition.with_tensors(rest))]

    predict = CapturedWork(predicted) if records else predicted
    for number, t in enumerate(scheduler.timesteps, 1):
        scaled = scheduler.scale_model_input(latents, t)
        doubled = torch.cat([scaled, scaled]) if guided else scaled
        (prediction,) = predict([doubled.to(number_format), t.to(noise.device), *condition.tensors()])
        prediction = prediction.float()
        if guided:
            avoid, show = prediction.chunk(2)
            prediction = avoid + config.guidance_scale * (show - avoid)
        drawn = {}
        if adds_noise(config.sampler):
            drawn = {"generator": [rng.generator(seed, stream, number) for seed in seeds]}
        latents = scheduler.step(prediction, t, latents, **drawn).prev_sample
        if not step_done():
            return None
    return latents


def _decoded(base: "Base", latents: "Tensor", say: Callable[[str], None]) -> list["Image.Image"]:
    """Return the images of clean latents, decoded one after the other, since the VAE needs the most memory of all."""
    import torch
    from PIL import Image

    images = []
    for latent in latents:
        values = base.family.decode(base.vae, latent[None])[0]
        if not torch.isfinite(values).all():
            say("A picture came out black: its values overflowed. The model has diverged, or needs fp32.")
            values = torch.nan_to_num(values, nan=-1, posinf=-1, neginf=-1)
        levels = ((values / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        images.append(Image.fromarray(levels.permute(1, 2, 0).cpu().numpy()))
    return images
