"""Which photo, crop, flip and caption each example of the run has.

Examples are counted over the whole run: k = ((step * accumulation + micro_step) * num_processes + rank) * batch + i.
Everything about example k is a function of (seed, k), so batch size, accumulation and number of processes change how
the sequence is divided, never the sequence. (With buckets a batch has photos of one shape: see `buckets`.)
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth import rng
from dreambooth.config.concepts import Concept
from dreambooth.data.captions import caption_files, read_caption
from dreambooth.data.focus import FOCUS_FILE, Focus, focus_of_photos, read_focus
from dreambooth.data.masks import checked_masks
from dreambooth.data.photo_records import known_name, read_records
from dreambooth.data.photos import PHOTO_READER, crop_box, find_photos, read_photo, resized, shown
from dreambooth.errors import PhotoError
from dreambooth.formats.text_files import printable
from dreambooth.models.family import PictureSize

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

INSTANCE, CLASS = 0, 1  # positions in the random streams


@dataclass(frozen=True)
class CaptionedPhoto:
    """A readable photo, its caption, and its chosen crop if there is one.

    size: width and height of the upright photo in pixels; mask: the file that marks the subject.
    """

    path: Path
    caption: str
    focus: Focus | None = None
    size: tuple[int, int] = (0, 0)
    mask: Path | None = None


@dataclass(frozen=True)
class ConceptPhotos:
    """The photos of a concept and its class images (none without prior preservation)."""

    instance: tuple[CaptionedPhoto, ...]
    class_images: tuple[CaptionedPhoto, ...]


@dataclass(frozen=True)
class Pick:
    """What an example shows: indices of the concept, its photo, and the photo's crop variant."""

    concept: int
    photo: int
    variant: int


@dataclass(frozen=True)
class Crop:
    """Where the crop lies along the longer side (0 left or top, 1 right or bottom), and whether it is mirrored."""

    x: float
    y: float
    flip: bool


# Files ---------------------------------------------------------------------------------------------------------------


def load_concept(
    concept: Concept,
    *,
    read_prompts_from_txts: bool,
    num_class_images: int,
    report: Callable[[str], None],
    reader: int = PHOTO_READER,
    with_masks: bool = False,
) -> ConceptPhotos:
    """Return the concept's readable photos with their captions; skipped files are reported through `report`.

    With `num_class_images` above 0, that many of the readable images of `class_data_dir` are included, in natural
    order. Raises PhotoError when no photo can be read, or a caption, the chosen crops or, `with_masks`, a mask cannot.
    """
    focuses = _focuses(Path(concept.instance_data_dir), report)
    photos = _readable_photos(Path(concept.instance_data_dir), report, reader)
    prompt = concept.instance_prompt
    captions = _captions(list(photos), prompt, report) if read_prompts_from_txts else [prompt] * len(photos)
    masks = checked_masks(photos) if with_masks and reader >= 3 else {}  # photos themselves, to earlier readers
    class_images: dict[Path, tuple[int, int]] = {}
    if num_class_images and concept.class_data_dir:
        class_images = _readable_photos(Path(concept.class_data_dir), report, reader, at_most=num_class_images)
    class_prompt = concept.class_prompt or ""
    return ConceptPhotos(
        tuple(
            CaptionedPhoto(path, caption, focuses.get(path.name), size, masks.get(path))
            for (path, size), caption in zip(photos.items(), captions, strict=True)
        ),
        tuple(CaptionedPhoto(path, class_prompt, size=size) for path, size in class_images.items()),
    )


def _readable_photos(
    folder: Path, report: Callable[[str], None], reader: int, at_most: int | None = None
) -> dict[Path, tuple[int, int]]:
    """Return the folder's readable photos in natural order, with their upright (width, height)."""
    found = find_photos(folder, reader)
    for path, reason in found.skipped:
        report(f"{shown(path)} in {folder} is skipped: it {reason}.")
    readable: dict[Path, tuple[int, int]] = {}
    for path in found.photos:
        if len(readable) == at_most:
            break
        try:
            photo = read_photo(path, reader)
        except PhotoError as error:
            report(f"Skipped: {error}")
            continue
        readable[path] = photo.image.size
        if photo.notes:
            report(f"{shown(path)}: {'; '.join(photo.notes)}.")
    if not readable:
        raise PhotoError(
            f"None of the {len(found.photos)} photos in {folder} can be read.",
            "All of them are damaged or not what their file names say.",
            "Copy them again, or save them as JPEGs.",
        )
    return readable


def _focuses(folder: Path, report: Callable[[str], None]) -> dict[str, Focus]:
    """Return the focus of each photo of the folder that has one; names without a photo are reported."""
    focuses, missing = focus_of_photos(read_focus(folder), [photo.name for photo in find_photos(folder).photos])
    if missing:
        names = ", ".join(f'"{printable(name)}"' for name in missing[:10])
        report(f"{FOCUS_FILE} in {folder} has crops for photos that do not exist: {names}.")
    return focuses


def _captions(photos: list[Path], instance_prompt: str, report: Callable[[str], None]) -> list[str]:
    """Return each photo's caption; the instance prompt is used if its file is missing or empty."""
    files, captions = caption_files(photos), []
    for photo in photos:
        words = _words_beside(photo, files[photo]) if photo in files else ""
        if not words:
            problem = f"{shown(files[photo])} is empty" if photo in files else f"{shown(photo)} has no caption file"
            report(f'{problem}: the caption of {shown(photo)} is the instance prompt "{instance_prompt}".')
        captions.append(words or instance_prompt)
    return captions


def _words_beside(photo: Path, file: Path) -> str:
    try:
        return read_caption(file)
    except PhotoError as error:
        # A stored photo and its caption have other names than in the upload.
        name = known_name(photo, read_records(photo.parent))
        what = error.what if name == shown(photo) else f'The caption of "{name}" cannot be used: {error.what}'
        raise PhotoError(what, error.why, error.todo) from None


# The sequence --------------------------------------------------------------------------------------------------------


def instance_pick(seed: int, k: int, concept_sizes: Sequence[int], num_variants: int) -> Pick:
    """Return which photo and crop variant example k shows.

    Concepts take turns, and each goes through all its photos, in a new order every pass, before one is repeated.
    """
    return _pick(seed, k, concept_sizes, num_variants, INSTANCE)


def class_pick(seed: int, k: int, concept_sizes: Sequence[int], num_variants: int) -> Pick:
    """Return which class image accompanies example k: from the same concept, in its own order."""
    return _pick(seed, k, concept_sizes, num_variants, CLASS)


def visit_number(k: int, concept_sizes: Sequence[int]) -> int:
    """Return how often the photo of example k was shown before: a pass shows each once."""
    turn, concept = divmod(k, len(concept_sizes))
    return turn // concept_sizes[concept]


def _pick(seed: int, k: int, concept_sizes: Sequence[int], num_variants: int, role: int) -> Pick:
    turn, concept = divmod(k, len(concept_sizes))
    passed, place = divmod(turn, concept_sizes[concept])
    photo = photo_order(seed, role, concept, passed, concept_sizes[concept])[place]
    return Pick(concept, photo, crop_draw(seed, role, k, num_variants))


def crop_draw(seed: int, role: int, k: int, num_variants: int) -> int:
    """Return the crop variant of example k."""
    import torch

    return int(torch.randint(num_variants, (1,), generator=rng.generator(seed, "crops", role, k)))


@functools.lru_cache(maxsize=64)
def photo_order(seed: int, role: int, concept: int, passed: int, num_photos: int, *part: int) -> tuple[int, ...]:
    """Return the order in which a pass shows a concept's photos, or those of a `part` that has an order of its own."""
    import torch

    order = torch.randperm(num_photos, generator=rng.generator(seed, "order", role, concept, passed, *part))
    return tuple(order.tolist())


def crop_variant(
    seed: int, concept: int, photo: int, variant: int, *, center_crop: bool, hflip: bool, is_class: bool
) -> Crop:
    """Return the crop of this variant of this photo; without `center_crop` it moves along the longer side."""
    import torch

    position = (CLASS if is_class else INSTANCE, concept, photo, variant)
    x, y, coin = torch.rand(3, generator=rng.generator(seed, "crops", *position), dtype=torch.float64).tolist()
    if center_crop:
        x = y = 0.5
    return Crop(x, y, hflip and coin < 0.5)


# Pixels --------------------------------------------------------------------------------------------------------------


def cropped(image: "Image.Image", crop: Crop, size_px: tuple[int, int], focus: Focus | None = None) -> "Image.Image":
    """Return the crop of an upright photo at this (height, width), around its focus if it has one."""
    from PIL import Image

    view = resized(image, size_px, _box(image.size, crop, size_px, focus))
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.flip else view


def picture_size(
    photo: tuple[int, int], crop: Crop, size_px: tuple[int, int], focus: Focus | None = None
) -> PictureSize:
    """Return where the crop of an upright photo of this (width, height) comes from, for models that take it as input.

    `original` is the photo's own size, even if a crop was chosen; the offset is measured in the mirrored photo if the
    crop is mirrored. `size_px` is the (height, width) of the crop in training.
    """
    left, top, right, bottom = _box(photo, crop, size_px, focus)
    if crop.flip:
        left = photo[0] - right
    scale = size_px[0] / (bottom - top)
    offset = (round(top * scale), round(left * scale))
    return PictureSize((photo[1], photo[0]), offset, size_px)


def _box(
    photo: tuple[int, int], crop: Crop, size_px: tuple[int, int], focus: Focus | None
) -> tuple[float, float, float, float]:
    shape = size_px[1] / size_px[0]
    return crop_box(photo, crop.x, crop.y, shape) if focus is None else focus.box(photo, shape)


def pixels(image: "Image.Image") -> "Tensor":
    """Return the image as (3, height, width) fp32 in -1..1, the VAE's input."""
    import numpy as np
    import torch

    values = torch.from_numpy(np.array(image, dtype=np.float32))
    return values.permute(2, 0, 1).contiguous() / 127.5 - 1
