"""The pictures of a class that prior preservation trains on, made by the untaught base where they are missing.

Picture i is made from its own seed, so an interrupted job goes on where it was, and a larger number later adds
pictures instead of making all of them again.
"""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.config.concepts import Concept
from dreambooth.config.generation import GenerationConfig
from dreambooth.config.limits import as_written
from dreambooth.data.photos import find_photos, read_photo
from dreambooth.durable import new_file, write_json
from dreambooth.errors import ConfigError, FieldProblem, PhotoError
from dreambooth.pictures.generation import Picture, generate_images, save_picture
from dreambooth.pictures.samplers import DDIM

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from dreambooth.models.base import Base

LATENTS_FOLDER = ".latents"


def ensure_class_images(
    concept: Concept,
    *,
    base_factory: Callable[[], "Base"],
    cache_dir: Path,
    base_key: str,
    vae_key: str,
    num_class_images: int,
    resolution_px: int,
    num_inference_steps: int,
    guidance_scale: float,
    seed: int,
    batch_size: int,
    report: Callable[[int, int], None],
    should_stop: Callable[[], bool],
    autocast_dtype: "torch.dtype | None" = None,
    notice: Callable[[str], None] | None = None,
    keep_latents: bool = False,
) -> list[Path]:
    """Return the first `num_class_images` readable class pictures, in natural order, fewer only when stopped.

    A `class_data_dir` of the user's is filled up with PNGs: nothing of the user's is replaced or deleted, and only
    readable pictures count. Without one, the pictures lie in a folder of `cache_dir` that belongs to everything they
    depend on. A generated picture that is damaged is made again under its own number, from its own seed.
    `base_factory` is called only when a picture is missing; `report` is told (pictures there, pictures wanted), also
    between the denoising steps. With `keep_latents` each new picture's latents are kept beside it (`kept_latents`).
    """
    if not (concept.class_prompt or "").strip():
        message = f"is missing for {as_written(concept.instance_prompt)}: prior preservation needs it."
        raise ConfigError([FieldProblem("class_prompt", message)])
    request = GenerationConfig(
        prompt=concept.class_prompt or "",
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        height=resolution_px,
        width=resolution_px,
        seed=seed,
    )
    recipe = {**_everything_they_depend_on(request, base_key, vae_key), **({"latents": True} if keep_latents else {})}
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    if concept.class_data_dir:
        folder, prefix = Path(concept.class_data_dir), f"generated-{key[:8]}-"
        folder.mkdir(parents=True, exist_ok=True)
    else:
        folder, prefix = cache_dir / key, ""
        if not (folder / "info.json").exists():
            write_json(folder / "info.json", recipe)

    damaged = _damaged(folder, prefix, num_class_images, keep_latents=keep_latents)
    there = _readable(folder, at_most=num_class_images)
    present = min(len(there), num_class_images - len(damaged))
    report(present, num_class_images)
    free = (number for number in itertools.count() if not (folder / f"{prefix}{number:05d}.png").exists())
    missing = [*itertools.islice(free, num_class_images - present - len(damaged))]
    if not (damaged or missing) or should_stop():
        return there
    # Whole batches again: the last digits of a picture depend on what was made beside it.
    starts = sorted({number // batch_size * batch_size for number in damaged})
    again = [number for start in starts for number in range(start, min(start + batch_size, num_class_images))]
    base = base_factory()
    for numbers, indices in ((damaged, again), (missing, missing)):
        _make(
            folder, prefix, request, numbers, indices, base,
            batch_size=batch_size, autocast_dtype=autocast_dtype, should_stop=should_stop, notice=notice,
            keep_latents=keep_latents, report=report, present=present, num_class_images=num_class_images,
        )  # fmt: skip
        present += len(numbers)
    return _readable(folder, at_most=num_class_images)


def _everything_they_depend_on(request: GenerationConfig, base_key: str, vae_key: str) -> Mapping[str, Any]:
    return {
        "base": base_key,
        "vae": vae_key,
        "prompt": request.prompt,
        "sampler": DDIM,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": float(request.guidance_scale),
        "size_px": request.width,
        "seed": request.seed,
    }


def _readable(folder: Path, at_most: int) -> list[Path]:
    """Return the first pictures of the folder that can be read; a folder without any has none."""
    readable: list[Path] = []
    try:
        candidates = find_photos(folder).photos
    except PhotoError:
        return readable
    for path in candidates:
        if len(readable) == at_most:
            break
        try:
            read_photo(path)
        except PhotoError:
            continue  # told by whoever loads the concept; here it only does not count
        readable.append(path)
    return readable


def _damaged(folder: Path, prefix: str, num_class_images: int, *, keep_latents: bool) -> list[int]:
    """Return the numbers of generated pictures that cannot be read, or have lost their latents."""
    found = []
    for number in range(num_class_images):
        path = folder / f"{prefix}{number:05d}.png"
        if not path.exists():
            continue
        try:
            read_photo(path)
            is_whole = not keep_latents or kept_latents(path) is not None
        except PhotoError:
            is_whole = False
        if not is_whole:
            found.append(number)
    return found


def _make(
    folder: Path,
    prefix: str,
    request: GenerationConfig,
    numbers: list[int],
    indices: list[int],
    base: "Base",
    *,
    batch_size: int,
    autocast_dtype: "torch.dtype | None",
    report: Callable[[int, int], None],
    present: int,
    num_class_images: int,
    should_stop: Callable[[], bool],
    notice: Callable[[str], None] | None,
    keep_latents: bool,
) -> None:
    """Make the pictures of these indices, and write each that is of these numbers as soon as it is there."""
    if not numbers:
        return
    made = 0
    pictures = generate_images(
        base,
        request,
        stream="class_images",
        indices=indices,
        batch_size=batch_size,
        autocast_dtype=autocast_dtype,
        on_step=lambda done, total: report(present + made, num_class_images),
        should_stop=should_stop,
        notice=notice,
    )
    for number, picture in zip(indices, pictures, strict=False):  # fewer pictures when stopped
        if number not in numbers:
            continue
        path = folder / f"{prefix}{number:05d}.png"
        if keep_latents:
            _keep_latents(picture, path)
        save_picture(picture, path)
        made += 1
        # A batch comes at once: told one by one, its first would seem to have taken the time of all.
        if made % batch_size == 0 or made == len(numbers):
            report(present + made, num_class_images)


# Latents -------------------------------------------------------------------------------------------------------------


def kept_latents(picture: Path) -> "Tensor | None":
    """Return what the sampler left for this class picture, (channels, height / 8, width / 8) fp32, scaled.

    None for a picture that was not generated with its latents, or is another by now.
    """
    from safetensors import SafetensorError, safe_open

    with contextlib.suppress(OSError, SafetensorError, PhotoError), safe_open(_latents_path(picture), "pt") as opened:
        if (opened.metadata() or {}).get("pixels") == _pixel_hash(read_photo(picture).image):
            latents: Tensor = opened.get_tensor("latents")
            return latents
    return None


def _keep_latents(picture: Picture, path: Path) -> None:
    """Write the latents before the picture: once that is there, they are too."""
    from safetensors.torch import save

    assert picture.latents is not None
    kept = _latents_path(path)
    kept.parent.mkdir(exist_ok=True)
    with new_file(kept) as temporary:
        temporary.write_bytes(save({"latents": picture.latents}, {"pixels": _pixel_hash(picture.image)}))


def _latents_path(picture: Path) -> Path:
    return picture.parent / LATENTS_FOLDER / f"{picture.stem}.safetensors"


def _pixel_hash(image: "Image.Image") -> str:
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
