"""Where a base model finds the subject of a photo before any training: a mask to start painting from."""

from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.data.dataset import Crop, Pick, picture_size, pixels
from dreambooth.data.focus import Focus, focused
from dreambooth.data.photos import read_photo
from dreambooth.models.manager import ModelManager
from dreambooth.models.saved_step import ModelSource, resident
from dreambooth.training.captions import CaptionConditions, tokenize
from dreambooth.training.preparation import alphas_cumprod
from dreambooth.training.subject_mask import noun_positions, subject_map

if TYPE_CHECKING:
    from PIL import Image

SUBJECT_SHARE = 0.5  # of how much the place that looks most at the class noun does


def found_subject(
    photo: Path,
    focus: Focus,
    class_prompt: str,
    base_name: str,
    side_px: int,
    manager: ModelManager,
    models_dir: Path,
) -> "Image.Image":
    """Return the photo's mask as a training finds it in its crop at `side_px`: white is the subject.

    Outside the crop it is black. Raises DeviceError while the device is busy, and BaseModelError.
    """
    import torch
    from PIL import Image

    image = read_photo(photo).image
    with manager.lease("generation", wait=False), torch.no_grad():
        base = resident(manager, ModelSource(base_name), models_dir=models_dir)
        crop = base.family.encode(base.vae, pixels(focused(image, side_px, focus))[None])
        inputs = tokenize(base, [class_prompt], pad_tokens=False, notice=lambda text: None)
        size = picture_size(image.size, Crop(0.5, 0.5, False), (side_px, side_px), focus)
        condition = CaptionConditions(base, inputs, trained=False)([class_prompt], [size])
        latents = crop.mean[0].to(manager.device) * base.vae.config.scaling_factor
        positions = noun_positions(base.tokenizer, class_prompt)
        found = subject_map(base, condition, positions, latents, alphas_cumprod(base), 0, Pick(0, 0, 0))
    left, top, right, bottom = (round(edge) for edge in focus.box(image.size))
    square = Image.fromarray((found[0] * 255).byte().cpu().numpy()).resize((right - left, bottom - top))
    mask = Image.new("L", image.size, 0)
    mask.paste(square.point(lambda level: 255 if level >= 255 * SUBJECT_SHARE else 0), (left, top))
    return mask
