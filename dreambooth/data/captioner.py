"""Automatic captions by a small model, which is downloaded on request and never by itself.

BLIP (base), about 1 GB, runs on the CPU in seconds per photo and leaves the device to trainings.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.data.captions import caption_beside, write_caption
from dreambooth.data.photos import read_photo
from dreambooth.errors import BaseModelError, quoted
from dreambooth.models.download import downloaded_files
from dreambooth.models.weights import load_errors

if TYPE_CHECKING:
    from PIL import Image

CAPTIONER = "Salesforce/blip-image-captioning-base"
FILES = ["*.json", "vocab.txt", "*.safetensors"]
MAX_TOKENS = 40

Captioner = Callable[["Image.Image"], str]


def write_captions(photos: Sequence[Path], prompt: str, captioner: Captioner) -> Iterator[Path]:
    """Give each photo without its own caption the prompt and a description of it; yield the photos that got one."""
    for photo in photos:
        if not caption_beside(photo):
            seen = " ".join(captioner(read_photo(photo).image).split())
            write_caption(photo, f"{prompt}, {seen}" if seen else prompt)
            yield photo


def load_captioner(token: str | None, name: str = CAPTIONER) -> Captioner:
    """Return a captioner: a model of the Hub, downloaded unless it is in the cache, or of a folder.

    Raises BaseModelError if it cannot be had.
    """
    todo = "Write the captions yourself, or try again with a network."
    folder = Path(name) if Path(name).is_dir() else downloaded_files(name, "captioner", FILES, token, todo)
    try:
        import torch
        from transformers import BlipForConditionalGeneration, BlipProcessor

        processor = BlipProcessor.from_pretrained(folder, local_files_only=True)
        model = BlipForConditionalGeneration.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        model = model.float().eval()
    except load_errors() as error:
        raise BaseModelError(f'The captioner "{name}" cannot be loaded.', quoted(error), todo) from error

    def caption(image: "Image.Image") -> str:
        with torch.inference_mode():
            tokens = model.generate(**processor(images=image, return_tensors="pt"), max_new_tokens=MAX_TOKENS)
        return str(processor.decode(tokens[0], skip_special_tokens=True))

    return caption
