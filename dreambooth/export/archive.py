"""Folders as one archive to download, uncompressed, because weights and images do not shrink.

The same files give the same bytes, so that an interrupted download can be continued.
"""

import functools
import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dreambooth.durable import new_file, sweep_unfinished_beside
from dreambooth.errors import ExportError
from dreambooth.events import OnProgress
from dreambooth.export.disk_room import refuse_full_disk
from dreambooth.export.lora_file import sidecars
from dreambooth.export.model_card import card_json, settings_json
from dreambooth.formats.layout import CARD, lora_file, saved_step_kind
from dreambooth.models.saved_hashes import refuse_other_hash
from dreambooth.records.workspace import RunFolder

READ_BYTES = 1 << 20
# Files for users to put into their own folders.
EXPORT_SUFFIXES = (".safetensors", ".ckpt", ".zip")
# The earliest date the format has: files' dates differ from copy to copy.
NO_DATE = (1980, 1, 1, 0, 0, 0)


def zip_model(model_dir: Path, out_path: Path, on_progress: OnProgress | None = None) -> Path:
    """Write a step's folder without hidden files; raises ExportError if nothing is saved in it.

    Its settings and card are included without paths of this machine; a LoRA gets its sidecar files.
    """
    if saved_step_kind(model_dir) is None:
        raise ExportError(
            f'"{model_dir}" is not a saved step.', "It contains neither a model nor a LoRA.", "Name a step folder."
        )
    files: dict[str, Path | bytes] = {file.relative_to(model_dir).as_posix(): file for file in model_files(model_dir)}
    if "args.json" in files:
        files["args.json"] = settings_json(model_dir).encode()
    if (file := lora_file(model_dir)) is not None:
        files |= {CARD: card_json(model_dir).encode(), **sidecars(file.stem, model_dir)}
    return zip_files(
        files, out_path, on_progress, on_file=functools.partial(refuse_other_hash, model_dir, error=ExportError)
    )


def zip_samples(run: RunFolder, out_path: Path, on_progress: OnProgress | None = None) -> Path:
    """Write a run's samples as `<step>/<image>`; raises ExportError if it has none."""
    found = {f"{step}/{file.name}": file for step, files in run.samples().items() for file in files}
    if not found:
        raise ExportError(f"{run.name} has no sample pictures.", "None were asked for, or none made yet.", "")
    return zip_files(found, out_path, on_progress)


def zip_pictures(files: Sequence[Path], out_path: Path) -> Path:
    """Write images as one archive, under their folder and name."""
    return zip_files({f"{path.parent.name}/{path.name}": path for path in files}, out_path)


def model_files(folder: Path) -> list[Path]:
    """Return the files of a folder that belong in its archive: all but hidden ones and links."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.is_symlink()]
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def zip_files(
    files: Mapping[str, Path | bytes],
    out_path: Path,
    on_progress: OnProgress | None = None,
    *,
    on_file: Callable[[str, str], None] = lambda name, sha256: None,
) -> Path:
    """Write these files, or contents, under these names; raises ExportError if the disk is too full.

    `on_file` gets the name and SHA-256 of each file that was read; if it raises, no archive is left.
    """
    sweep_unfinished_beside(out_path, EXPORT_SUFFIXES)
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    total = sum(sizes.values())
    refuse_full_disk(out_path, total)
    done = 0
    with new_file(out_path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, file in files.items():
            about = zipfile.ZipInfo(name, NO_DATE)
            about.external_attr = 0o644 << 16
            content = io.BytesIO(file) if isinstance(file, bytes) else file.open("rb")
            with content as source, archive.open(about, "w", force_zip64=True) as target:
                digest = hashlib.sha256()
                while block := source.read(READ_BYTES):
                    digest.update(block)
                    target.write(block)
            on_file(name, digest.hexdigest())
            done += sizes[name]
            if on_progress is not None:
                on_progress(done, total)
    return out_path
