"""What a run starts from: a Hub id, a diffusers folder, a single file, or the starter, in known number formats."""

import contextlib
import dataclasses
import importlib
import json
import re
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.config.recipes import DEFAULTS
from dreambooth.config.training import SD15, SDXL_BASE
from dreambooth.device.hardware import bitsandbytes_hidden
from dreambooth.errors import BaseModelError, quoted
from dreambooth.formats.layout import LAYOUTS, SD1, SDXL, FamilyName, Layout, family_of, folder_configs, layout_of
from dreambooth.models.card import BaseCard, card_of
from dreambooth.models.config_limits import refuse_wrong_config, refuse_wrong_configs
from dreambooth.models.download import downloaded_base, downloaded_vae, hub_revision, missing_files
from dreambooth.models.family import Family, family_for, usual_configs
from dreambooth.models.file_formats import refuse_other_folder, refuse_pointers
from dreambooth.models.fingerprint import first_numbers, joint_fingerprint
from dreambooth.models.folder_parts import diffusers_part, text_encoder_of
from dreambooth.models.original_file import parts_of_file, vae_of_file
from dreambooth.models.saved_hashes import refuse_changed
from dreambooth.models.sd import StableDiffusion
from dreambooth.models.sd_file import starter_folder
from dreambooth.models.tokenizer import load_tokenizer, refuse_other_vocabulary, tokenizer_for
from dreambooth.models.weights import (
    file_metadata,
    load_errors,
    refuse_not_finite,
)
from dreambooth.records.workspace import RunFolder

if TYPE_CHECKING:
    import torch
    from torch import nn

STARTER = "starter"
# In the front matter of a model card on the Hub.
LICENCE_LINE = re.compile(r"\A---\n(?:(?!---).*\n)*?license: *[\"']?([A-Za-z0-9.+_-]{1,100})")


@dataclass
class Base:
    """The parts of a model, loaded on the CPU and in evaluation mode, and their family.

    `name` appears in the metadata of images generated with it; `fingerprint` is that of the trainable weights as
    loaded; `bring`, if not all parts are on the device at once, is called with those used next; `as_read` holds the
    `first_numbers` of parts that were cast after they were read.
    """

    name: str
    unet: Any
    text_encoder: Any
    vae: Any
    tokenizer: Any
    noise_scheduler_config: dict[str, Any]
    card: BaseCard
    family: Family = StableDiffusion()
    fingerprint: str = ""
    text_encoder_2: Any = None
    tokenizer_2: Any = None
    bring: Callable[[Collection[str]], None] | None = None
    as_read: dict[str, bytes] = dataclasses.field(default_factory=dict)

    def record_fingerprint(self) -> None:
        """Store the fingerprint of the trainable weights in their present state."""
        self.fingerprint = self.fingerprint_of("unet", *self.family.layout.text_encoders)

    def fingerprint_of(self, *parts: str) -> str:
        """Return the fingerprint of these parts together, whatever format they were cast to after they were loaded."""
        return joint_fingerprint(self.as_read.get(part) or first_numbers(getattr(self, part)) for part in parts)

    @property
    def guidance_scale(self) -> float:
        """Return the guidance scale that suits this base."""
        return _guidance(self.card, self.family.layout.family)

    def modules(self) -> "dict[str, nn.Module]":
        """Return the parts by name, in the order of the family's layout."""
        return {name: getattr(self, name) for name in self.family.layout.part_names}

    def text_encoders(self) -> "list[nn.Module]":
        """Return the text encoders, in the layout's order."""
        return [getattr(self, name) for name in self.family.layout.text_encoders]


def read_card(name: str, models_dir: Path | None = None) -> BaseCard:
    """Return the card of a base without loading it; a base without one gets its family's defaults."""
    source = local_base(name, models_dir)
    if source is None or not source.is_dir():
        layout = known_layout(name, models_dir)
        return BaseCard() if layout is None else BaseCard(native_px=8 * usual_configs(layout)["unet"]["sample_size"])
    if (source / "card.json").exists():
        return card_of(source / "card.json")
    try:
        sample_size = json.loads((source / "unet" / "config.json").read_text("utf-8"))["sample_size"]
        return BaseCard(native_px=8 * int(sample_size))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return BaseCard()


def known_layout(name: str, models_dir: Path | None = None) -> Layout | None:
    """Return the layout of a base without loading it, None if its files are not here or do not tell."""
    source = local_base(name, models_dir)
    if source is not None and source.is_dir():
        return layout_of(source)
    try:
        return LAYOUTS[family_of(name if source is None else source)]
    except BaseModelError:
        return {SD15: SD1, SDXL_BASE: SDXL}.get(name)


def family_name(name: str, models_dir: Path | None = None) -> FamilyName:
    """Return the family by which a base's defaults are chosen: SD 1.x if unknown."""
    layout = known_layout(name, models_dir)
    return SD1.family if layout is None else layout.family


def guidance_of(name: str, models_dir: Path | None = None) -> float:
    """Return the guidance scale that suits a model: its card's, else its family's."""
    return _guidance(read_card(name, models_dir), family_name(name, models_dir))


def _guidance(card: BaseCard, family: FamilyName) -> float:
    recipe = {**DEFAULTS[family, "full"], **card.recipes.get("full", {})}
    return float(recipe.get("save_guidance_scale", 7.5))


def _licence_of(source: Path) -> str:
    """Return the licence that a base's model card or file names, empty if it names none."""
    if source.is_file():
        return file_metadata(source).get("modelspec.license", "")[:100]
    page = source / "README.md"
    match = LICENCE_LINE.search(page.read_text("utf-8", errors="replace")) if page.is_file() else None
    return match[1] if match else ""


def load_base(
    name: str,
    *,
    vae: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    tokenizer: str | None = None,
    token: str | None = None,
    models_dir: Path | None = None,
    dtype: "torch.dtype | None" = None,
) -> Base:
    """Load a base's parts in fp32; raises BaseModelError saying what is wrong and what to do.

    `dtype`: the format of the trainable parts, which are never in memory in a larger one than their files have.
    """
    quiet_libraries()
    source = local_base(name, models_dir)
    other_tokenizer = None if tokenizer is None else load_tokenizer(tokenizer, token)
    given = {part for part, other in (("vae", vae), ("tokenizer", tokenizer)) if other is not None}
    if source is None:
        revision, variant = hub_revision(revision, variant)
        source = downloaded_base(name, revision, variant, token, given=given)
    with _refusing_changed(source):
        if source.is_file():
            base = _from_file(source, tokenizer, token, dtype)
        else:
            base = _from_folder(source, variant, given, dtype)
    base.name, base.card = name, read_card(str(source))
    if source.is_file() or not (source / "card.json").exists():
        base.card = dataclasses.replace(base.card, native_px=8 * int(base.unet.config.sample_size))
    from_here = name == STARTER or local_base(name, models_dir) is None
    base.card = dataclasses.replace(
        base.card,
        source=name if from_here else base.card.source,
        licence=base.card.licence or _licence_of(source),
        step=None,
        strength="",
        extensions=(),
    )
    if other_tokenizer is not None:
        if len(base.family.layout.tokenizers) > 1:
            raise BaseModelError(
                f'"{name}" has two tokenizers of its own.', "One other tokenizer cannot stand for both.",
                "Leave out tokenizer_name.",
            )  # fmt: skip
        base.tokenizer = other_tokenizer
    layout = base.family.layout
    for own, encoder in zip(layout.tokenizers, layout.text_encoders, strict=True):
        refuse_other_vocabulary(tokenizer or name, getattr(base, own), getattr(base, encoder))
    if vae is not None:
        base.vae = _load_vae(vae, token, usual_configs(layout)["vae"])
    for part, module in base.modules().items():
        other_place = vae if part == "vae" else None
        place = source if source.is_file() else source / part
        refuse_not_finite(part, module.eval(), Path(other_place) if other_place is not None else place)
    base.record_fingerprint()
    return base


@contextlib.contextmanager
def _refusing_changed(source: Path) -> Iterator[None]:
    """Compare a saved step's files with their hashes while they are loaded; a difference explains any other error."""
    with ThreadPoolExecutor(1) as beside:
        unchanged = beside.submit(refuse_changed, source)
        try:
            yield
        finally:
            unchanged.result()


def quiet_libraries() -> None:
    """Import diffusers and transformers without progress bars and advice in the log; errors are still shown."""
    import logging

    _import_apart("diffusers.models.unets.unet_2d_condition")

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _import_apart(name: str) -> None:
    """Import a module of diffusers in a thread of its own, as if bitsandbytes were not installed.

    A mismatched xformers keeps the exception of its import, which keeps every frame above it alive, and with them the
    models their variables later hold. And bitsandbytes would be imported whole for diffusers' quantizers, which nothing
    here uses: a third of the time, and 45 MB.
    """
    if name not in sys.modules:
        thread = threading.Thread(target=importlib.import_module, args=(name,))
        with bitsandbytes_hidden():
            thread.start()
            thread.join()


# Where it is ---------------------------------------------------------------------------------------------------------


def local_base(name: str, models_dir: Path | None) -> Path | None:
    """Return the folder or file that a base's name stands for here, None for a Hub id.

    A run's folder stands for its recommended step, or its newest if none is recommended.
    """
    if name == STARTER:
        return starter_folder()
    for candidate in (Path(name), *([models_dir / name] if models_dir else [])):
        with contextlib.suppress(OSError, ValueError):  # no name of a file at all: too long, or with a NUL in it
            if candidate.exists():
                found = RunFolder(candidate).base_step()
                return candidate if found is None else candidate / str(found[0])
    return None


# Folders -------------------------------------------------------------------------------------------------------------


def _from_folder(folder: Path, variant: str | None, given: Collection[str], dtype: "torch.dtype | None") -> Base:
    """Load a folder's parts except those `given` from elsewhere, which are None in the result."""
    layout = check_folder(folder, variant, given)
    index, _ = folder_configs(folder) or ({}, {})
    loaders = {"diffusers": diffusers_part, "transformers": text_encoder_of}
    as_read: dict[str, bytes] = {}
    try:
        # The cheap parts first: their errors are reported at once.
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
        parts: dict[str, Any] = dict.fromkeys((*layout.tokenizers, *layout.part_names))
        parts |= {name: load_tokenizer(str(folder / name), None) for name in layout.tokenizers if name not in given}
        for part in layout.parts:
            load = loaders[part.library]
            is_cast = part.can_learn and dtype is not None
            if part.name not in given:
                found = load(part.class_name, folder / part.name, variant, as_stored=is_cast)
                parts[part.name] = _cast(part.name, found, dtype, as_read) if is_cast else found
    except load_errors() as error:
        raise BaseModelError(
            f"{folder} cannot be loaded.", quoted(error, 400), "Download or save the model again."
        ) from error
    scheduler = {key: value for key, value in scheduler.items() if not key.startswith("_")}
    return Base(
        name=str(folder), noise_scheduler_config=scheduler, card=BaseCard(), family=family_for(layout, index),
        as_read=as_read, **parts,
    )  # fmt: skip


def _cast(name: str, module: Any, dtype: "torch.dtype | None", as_read: dict[str, bytes]) -> Any:
    """Cast a part's weights to this format, one after the other, and record its first numbers before that.

    Weights that already have the format are copied too: mapped ones would change with their file.
    """
    as_read[name] = first_numbers(module)
    for weight in module.parameters():
        weight.data = weight.data.to(dtype, copy=True).contiguous()
    return module.to(dtype)


def check_folder(folder: Path, variant: str | None, given: Collection[str]) -> Layout:
    """Return the folder's layout; raises BaseModelError for another kind of model, and for missing files.

    The libraries would take the relative path of a missing folder for a Hub id.
    """
    if folder_configs(folder) is None:
        refuse_pointers(folder)
        refuse_other_folder(folder)
    layout = LAYOUTS[family_of(folder)]
    if missing := missing_files(folder, variant, given=given):
        raise BaseModelError(
            f'"{folder}" cannot be loaded.', f"It lacks {', '.join(missing)}.", "Download or save the model again."
        )
    refuse_pointers(folder)
    refuse_wrong_configs(folder, given)
    return layout


def _load_vae(source: str, token: str | None, usual: Mapping[str, Any]) -> Any:
    folder = Path(source)
    if folder.is_file():
        return vae_of_file(folder, usual)
    if not folder.is_dir():
        folder = downloaded_vae(source, token)
    if (folder / "vae" / "config.json").exists():
        folder = folder / "vae"
    if not (folder / "config.json").is_file():
        raise BaseModelError(
            f'The VAE "{source}" cannot be loaded.', "Neither config.json nor vae/config.json is in it.",
            "Check the name, or leave pretrained_vae_name_or_path out.",
        )  # fmt: skip
    refuse_wrong_config(folder / "config.json", "vae/config.json")
    try:
        return diffusers_part("AutoencoderKL", folder, None)
    except load_errors() as error:
        raise BaseModelError(
            f"The VAE {source} cannot be loaded.", quoted(error),
            "Check the name, or leave pretrained_vae_name_or_path out.",
        ) from error  # fmt: skip


# Single files --------------------------------------------------------------------------------------------------------


def _from_file(path: Path, tokenizer: str | None, token: str | None, dtype: "torch.dtype | None") -> Base:
    found, as_read = parts_of_file(path, as_stored=dtype is not None), dict[str, bytes]()
    for part in found.layout.learning_parts if dtype is not None else ():
        _cast(part, found.parts[part], dtype, as_read)
    own: dict[str, Any] = dict.fromkeys(found.layout.tokenizers)
    if tokenizer is None:
        for name in own:
            pad_token = found.pad_tokens.get(name)
            own[name] = tokenizer_for(found.vocabulary_size, starter_folder(), token, pad_token)
    return Base(
        name=str(path), noise_scheduler_config=found.scheduler_config, card=BaseCard(),
        family=family_for(found.layout, found.index), as_read=as_read, **found.parts, **own,
    )  # fmt: skip
