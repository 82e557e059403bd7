"""The one reader of saved steps and bases for generation, scores and exports.

A step holds a whole model or a LoRA. At a strength other than 1 a whole one is base + s (trained - base), where the
base is the one named in the step's settings; a LoRA is its base plus s times its factors. Other LoRA files can be added
to either. On the device a LoRA's factors are added by hooks, so that another strength, step or file changes nothing but
them; for exports they are merged into a copy.
"""

import dataclasses
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.config.generation import AddedLora
from dreambooth.errors import BaseModelError
from dreambooth.formats.json_file import read_object
from dreambooth.formats.layout import lora_file
from dreambooth.models.adapter import AdaptedModule, Adapter, Fit, fitted, merge
from dreambooth.models.base import Base, load_base, local_base, read_card
from dreambooth.models.card import BaseCard, LoraBase
from dreambooth.models.lora_file import LoraFile, read_lora
from dreambooth.models.low_rank import Factors
from dreambooth.models.manager import ModelManager
from dreambooth.models.saved_hashes import refuse_changed
from dreambooth.models.strength import WHOLE, Strength, mix, refuse_other_base
from dreambooth.models.weights import named

if TYPE_CHECKING:
    import torch

READ_SUFFIXES = (".json", ".safetensors", ".bin")


@dataclass(frozen=True)
class ModelSource:
    """A saved step or a base as requested: a folder, a file or a Hub id, and its strength.

    base: what a LoRA is added to, or a step compared with, if not what the step itself names; loras: files that are
    added to all that; the rest is as in `load_base`.
    """

    name: str
    strength: Strength = WHOLE
    vae: str | None = None
    revision: str | None = None
    variant: str | None = None
    tokenizer: str | None = None
    base: str | None = None
    loras: tuple[AddedLora, ...] = ()


def resident(
    manager: ModelManager,
    source: ModelSource,
    *,
    models_dir: Path | None = None,
    token: str | None = None,
    notice: Callable[[str], None] = lambda text: None,
) -> Base:
    """Return the models of this source on the device, for inference; others there are dropped first.

    Call it under a generation lease, from a function that returns, and releases the models, before another source is
    requested. Models whose files were deleted or replaced are not served from memory. `notice` is called with what of a
    LoRA does not fit the model. Raises BaseModelError.
    """
    step = _lora_step(source, models_dir)
    whole = dataclasses.replace(source, loras=()) if step is None else _base_source(source, step)
    key = whole, _files_of(whole.name, models_dir)
    dtype = manager.inference_dtype if manager.device.type == "cuda" else None
    base = manager.resident(key, lambda: load(whole, models_dir=models_dir, token=token, dtype=dtype))
    card = base.card
    if step is not None:
        card = read_card(str(step.parent))
        _refuse_other_weights(base, source, step, card.lora)

    def attach() -> list[Adapter]:
        # All are read before one is attached: a failure leaves the base unchanged.
        fits = _fits_of(base, source, step)
        placed = [[_placed(one, base.unet) for one in fit.modules] for fit, _, _ in fits]
        return [
            Adapter(base, modules, strength, text) for modules, (_, strength, text) in zip(placed, fits, strict=True)
        ]

    files = [(step, source.strength)] if step is not None else []
    files += [(_file_of(one), _strength_of(one)) for one in source.loras]
    stats = [(str(file), file.stat(), strength) for file, strength in files]
    adapters = manager.adapt(
        tuple((path, stat.st_mtime_ns, stat.st_size, strength) for path, stat, strength in stats), attach
    )
    for text in [adapter.notice for adapter in adapters if adapter.notice]:
        notice(text)
    return base if step is None else _named(base, source, card)


def load(
    source: ModelSource,
    *,
    models_dir: Path | None = None,
    token: str | None = None,
    dtype: "torch.dtype | None" = None,
) -> Base:
    """Return the models of this source in memory, not on the device, with a step's change at its strength.

    Raises BaseModelError for a strength of a model whose base is unknown or cannot be had. Needs both in memory
    meanwhile. `dtype` is as in `load_base`, and applies if nothing is merged: merging is done in fp32.
    """
    step = _lora_step(source, models_dir)
    if step is not None:
        whole, card = _base_source(source, step), read_card(str(step.parent))
        base = load(whole, models_dir=models_dir, token=token)
        _refuse_other_weights(base, source, step, card.lora)
        return _named(_merged(base, source, step), source, card)
    is_plain = source.strength.is_whole and not source.loras
    trained = load_base(
        source.name, vae=source.vae, revision=source.revision, variant=source.variant, tokenizer=source.tokenizer,
        token=token, models_dir=models_dir, dtype=dtype if is_plain else None,
    )  # fmt: skip
    if not source.strength.is_whole:
        named: dict[str, Any] = {"name": source.base} if source.base else _base_of(Path(source.name))
        base = load_base(**named, token=token, models_dir=models_dir)
        _weaken(trained, base, source)
        del base
        gc.collect()  # its modules hold each other in circles
        trained.record_fingerprint()
    return _merged(trained, source, None)


def load_with_base(
    source: ModelSource, *, models_dir: Path | None = None, token: str | None = None
) -> tuple[Base, Base]:
    """Return the models of a step at its strength, and those of its base, both in memory.

    Raises BaseModelError as `load` does, and if the step does not belong to that base.
    """
    step = _lora_step(source, models_dir)
    if step is not None:
        base = load(_base_source(source, step), models_dir=models_dir, token=token)
        return load(source, models_dir=models_dir, token=token), base
    trained = load(dataclasses.replace(source, strength=WHOLE), models_dir=models_dir, token=token)
    named: dict[str, Any] = {"name": source.base} if source.base else _base_of(Path(source.name))
    base = load_base(**named, token=token, models_dir=models_dir)
    for part in trained.family.layout.learning_parts:
        refuse_other_base(getattr(trained, part), getattr(base, part), source.name)
    _weaken(trained, base, source)
    return trained, base


def _weaken(trained: Base, base: Base, source: ModelSource) -> None:
    """Change trained models in place to the strength of their source."""
    for part in trained.family.layout.learning_parts:
        mix(getattr(trained, part), getattr(base, part), source.strength.of(part), source.name)


# LoRAs ---------------------------------------------------------------------------------------------------------------


def _lora_step(source: ModelSource, models_dir: Path | None) -> Path | None:
    """Return the LoRA file if this source is a saved step with one, None for a whole model."""
    folder = local_base(source.name, models_dir)
    return lora_file(folder) if folder is not None and folder.is_dir() else None


def _base_source(source: ModelSource, step: Path) -> ModelSource:
    """Return the base of a saved LoRA: the requested one, else the one its card names."""
    about = read_card(str(step.parent)).lora
    assert about is not None, "its card names the file"
    if source.base is not None:
        return ModelSource(source.base, vae=source.vae or about.vae, tokenizer=source.tokenizer or about.tokenizer)
    if not about.base or _is_gone(about.base):
        raise base_is_gone(model_name(source.name), about.base)
    return ModelSource(
        about.base, vae=source.vae or about.vae, revision=about.revision, variant=about.variant,
        tokenizer=source.tokenizer or about.tokenizer,
    )  # fmt: skip


def _refuse_other_weights(base: Base, source: ModelSource, step: Path, about: LoraBase | None) -> None:
    """Raise BaseModelError if the base is of another family, or has other weights than the one named.

    If a base is requested, other weights of the same family are intended.
    """
    name = model_name(source.name)
    if about is None or base.family.layout.family != about.family:
        raise BaseModelError(
            f'The LoRA "{name}" does not fit "{base.name}".', "That is another kind of model.",
            f"Use a base model like the one it was trained on{f', {about.base}' if about else ''}.",
        )  # fmt: skip
    if source.base is None and base.fingerprint != about.fingerprint:
        raise BaseModelError(
            f'"{about.base}" is not the model that the LoRA "{name}" was trained on.', "Its weights have changed.",
            "Put that model back, or give a base model with --base; a similar one works too.",
        )  # fmt: skip


def _merged(base: Base, source: ModelSource, step: Path | None) -> Base:
    """Return the base with a source's LoRAs merged into its weights."""
    fits = _fits_of(base, source, step)
    for fit, strength, _ in fits:
        merge(base, fit.modules, strength)
    if fits:
        base.record_fingerprint()
    return base


def _fits_of(base: Base, source: ModelSource, step: Path | None) -> list[tuple[Fit, Strength, str]]:
    """Return the factors of a source with their modules, the step's own first: their strength, and notices.

    Raises BaseModelError for files that cannot be read, or do not fit the base.
    """
    found = []
    if step is not None:
        refuse_changed(step.parent)
        lora = read_lora(step)
        fit = _fit(base, lora)
        if fit.missing:
            raise _does_not_fit(base, lora, f"It has no such layer: {fit.missing[0]}.")
        found.append((fit, source.strength, ""))
    for one in source.loras:
        lora = read_lora(_file_of(one))
        fit = _fit(base, lora)
        found.append((fit, _strength_of(one), _fit_notices(base, lora, fit)))
    return found


def _fit(base: Base, lora: LoraFile) -> Fit:
    """Return which factors of a file fit which weights; raises BaseModelError if it is for another kind of model."""
    fit = fitted(base, lora.factors)
    if fit.modules and not fit.misshapen:
        return fit
    title, width = base.family.layout.short_title, base.unet.config.cross_attention_dim
    is_for = lora.family or "another kind of model"
    if lora.text_width is not None:
        is_for += f", text {lora.text_width} wide"
    raise _does_not_fit(base, lora, f"It is for {is_for}; the model is of {title}, text {width} wide.")


def _does_not_fit(base: Base, lora: LoraFile, why: str) -> BaseModelError:
    return BaseModelError(
        f'The LoRA "{lora.path.name}" does not fit "{model_name(base.name)}".', why,
        "Choose a model like the one it was trained on.",
    )  # fmt: skip


def _fit_notices(base: Base, lora: LoraFile, fit: Fit) -> str:
    """Return notices on what of a LoRA is not used, empty if all of it is."""
    notices = []
    if fit.missing:
        notices.append(
            f'{len(fit.missing)} of the {len(lora.factors)} modules of the LoRA "{lora.path.name}" are not in '
            f'"{model_name(base.name)}", and are left out: {named(fit.missing)}.'
        )
    if lora.not_used:
        notices.append(f'The embedding in the LoRA "{lora.path.name}" is not used: its trigger word has no effect.')
    return " ".join(notices)


def _file_of(lora: AddedLora) -> Path:
    """Return the file of a LoRA; raises BaseModelError if there is none."""
    path = Path(lora.file)
    if not path.is_file():
        raise BaseModelError(f'The LoRA "{lora.file}" is not there.', "No file has that name.", "Check the path.")
    return path


def _strength_of(lora: AddedLora) -> Strength:
    return Strength(lora.strength, lora.strength)


def _placed(one: AdaptedModule, like: Any) -> AdaptedModule:
    """Return factors on the device and in the format of a part."""
    parameter = next(like.parameters())
    up, down = one.factors.up.to(parameter), one.factors.down.to(parameter)
    return AdaptedModule(one.place, Factors(up, down))


def _named(base: Base, source: ModelSource, card: BaseCard) -> Base:
    """Return the same models under the step's name, with its card; with another source if another base is requested.

    With the LoRA in them they are a whole model.
    """
    card = dataclasses.replace(card, step=None, strength="", lora=None)
    if source.base is not None:
        card = dataclasses.replace(card, source=base.card.source, licence=base.card.licence)
    return dataclasses.replace(base, name=source.name, card=card)


def base_is_gone(name: str, base: str) -> BaseModelError:
    """Return the error for a run or step whose base is no longer where it was."""
    return BaseModelError(
        f'The base of "{name}" is not here.',
        f'It was trained on "{base}".' if base else "It was trained on a model of another machine.",
        "Give its current location with --base.",
    )


def _is_gone(base: str) -> bool:
    return Path(base).is_absolute() and not Path(base).exists()


# Names and files -----------------------------------------------------------------------------------------------------


def model_name(model: str) -> str:
    """Return a model's name for image metadata: `run/400` for a step, else its folder's or its own."""
    path = Path(model)
    return f"{path.parent.name}/{path.name}" if path.name.isdecimal() else path.name


def _files_of(name: str, models_dir: Path | None) -> tuple[tuple[str, int, int], ...]:
    """Return path, time and size of the files that a model is read from, as its identity; empty for a Hub id."""
    place = local_base(name, models_dir)
    if place is None:
        if Path(name).is_absolute():
            raise BaseModelError(f'"{model_name(name)}" is not there.', "Its files are gone.", "Choose another model.")
        return ()
    files = [place] if place.is_file() else [file for file in place.glob("*/*") if file.suffix in READ_SUFFIXES]
    stats = [(str(file), file.stat()) for file in sorted(files)]
    return tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats)


def _base_of(model_dir: Path) -> dict[str, Any]:
    """Return the base of a step according to its settings."""
    try:
        settings = read_object(model_dir / "args.json")
        found = {name: settings.get(name) for name in ("revision", "variant")}
        base = str(settings["pretrained_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        raise BaseModelError(
            f"It is not known what {model_dir} was trained from.", "It contains no args.json.",
            "Choose a step of a run.",
        ) from None  # fmt: skip
    if _is_gone(base):
        raise base_is_gone(model_name(str(model_dir)), base)
    return {"name": base, **found}
