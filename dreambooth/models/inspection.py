"""Describes a weights file to the user: a LoRA, a whole model, an embedding or something else.

Reads only the file, and for a LoRA the files beside it; no base is loaded. A LoRA's layers are compared with those of
its family's models according to their configuration.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.errors import BaseModelError
from dreambooth.formats.json_file import read_object
from dreambooth.formats.layout import CARD, LAYOUTS, SD1, Layout, family_of, family_of_names, lora_file
from dreambooth.formats.ldm import UNET_PREFIX, VAE_PREFIX
from dreambooth.formats.lora_keys import PREFIXES, lora_key, part_of
from dreambooth.formats.lora_kinds import has_lora_keys, lora_family, other_adapter
from dreambooth.formats.other_kinds import is_whole_model, kind_of_file
from dreambooth.formats.text_files import printable
from dreambooth.models.adapter import layers_by_name
from dreambooth.models.base import quiet_libraries
from dreambooth.models.card import card_of
from dreambooth.models.family import usual_configs
from dreambooth.models.lora_file import HASH_DIGITS, LoraFile, read_lora, tensors_hash
from dreambooth.models.saved_hashes import file_hash
from dreambooth.models.weights import file_metadata, named, read_weights
from dreambooth.records.workspace import newest_step_folder

if TYPE_CHECKING:
    from torch import Tensor

MAX_TEXT = 200
NUM_TAGS = 8
DIALECTS = {"kohya": "kohya (sd-scripts, LyCORIS)", "diffusers": "diffusers", "peft": "peft"}
# Header entries that say how a LoRA was made, with their labels.
TRAINING = {
    "modelspec.title": "Title", "modelspec.author": "Author", "modelspec.date": "Date", "modelspec.license": "Licence",
    "ss_sd_model_name": "Trained on", "ss_num_train_images": "Training images", "ss_resolution": "Resolution",
    "ss_steps": "Steps", "ss_epoch": "Epoch", "ss_learning_rate": "Learning rate", "ss_unet_lr": "UNet learning rate",
    "ss_text_encoder_lr": "Text encoder learning rate", "ss_optimizer": "Optimizer", "ss_clip_skip": "CLIP skip",
    "ss_seed": "Seed", "modelspec.prediction_type": "Prediction", "ss_training_comment": "Comment",
}  # fmt: skip

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class FileReport:
    """What a file is in a few words, further properties as labelled texts, and why it cannot be used here.

    problem: empty for a LoRA that can be added to a model, and for a whole model.
    """

    path: Path
    what: str
    rows: tuple[tuple[str, str], ...]
    problem: str = ""


def inspect_file(path: Path) -> FileReport:
    """Return what a file, or a run's or model's folder, is; raises BaseModelError if it cannot be read at all."""
    if path.is_dir():
        step = newest_step_folder(path)
        if (saved := lora_file(step)) is None:
            return FileReport(step, f"a diffusers folder of {LAYOUTS[family_of(step)].title}", ())
        path = saved
    if not path.is_file():
        raise BaseModelError(f'"{path}" is not there.', "No file has that name.", "Check the path.")
    weights = read_weights(path)
    rows = [("File", f"{path.name}, {path.stat().st_size / 1e6:,.1f} MB"), ("Number format", _formats(weights))]
    if has_lora_keys(weights) or other_adapter(weights) is not None:
        return _lora_report(path, weights, rows)
    return _other_report(path, weights, rows)


# LoRAs ---------------------------------------------------------------------------------------------------------------


def _lora_report(path: Path, weights: "Mapping[str, Tensor]", rows: Rows) -> FileReport:
    """Return the report of a LoRA, or of an adapter that is not supported."""
    metadata = file_metadata(path)
    rows += _identity(path, metadata)
    try:
        lora = read_lora(path)
    except BaseModelError as error:
        family, _ = lora_family(weights, {}, metadata)
        what = other_adapter(weights) or "a LoRA"
        rows += [("For", family)] if family else []
        return FileReport(path, what, tuple(rows + _words(path, metadata) + _training(metadata)), str(error))
    has_middle = any(key is not None and key.leaf == "mid" for key in map(lora_key, weights))
    is_locon = any(math.prod(one.shape[2:]) > 1 for one in lora.factors.values())
    what = "a LoCon (a LoRA with convolutions)" if is_locon else "a LoRA"
    dialects = ", ".join(DIALECTS[one] for one in lora.dialects) + (", convolutions in three steps" * has_middle)
    width = "" if lora.text_width is None else f" (text {lora.text_width} wide)"
    rows += [("Names", dialects), ("For", f"{lora.family or 'not said'}{width}"), *_modules(lora), *_changes(lora)]
    if lora_file(path.parent) == path and (about := card_of(path.with_name(CARD)).lora) is not None:
        rows.append(("Base model", _text(about.base)))
    if lora.not_used:
        rows.append(("Not used here", f"{len(lora.not_used)} tensors of an embedding"))
    return FileReport(path, what, tuple(rows + _words(path, metadata) + _training(metadata)))


def _identity(path: Path, metadata: Mapping[str, str]) -> Rows:
    """Return a LoRA's name and hashes."""
    tensors, known = tensors_hash(path), metadata.get("sshs_model_hash", "")
    state = (
        "" if known in ("", tensors) else f" (its header says {_text(known[:HASH_DIGITS])}, which is another file's)"
    )
    rows = [("Name in prompts", _text(metadata.get("ss_output_name") or path.stem))]
    return [*rows, ("Hash (AutoV3)", tensors[:HASH_DIGITS] + state), ("SHA-256", file_hash(path))]


def _modules(lora: LoraFile) -> Rows:
    """Return which modules a LoRA has, whether the family's models have them, and their ranks and scales."""
    counts = Counter(part_of(name) for name in lora.factors)
    names = {part: part.replace("unet", "UNet").replace("_", " ") for part in PREFIXES}
    parts = ", ".join(f"{counts[part]} in {name}" for part, name in names.items() if counts[part])
    layout = next((one for one in LAYOUTS.values() if one.short_title == lora.family), SD1)
    rows = [
        ("Modules", f"{len(lora.factors)}: {parts}"),
        (f"Of {layout.short_title}'s", _found_in(lora, _layers_of(layout))),
    ]
    ranks = [len(one.down) for one in lora.factors.values()]
    alphas = lora.alphas or {}
    scales = [1.0 if alpha is None else alpha / rank for alpha, rank in zip(alphas.values(), ranks, strict=True)]
    known = [alpha for alpha in alphas.values() if alpha is not None]
    alpha = _range(known) if known else "not in the file: the rank is meant"
    return [*rows, ("Rank", _range(ranks)), ("Alpha", f"{alpha}; alpha / rank: {_range(scales)}")]


def _found_in(lora: LoraFile, layers: Mapping[str, tuple[int, ...]]) -> str:
    """Return how many of a LoRA's modules are among these layers, and whether their shapes match."""
    missing = [name for name in lora.factors if name not in layers]
    found = [name for name in lora.factors if name in layers]
    # A projection may be linear or a 1x1 convolution.
    fitting = sum(
        one.shape[:2] == layers[name][:2] and math.prod(one.shape) == math.prod(layers[name])
        for name, one in lora.factors.items() if name in layers
    )  # fmt: skip
    text = f"{len(found)} of {len(lora.factors)} by name, {fitting} by shape as well"
    return f"{text}; not: {named(missing)}" if missing else text


def _changes(lora: LoraFile) -> Rows:
    """Return how large the changes of the weights are; numbers that are not finite are refused on reading."""
    sizes = {name: _norm(one.up.flatten(1), one.down.flatten(1)) for name, one in lora.factors.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    zero = [name for name, size in sizes.items() if size == 0]
    text = f"all numbers finite; largest {sizes[largest]:.3g} (norm), in {largest}"
    return [("Changes", f"{text}; none at all in {len(zero)} of {len(sizes)} modules" if zero else text)]


def _norm(up: "Tensor", down: "Tensor") -> float:
    """Return the norm of a product from its factors' Gram matrices, which are only as large as the rank."""
    up, down = up.double(), down.double()
    return math.sqrt(max(float(((up.T @ up) * (down @ down.T)).sum()), 0.0))


def _words(path: Path, metadata: Mapping[str, str]) -> Rows:
    """Return the trigger words: from the header, the file beside it, and the most frequent captions."""
    rows = []
    if phrase := metadata.get("modelspec.trigger_phrase"):
        rows.append(("Trigger words", _text(phrase)))
    try:
        beside = read_object(path.with_suffix(".json"))
    except (OSError, ValueError):
        beside = {}
    rows += [
        (label, _text(f"{beside[name]}")) for name, label in (
            ("activation text", f"Trigger words ({path.stem}.json)"), ("preferred weight", "Preferred strength"),
        ) if beside.get(name)
    ]  # fmt: skip
    if tags := _commonest_tags(metadata.get("ss_tag_frequency", "")):
        rows.append(("Most frequent in captions", _text(", ".join(tags))))
    return rows


def _commonest_tags(text: str) -> list[str]:
    """Return the most frequent captions or tags, `{folder: {tag: count}}`; empty if this cannot be read."""
    counts: Counter[str] = Counter()
    try:
        for of_folder in json.loads(text or "{}").values():
            for tag, count in of_folder.items():
                counts[str(tag).strip()] += int(count)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return []
    return [tag for tag, _ in counts.most_common(NUM_TAGS)]


def _training(metadata: Mapping[str, str]) -> Rows:
    rows = ((label, metadata.get(name, "")) for name, label in TRAINING.items())
    return [(label, _text(text)) for label, text in rows if text not in ("", "None")]


@cache
def _layers_of(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Return the layers that a LoRA can change in a family's models, by name, with the shapes of their weights."""
    quiet_libraries()
    import transformers
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel

    configs = usual_configs(layout)
    with init_empty_weights():
        parts: dict[str, Any] = {"unet": UNet2DConditionModel.from_config(dict(configs["unet"]))}
        for part in layout.parts:
            if part.name in layout.text_encoders:
                kind = getattr(transformers, part.class_name)
                parts[part.name] = kind(transformers.CLIPTextConfig(**configs[part.name]))
    return {name: shape for name, (_, shape) in layers_by_name(parts).items()}


# Other files ---------------------------------------------------------------------------------------------------------


def _other_report(path: Path, weights: "Mapping[str, Tensor]", rows: Rows) -> FileReport:
    """Return the report of a whole model or any other file."""
    metadata = file_metadata(path)
    rows += [("Tensors", f"{len(weights):,}"), ("SHA-256", file_hash(path))]
    found = kind_of_file({name: tensor.shape for name, tensor in weights.items()})
    if found is not None or not is_whole_model(weights):
        kind, todo = found or ("a file of weights of an unknown kind", "")
        rows.append(("Begins with", _text(min(weights, default="nothing"))))
        if "embedding" in kind:
            rows.append(("Vectors", ", ".join(" x ".join(map(str, tensor.shape)) for tensor in weights.values())))
        return FileReport(path, kind.rstrip(","), tuple(rows + _training(metadata)), f"It cannot be used here. {todo}")
    layout: Layout = LAYOUTS[family_of_names(weights)]
    parts = Counter(_part_of(name) for name in weights)
    rows.append(("Parts", ", ".join(f"{part} {count:,} tensors" for part, count in parts.most_common())))
    return FileReport(path, f"a whole model of {layout.title}, in one file", tuple(rows + _training(metadata)))


def _part_of(name: str) -> str:
    """Return the part of a model to which a tensor of the original layout belongs."""
    prefixes = {UNET_PREFIX: "UNet", VAE_PREFIX: "VAE", "cond_stage_model.": "text encoder"}
    return next((part for prefix, part in prefixes.items() if name.startswith(prefix)), "others")


# Texts ---------------------------------------------------------------------------------------------------------------


def _formats(weights: "Mapping[str, Tensor]") -> str:
    counts = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in weights.values())
    return ", ".join(name if len(counts) == 1 else f"{name} ({count:,})" for name, count in counts.most_common())


def _range(numbers: Iterable[float]) -> str:
    found = sorted(set(numbers))
    return f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}"


def _text(value: str) -> str:
    """Return a text from a file in a displayable form: one line of limited length."""
    line = printable(" ".join(value.split()))
    return line if len(line) <= MAX_TEXT else f"{line[:MAX_TEXT]}..."
