"""Image encoders for scoring: the starter's own judge for its world, DINO and CLIP for everything else.

The DreamBooth paper (Ruiz et al. 2023, arXiv 2208.12242, 4.2) uses DINO ViT-S/16 for subject fidelity and CLIP for
CLIP-I and CLIP-T, without saying which CLIP; here it is ViT-B/32, so scores compare only within this project.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreambooth.models.sd_file import starter_folder
from dreambooth.scoring.judge import Judge, load_judge

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

DINO = "facebook/dino-vits16"
CLIP = "openai/clip-vit-base-patch32"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIPS_OWN = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
BATCH = 16

Embed = Callable[[Sequence["Image.Image"]], "Tensor"]


@dataclass(frozen=True)
class Examiner:
    """Encoders for likeness, the first of which is used for scores, and one that compares images with their prompts.

    `likeness` gives one unit vector per image. `obedience` gives one number per image, None for a prompt that it cannot
    judge; `photos_are_zero` says whether the score of real photos for the same prompts is the zero point, as with CLIP.
    """

    name: str
    likeness: Mapping[str, Embed]
    obedience_name: str
    obedience: Callable[[Sequence["Image.Image"], Sequence[str]], list[float | None]]
    photos_are_zero: bool
    can_judge: Callable[[str], bool] = lambda prompt: True


def examiner_for(
    *, is_toy: bool, download: bool, token: str | None = None, place: Callable[[Any], None] = lambda module: None
) -> Examiner | None:
    """Return the examiner for this model's images, None if there is none.

    Encoders come from the Hub's cache, and are downloaded (1 GB in all) only with `download`. `place` moves them to the
    device where they compute.
    """
    if is_toy:
        return judge_examiner(load_judge(starter_folder()))
    dino, clip, tokenizer = (
        _from_hub(kind, name, download, token)
        for kind, name in (("ViTModel", DINO), ("CLIPModel", CLIP), ("CLIPTokenizer", CLIP))
    )
    if dino is None or clip is None or tokenizer is None:
        return None
    for module in (dino, clip):
        place(module.eval())
    return encoder_examiner(dino, clip, tokenizer)


def _from_hub(kind: str, name: str, download: bool, token: str | None) -> Any:
    import transformers

    # A tokenizer has no weights, and ignores the argument.
    options: dict[str, Any] = {"add_pooling_layer": False} if kind == "ViTModel" else {}
    for local_only in (True, False) if download else (True,):
        try:
            return getattr(transformers, kind).from_pretrained(
                name, local_files_only=local_only, token=token, use_safetensors=True, **options
            )
        except (OSError, ValueError):
            continue
    return None


# The starter's judge -------------------------------------------------------------------------------------------------


def judge_examiner(judge: Judge) -> Examiner:
    """Return the judge as an examiner; of a prompt it can only judge the place."""

    def obedience(images: Sequence["Image.Image"], prompts: Sequence[str]) -> list[float | None]:
        places = [place_named(prompt, judge.words["context"]) for prompt in prompts]
        seen = judge.attributes_of(judge.pictures(images))
        return [
            None if place is None else float(one["context"] == place) for place, one in zip(places, seen, strict=True)
        ]

    def embed(images: Sequence["Image.Image"]) -> "Tensor":
        return judge.rows_of(images)

    def knows(prompt: str) -> bool:
        return place_named(prompt, judge.words["context"]) is not None

    return Examiner("the starter's judge", {"judge": embed}, "place", obedience, photos_are_zero=False, can_judge=knows)


def place_named(prompt: str, places: Sequence[str]) -> str | None:
    """Return the place of the painted world that a prompt names, the last one if several; None if it names none."""
    ends = {}
    for place in places:
        words = "white background" if place == "white" else place.removesuffix("s")
        found = list(re.finditer(rf"\b{words}s?\b", prompt))
        if found:
            ends[place] = (found[-1].end(), len(words))
    return max(ends, key=lambda place: ends[place]) if ends else None


# DINO and CLIP -------------------------------------------------------------------------------------------------------


def encoder_examiner(dino: Any, clip: Any, tokenizer: Any) -> Examiner:
    """Return DINO (a ViTModel) and CLIP (a CLIPModel with its tokenizer) as an examiner."""

    def see_dino(images: Sequence["Image.Image"]) -> "Tensor":
        pixels = _pixels(images, dino.config.image_size, *IMAGENET)
        return _embedded(dino, pixels, lambda batch: dino(pixel_values=batch).last_hidden_state[:, 0])

    def see_clip(images: Sequence["Image.Image"]) -> "Tensor":
        pixels = _pixels(images, clip.config.vision_config.image_size, *CLIPS_OWN)
        return _embedded(clip, pixels, lambda batch: _pooled(clip.get_image_features(pixel_values=batch)))

    def obedience(images: Sequence["Image.Image"], prompts: Sequence[str]) -> list[float | None]:
        import torch

        ids = tokenizer(list(prompts), padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        texts = _embedded(clip, ids.input_ids, lambda batch: _pooled(clip.get_text_features(input_ids=batch)))
        # A photo is compared with many prompts, and embedded once.
        different = {id(image): image for image in images}
        rows = dict(zip(different, see_clip([*different.values()]), strict=True))
        seen = torch.stack([rows[id(image)] for image in images])
        cosines: list[float | None] = (seen * texts).sum(1).tolist()
        return cosines

    name = "DINO ViT-S/16 and CLIP ViT-B/32"
    return Examiner(name, {"DINO": see_dino, "CLIP-I": see_clip}, "CLIP-T", obedience, photos_are_zero=True)


def _pixels(images: Sequence["Image.Image"], side_px: int, mean: Sequence[float], spread: Sequence[float]) -> "Tensor":
    """Return the images' centre squares in the encoders' input format, (images, 3, side, side)."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    fitted = [ImageOps.fit(image.convert("RGB"), (side_px, side_px), Image.Resampling.BICUBIC) for image in images]
    values = torch.from_numpy(np.stack([np.asarray(image) for image in fitted])).permute(0, 3, 1, 2) / 255
    return (values - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(spread).view(3, 1, 1)


def _embedded(module: Any, inputs: "Tensor", encode: Callable[["Tensor"], "Tensor"]) -> "Tensor":
    import torch

    device = next(module.parameters()).device
    with torch.no_grad():
        parts = [encode(batch.to(device)).float().cpu() for batch in inputs.split(BATCH)]
    return torch.nn.functional.normalize(torch.cat(parts), dim=1)


def _pooled(features: Any) -> "Tensor":
    """Return the projected features, which transformers 5 wraps into an output of several."""
    pooled: Tensor = getattr(features, "pooler_output", features)
    return pooled
