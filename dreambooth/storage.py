"""What takes how much of the disk, and what of it can go: told first, then deleted, and nothing but what was told.

Samples, logs, settings and whatever a person put beside them are never deleted here.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from dreambooth.errors import RunFolderError
from dreambooth.runlog import is_owned
from dreambooth.workspace import RunFolder, Workspace, held_lock, is_locked, remove_folder, unfinished_in

Choice = Literal["intermediate weights", "exact states", "class images", "exports", "pictures", "caches"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
# What is lost with each, so that nobody has to guess.
COST: dict[Choice, str] = {
    "intermediate weights": "All saved models of a run but the newest; their samples and settings stay.",
    "exact states": "Runs that were ended before their last step cannot be resumed any more.",
    "class images": "They are generated again when a training wants them.",
    "exports": "Files for other tools; they are made again from the saved models.",
    "pictures": "What the Generate tab made.",
    "caches": "What broken off work and closed pages left behind; nothing is lost.",
}
# Every name that a saved model consists of; what else lies in its folder is the user's.
WEIGHT_FILES = (
    "model_index.json", "card.json", "scheduler/scheduler_config.json",
    *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder")),
    *(f"{part}/diffusion_pytorch_model*.safetensors*" for part in ("unet", "vae")),
    "text_encoder/model*.safetensors*",
    *(f"tokenizer/{name}" for name in ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
                                       "special_tokens_map.json", "added_tokens.json")),
)  # fmt: skip


@dataclass(frozen=True)
class Usage:
    """One thing on the disk: what it is, its bytes, and by which choice it can go, if by any."""

    kind: str
    name: str
    num_bytes: int
    choice: Choice | None = None


@dataclass(frozen=True)
class Doomed:
    """One file or folder that would be deleted, and the run that it belongs to."""

    path: Path
    num_bytes: int
    run: RunFolder | None = None


@dataclass(frozen=True)
class Plan:
    """Exactly what would be deleted, and in sentences what stays although it was asked for."""

    doomed: tuple[Doomed, ...]
    kept: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Return how much becomes free."""
        return sum(one.num_bytes for one in self.doomed)


# Looking -------------------------------------------------------------------------------------------------------------


def usage(workspace: Workspace) -> list[Usage]:
    """Return what lies in the data folder and in the Hub's cache, the largest first."""
    found = [
        *(Usage("base", entry.name, size_of(entry)) for entry in _entries(workspace.models_dir)),
        *(Usage("base, in the Hub's cache", name, size) for name, size in _cached_bases()),
        *(
            Usage("class images", one.name, size_of(one), "class images")
            for one in _entries(workspace.class_images_dir)
        ),
        *(Usage("photos", entry.name, size_of(entry)) for entry in _entries(workspace.datasets_dir)),
        *(Usage("export", entry.name, size_of(entry), "exports") for entry in _entries(workspace.exports_dir)),
        Usage("pictures", "of the Generate tab", size_of(workspace.pictures_dir), "pictures"),
        Usage("caches", "left behind", sum(size_of(path) for path in _leftovers(workspace)), "caches"),
    ]
    for run in local_runs(workspace):
        found += _usage_of_run(run)
    return sorted((one for one in found if one.num_bytes), key=lambda one: one.num_bytes, reverse=True)


def _usage_of_run(run: RunFolder) -> Iterator[Usage]:
    steps = run.steps()
    for step in steps:
        choice: Choice | None = None if step == steps[-1] else "intermediate weights"
        yield Usage("saved model", f"{run.name}, step {step}", sum(map(size_of, weight_files(run, step))), choice)
    yield Usage("exact states", run.name, size_of(run.checkpoints), "exact states")
    rest = size_of(run.path) - size_of(run.checkpoints)
    rest -= sum(size_of(file) for step in steps for file in weight_files(run, step))
    yield Usage("samples, logs and the rest", run.name, rest)


def local_runs(workspace: Workspace) -> list[RunFolder]:
    """Return the runs on this machine's disk; those that lie on a Drive alone are not ours to tidy."""
    return [run for run in workspace.runs() if run.path.is_relative_to(workspace.data_dir)]


def size_of(path: Path) -> int:
    """Return the bytes of a file or of all files in a folder, each once; links are not followed."""
    seen: dict[tuple[int, int], int] = {}
    # What vanishes meanwhile takes nothing.
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        about = path.lstat()
        if not path.is_dir() or path.is_symlink():
            return about.st_size
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                about = Path(folder, name).lstat()
                seen[about.st_dev, about.st_ino] = about.st_size
    return sum(seen.values())


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _cached_bases() -> list[tuple[str, int]]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return []
    return sorted((repo.repo_id, repo.size_on_disk) for repo in cache.repos if repo.repo_type == "model")


def _leftovers(workspace: Workspace) -> list[Path]:
    """Return pages' folders of servers that are no more, unfinished writes, and states that were set aside."""
    pages = [page for page in _entries(workspace.room("page")) if page.is_dir() and not is_locked(page / "lock")]
    bad = [state for run in local_runs(workspace) for state in sorted(run.checkpoints.glob(".bad-*"))]
    inside = {*pages, *bad}
    unfinished = [path for path in unfinished_in(workspace.data_dir) if not inside & set(path.parents)]
    return [*pages, *bad, *unfinished]


# Planning ------------------------------------------------------------------------------------------------------------


def plan(workspace: Workspace, choices: Iterable[Choice], runs: Sequence[RunFolder] | None = None) -> Plan:
    """Return what these choices would delete, of all runs of the data folder or of the given ones alone."""
    wanted, doomed, kept = set(choices), list[Doomed](), list[str]()
    for run in local_runs(workspace) if runs is None else runs:
        if wanted & {"intermediate weights", "exact states"}:
            if is_owned(run):
                kept.append(f"{run.name} is at work or in line: nothing of it is touched.")
                continue
            doomed += _doomed_of_run(run, wanted)
    if runs is None:
        rooms = {"class images": workspace.class_images_dir, "exports": workspace.exports_dir,
                 "pictures": workspace.pictures_dir}  # fmt: skip
        if "class images" in wanted and (busy := [run.name for run in local_runs(workspace) if is_owned(run)]):
            wanted.remove("class images")
            kept.append(f"Class images stay while {busy[0]} trains.")
        doomed += [Doomed(entry, size_of(entry)) for name, room in rooms.items() if name in wanted
                   for entry in _entries(room)]  # fmt: skip
        if "caches" in wanted:
            doomed += [Doomed(path, size_of(path)) for path in _leftovers(workspace)]
    return Plan(tuple(doomed), tuple(kept))


def _doomed_of_run(run: RunFolder, wanted: set[Choice]) -> Iterator[Doomed]:
    if "intermediate weights" in wanted:
        for step in run.steps()[:-1]:
            yield from (Doomed(file, size_of(file), run) for file in weight_files(run, step))
    if "exact states" in wanted and run.checkpoints.is_dir():
        yield from (Doomed(run.checkpoints / str(step), size_of(run.checkpoints / str(step)), run)
                    for step in run.checkpoint_steps())  # fmt: skip


def weight_files(run: RunFolder, step: int) -> list[Path]:
    """Return the files of a step's model, `model_index.json` first: without it nothing takes the rest for a model."""
    folder = run.step_folder(step)
    found = [file for pattern in WEIGHT_FILES for file in sorted(folder.glob(pattern))]
    return [file for file in found if file.is_file() and not file.is_symlink() and not file.parent.is_symlink()]


# Deleting ------------------------------------------------------------------------------------------------------------


def carry_out(workspace: Workspace, agreed: Plan) -> int:
    """Delete what the plan names, and return the bytes freed; a run that was taken up since then is passed over."""
    freed = 0
    for run in dict.fromkeys(one.run for one in agreed.doomed):
        of_run = [one for one in agreed.doomed if one.run == run]
        with contextlib.ExitStack() as stack:
            if run is not None:
                try:
                    stack.enter_context(held_lock(run.lock_path))
                except BlockingIOError:
                    continue
            freed += sum(_deleted(one, run.path if run is not None else workspace.data_dir) for one in of_run)
    return freed


def _deleted(one: Doomed, inside: Path) -> int:
    """Delete one entry and return its bytes; one that lies elsewhere by now, behind a link, is left."""
    if not one.path.exists() or not one.path.resolve().is_relative_to(inside.resolve()) or one.path.is_symlink():
        return 0
    if one.path.is_dir():
        remove_folder(one.path)
    else:
        one.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something of the user's is in it
            one.path.parent.rmdir()
    return one.num_bytes


def remove_weights(run: RunFolder, step: int) -> int:
    """Delete a step's model, keeping its samples, settings and what is not ours; returns the bytes freed."""
    return sum(_deleted(Doomed(file, size_of(file)), run.path) for file in weight_files(run, step))


def run_to_clean(path: Path) -> RunFolder:
    """Return the run at a path; raises RunFolderError where there is none, the seed script's own included."""
    run = RunFolder(path)
    if not run.steps() and not run.config_path.exists():
        raise RunFolderError(f"{path} holds no run.", "No step folder with a model is in it.", "Name a run's folder.")
    return run
