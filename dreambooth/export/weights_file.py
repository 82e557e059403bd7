"""One file of a saved step's weights, of the requested kind: a checkpoint or a LoRA, whatever the step is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from dreambooth.config.limits import as_written
from dreambooth.errors import ConfigError, FieldProblem
from dreambooth.events import OnProgress, unwatched
from dreambooth.export.extraction import LoraSize, extract_lora
from dreambooth.export.saved_lora import convert_lora
from dreambooth.export.single_file import Precision
from dreambooth.export.verify import convert_verified
from dreambooth.formats.layout import lora_file
from dreambooth.formats.lora_keys import LORA_TARGETS, LoraTargets
from dreambooth.models.strength import WHOLE, Strength

FileKind = Literal["own", "checkpoint", "lora"]
FILE_KINDS: tuple[FileKind, ...] = get_args(FileKind)


@dataclass(frozen=True)
class WrittenFile:
    """A file that was written and read back, and the result in sentences."""

    path: Path
    verdict: str


def is_lora_file(step: Path, kind: FileKind) -> bool:
    """Return whether a step's file of this kind is a LoRA; `own` is the kind of the step itself."""
    return kind == "lora" or (kind == "own" and lora_file(step) is not None)


def file_kind(name: str) -> FileKind:
    """Return the kind of this name; raises ConfigError for an unknown one."""
    for kind in FILE_KINDS:
        if name == kind:
            return kind
    raise ConfigError([FieldProblem("kind", f"is {as_written(name)}: it must be one of {', '.join(FILE_KINDS)}.")])


def lora_targets(name: str) -> LoraTargets:
    """Return the targets of this name; raises ConfigError for unknown ones."""
    for targets in LORA_TARGETS:
        if name == targets:
            return targets
    message = f"is {as_written(name)}: it must be one of {', '.join(LORA_TARGETS)}."
    raise ConfigError([FieldProblem("lora_targets", message)])


def write_weights_file(
    step: Path,
    out_path: Path,
    *,
    kind: FileKind = "own",
    size: LoraSize | None = None,
    targets: LoraTargets = "linear",
    precision: Precision | None = None,
    strength: Strength = WHOLE,
    base: str | None = None,
    models_dir: Path | None = None,
    token: str | None = None,
    on_progress: OnProgress = unwatched,
) -> WrittenFile:
    """Write a step's weights as one verified file.

    size: of an extracted LoRA; targets: for a whole model only; base: what a LoRA is merged into, or the step was
    trained from, if not the model the step names. Raises what `convert_lora`, `extract_lora` and `convert_verified`
    raise.
    """
    options: dict[str, Any] = {
        "precision": precision, "strength": strength, "base": base, "models_dir": models_dir, "token": token,
    }  # fmt: skip
    is_saved_lora = lora_file(step) is not None
    if not is_lora_file(step, kind):
        verdict = convert_verified(step, out_path, on_progress=on_progress, **options)
        return WrittenFile(verdict.path, str(verdict))
    if is_saved_lora and size is None:
        return WrittenFile(out_path, str(convert_lora(step, out_path, **options)))
    chosen = None if is_saved_lora else targets
    extracted = extract_lora(step, out_path, size=size, targets=chosen, on_progress=on_progress, **options)
    return WrittenFile(extracted.path, str(extracted))
