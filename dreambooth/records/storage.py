"""Disk usage, and what of it can be deleted: listed first, then deleted exactly as listed.

Samples, logs, settings and whatever a person put beside them are never deleted here.
"""

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from dreambooth.config.limits import as_written
from dreambooth.durable import held_lock, is_locked, remove_folder, sync, unfinished_in
from dreambooth.errors import RunFolderError
from dreambooth.formats.json_file import read_object
from dreambooth.formats.layout import CARD, MODEL_INDEX, step_contents
from dreambooth.records.runlog import is_owned, read_state
from dreambooth.records.saved_weights import entries, is_plain_file, saved_steps, settings_in, weight_files
from dreambooth.records.workspace import RunFolder, Workspace

Choice = Literal[
    "intermediate weights", "exact states", "states to resume from", "class images", "exports", "pictures", "caches"
]
CHOICES: tuple[Choice, ...] = get_args(Choice)
# File names that this program uses: others in the same folders are not ours.
CLASS_FOLDER, CLASS_IMAGE = re.compile(r"[0-9a-f]{16}"), re.compile(r"[0-9]{5}\.png")
PICTURE = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9]+-([0-9]+|grid)\.png")
EXPORT_SUFFIXES = (".safetensors", ".ckpt", ".zip")
# A run with a folder elsewhere cannot be seen from here; while it generates or reads class images, it may need these.
RESTED_S = 3600
# A server creates its folder, then locks it.
NEWBORN_S = 60
# What is lost with each, for the user to know.
COST: dict[Choice, str] = {
    "intermediate weights": "All saved models of a run except the newest; their samples and settings stay.",
    "exact states": "Those of finished runs. More steps can then be trained only from a saved model.",
    "states to resume from": "Runs stopped before their last step can then no longer be resumed.",
    "class images": "They are generated again when a training needs them.",
    "exports": "Exported files whose saved models are still here, so that they can be exported again.",
    "pictures": "Pictures made on the Generate tab.",
    "caches": "Leftovers from interrupted work and closed pages; nothing is lost.",
}
OF_RUNS: frozenset[Choice] = frozenset({"intermediate weights", "exact states", "states to resume from"})


@dataclass(frozen=True)
class Usage:
    """One item on disk: what it is, its bytes, and the choice that deletes it, if any."""

    kind: str
    name: str
    num_bytes: int
    choice: Choice | None = None


@dataclass(frozen=True)
class Deletion:
    """One file or folder that would be deleted, and the run it belongs to."""

    path: Path
    num_bytes: int
    run: RunFolder | None = None


@dataclass(frozen=True)
class Plan:
    """Exactly what would be deleted, sentences on what stays although it was selected, and what was selected."""

    deletions: tuple[Deletion, ...]
    kept: tuple[str, ...]
    choices: tuple[Choice, ...] = ()
    runs: tuple[RunFolder, ...] | None = None

    @property
    def num_bytes(self) -> int:
        """Return how many bytes would be freed."""
        return sum(one.num_bytes for one in self.deletions)


# Looking -------------------------------------------------------------------------------------------------------------


def usage(workspace: Workspace) -> list[Usage]:
    """Return the contents of the data folder and of the Hub's cache, the largest first; each file counts once."""
    seen: set[tuple[int, int]] = set()

    def room(kind: str, folder: Path, choice: Choice | None = None) -> list[Usage]:
        return [Usage(kind, _printable(entry.name), size_of(entry, seen), choice) for entry in entries(folder)]

    left_bytes = sum(size_of(path, seen) for path in _leftovers(workspace))
    found = [
        Usage("caches", "left behind", left_bytes, "caches"),
        *room("base", workspace.models_dir),
        *room("LoRA file", workspace.loras_dir),
        *(Usage("base, in the Hub's cache", name, size) for name, size in _cached_bases()),
        *room("class images", workspace.class_images_dir, "class images"),
        *room("photos", workspace.datasets_dir),
        *room("export", workspace.exports_dir, "exports"),
        Usage("pictures", "of the Generate tab", size_of(workspace.pictures_dir, seen), "pictures"),
    ]
    for run in local_runs(workspace):
        found += _usage_of_run(run, seen)
    return sorted((one for one in found if one.num_bytes), key=lambda one: one.num_bytes, reverse=True)


def _usage_of_run(run: RunFolder, seen: set[tuple[int, int]]) -> Iterator[Usage]:
    saved = saved_steps(run)
    newest = max((step for step in saved if step in run.steps()), default=None)
    for step in saved:
        choice: Choice | None = None if step == newest else "intermediate weights"
        num_bytes = sum(size_of(file, seen) for file in weight_files(run, step))
        # An incomplete step contains nothing that has a name.
        contents = step_contents(run.step_folder(step))
        name = f"{run.name}, step {step}" + (f" ({contents})" if contents else "")
        yield Usage("saved model", name, num_bytes, choice)
    states: Choice = "exact states" if read_state(run).status == "done" else "states to resume from"
    yield Usage("exact states", run.name, size_of(run.checkpoints, seen), states)
    yield Usage("samples, logs and the rest", run.name, size_of(run.path, seen))


def local_runs(workspace: Workspace) -> list[RunFolder]:
    """Return the runs on this machine's disk; those only on a Drive, or behind a link, are not ours to clean."""
    return [run for run in workspace.runs() if _is_plainly_in(workspace.data_dir, run.path)]


def size_of(path: Path, seen: set[tuple[int, int]] | None = None) -> int:
    """Return the bytes of a file or of all files in a folder, each once and only those not in `seen`; no links."""
    seen = set() if seen is None else seen
    if path.is_dir() and not path.is_symlink():
        return sum(_file_bytes(Path(folder, name), seen) for folder, _, names in os.walk(path) for name in names)
    return _file_bytes(path, seen)


def _file_bytes(path: Path, seen: set[tuple[int, int]]) -> int:
    try:
        about = path.lstat()
    except (FileNotFoundError, NotADirectoryError):  # what vanishes meanwhile takes nothing
        return 0
    if (about.st_dev, about.st_ino) in seen:
        return 0
    seen.add((about.st_dev, about.st_ino))
    return about.st_size


def _printable(name: str) -> str:
    """Return the name in a form safe for a terminal: a file's name can contain any character."""
    return name if name.isprintable() else ascii(name)[1:-1]


def _is_plainly_in(root: Path, path: Path) -> bool:
    """Return whether a folder exists below the root, with no link on the way to it."""
    if not path.is_relative_to(root) or ".." in path.parts:
        return False
    way = [path, *path.parents]
    return all(folder.is_dir() and not folder.is_symlink() for folder in way[: way.index(root)])


def _cached_bases() -> list[tuple[str, int]]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir()
    except (CacheNotFound, ValueError):  # there is none, or a file in its place
        return []
    return sorted((repo.repo_id, repo.size_on_disk) for repo in cache.repos if repo.repo_type == "model")


def _leftovers(workspace: Workspace) -> list[Path]:
    """Return folders of pages whose servers are gone, unfinished writes, and states that were set aside."""
    pages = [page for page in entries(workspace.room("page")) if _is_left(page)]
    bad = [state for run in local_runs(workspace) for state in sorted(run.checkpoints.glob(".bad-*"))]
    bad = [state for state in bad if _is_plainly_in(workspace.data_dir, state)]
    inside = {*pages, *bad}
    unfinished = [path for path in unfinished_in(workspace.data_dir) if not inside & set(path.parents)]
    return [*pages, *bad, *unfinished]


def _is_left(page: Path) -> bool:
    if not page.is_dir() or page.is_symlink() or is_locked(page / "lock"):
        return False
    return (page / "lock").exists() or _age_s(page) > NEWBORN_S


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


# Planning ------------------------------------------------------------------------------------------------------------


def plan(workspace: Workspace, choices: Iterable[Choice], runs: Sequence[RunFolder] | None = None) -> Plan:
    """Return what these choices would delete, of all runs of the data folder or of the given ones."""
    wanted, deletions, kept = frozenset(choices), list[Deletion](), list[str]()
    for run in local_runs(workspace) if runs is None else runs:
        if wanted & OF_RUNS and is_owned(run):
            kept.append(f"{run.name} is running or queued: nothing of it will be deleted.")
        else:
            deletions += _deletions_of_run(run, wanted)
    if runs is None and "class images" in wanted:
        _plan_class_images(workspace, deletions, kept)
    if runs is None and "exports" in wanted:
        _plan_exports(workspace, deletions, kept)
    if runs is None and "pictures" in wanted:
        found = [workspace.pictures_dir, *(path for path in entries(workspace.pictures_dir) if path.is_dir())]
        files = [file for folder in found for file in entries(folder) if PICTURE.fullmatch(file.name)]
        deletions += [Deletion(file, size_of(file)) for file in files if is_plain_file(file)]
    if runs is None and "caches" in wanted:
        deletions += [Deletion(path, size_of(path)) for path in _leftovers(workspace)]
    return Plan(tuple(deletions), tuple(kept), tuple(sorted(wanted)), None if runs is None else tuple(runs))


def _deletions_of_run(run: RunFolder, wanted: frozenset[Choice]) -> Iterator[Deletion]:
    if "intermediate weights" in wanted:
        saved = saved_steps(run)
        newest = max((step for step in saved if step in run.steps()), default=None)
        for step in (step for step in saved if step != newest):
            yield from (Deletion(file, size_of(file), run) for file in weight_files(run, step))
    states: Choice = "exact states" if read_state(run).status == "done" else "states to resume from"
    if states in wanted:
        found = [run.checkpoints / str(step) for step in run.checkpoint_steps()]
        yield from (Deletion(state, size_of(state), run) for state in found if _is_plainly_in(run.path, state))


def _plan_class_images(workspace: Workspace, deletions: list[Deletion], kept: list[str]) -> None:
    """Add the cache of generated class images, except those that a run is reading or needs to continue."""
    runs = local_runs(workspace)
    if busy := [run.name for run in runs if is_owned(run)]:
        kept.append(f"Class images stay while {busy[0]} trains.")
        return
    # Another GPU makes other digits of the same images, and a state only resumes with exactly the same ones.
    needed = {prompt: run.name for run in runs if _resumable(run) for prompt in _class_prompts(run)}
    for folder in (entry for entry in entries(workspace.class_images_dir) if CLASS_FOLDER.fullmatch(entry.name)):
        prompt = _json(folder / "info.json").get("prompt")
        if not isinstance(prompt, str) or folder.is_symlink():
            continue
        if prompt in needed:
            kept.append(
                f"The class images of {as_written(prompt)} stay: {needed[prompt]} can be resumed only with them."
            )
        elif _age_s(folder) < RESTED_S:
            kept.append(
                f"The class images of {as_written(prompt)} stay: they were made within the last hour and may be in use."
            )
        else:
            # The note on what they are is deleted last: until then the folder can be identified.
            files = [file for file in entries(folder) if CLASS_IMAGE.fullmatch(file.name)] + [folder / "info.json"]
            deletions += [Deletion(file, size_of(file)) for file in files if is_plain_file(file)]


def _resumable(run: RunFolder) -> bool:
    return read_state(run).status != "done" and bool(run.checkpoint_steps())


def _class_prompts(run: RunFolder) -> list[str]:
    settings = settings_in(run.config_path)
    if settings is None or not settings.with_prior_preservation:
        return []
    return [
        concept.class_prompt for concept in settings.concepts if concept.class_prompt and not concept.class_data_dir
    ]


def _plan_exports(workspace: Workspace, deletions: list[Deletion], kept: list[str]) -> None:
    """Add the exports whose model is here and stays, identified by name: any other one may be the only copy."""
    going, models, gone = {one.path for one in deletions}, {"starter-toy"}, set[str]()
    models |= {_file_stem(entry.name) for entry in entries(workspace.models_dir)}
    for run in local_runs(workspace):
        steps = [step for step in run.steps() if not going & {*weight_files(run, step)}]
        models |= {_file_stem(f"{run.name}{between}{step}") for step in steps for between in (" step ", "-")}
        models |= {run.name} if steps else set()
        # A LoRA is named after run and step, which another file with the run's name could be mistaken for.
        gone |= {_file_stem(f"{run.name}-{step}") for step in saved_steps(run) if step not in steps}
    files = [file for file in entries(workspace.exports_dir) if file.suffix in EXPORT_SUFFIXES]
    for file in filter(is_plain_file, files):
        if file.stem not in gone and {file.stem, file.stem.rpartition("-")[0]} & models:
            deletions.append(Deletion(file, size_of(file)))
        else:
            kept.append(f"The export {_printable(file.name)} stays: the model it was made from is not here.")


def _file_stem(name: str) -> str:
    """Return a model's name as the Convert tab uses it in file names."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")


def _json(file: Path) -> dict[str, object]:
    try:
        return read_object(file)
    except (OSError, ValueError):
        return {}


# Deleting ------------------------------------------------------------------------------------------------------------


def carry_out(workspace: Workspace, approved: Plan) -> int:
    """Delete what the plan lists, and return the bytes freed; a run that became active since then is skipped.

    Raises RunFolderError at the first thing that cannot be deleted.
    """
    # Planned again: what must no longer be deleted, for instance because the newest model vanished, is not in it.
    now = {one.path for one in plan(workspace, approved.choices, approved.runs).deletions}
    freed = 0
    for run in dict.fromkeys(one.run for one in approved.deletions):
        of_run = [one for one in approved.deletions if one.run == run and one.path in now]
        is_elsewhere = run is not None and not run.path.is_relative_to(workspace.data_dir)
        inside = run.path if run is not None and is_elsewhere else workspace.data_dir
        with contextlib.ExitStack() as stack:
            if run is not None and of_run:
                try:
                    stack.enter_context(held_lock(run.lock_path))
                except BlockingIOError:
                    continue
                if is_locked(run.queue_lock_path):
                    continue
            freed += sum(_deleted(one.path, inside) for one in of_run)
    return freed


def _deleted(path: Path, inside: Path) -> int:
    """Delete a file or folder and return the bytes freed; one that is now elsewhere, behind a link, is skipped."""
    if not _is_plainly_in(inside, path.parent) or path.is_symlink() or not path.exists():
        return 0
    try:
        if path.is_dir():
            num_bytes = size_of(path)
            remove_folder(path)
            return num_bytes
        about = path.lstat()
        path.unlink(missing_ok=True)
        if path.name in (MODEL_INDEX, CARD):
            sync(path.parent)
    except OSError as error:
        raise RunFolderError(f"{path} cannot be deleted.", f"{error.strerror}.", "Fix that, then try again.") from error
    if path.parent.parent != inside:  # the rooms themselves stay
        with contextlib.suppress(OSError):  # something of the user's is in it
            path.parent.rmdir()
    # A file with another hard link frees nothing yet.
    return about.st_size if stat.S_ISREG(about.st_mode) and about.st_nlink == 1 else 0


def remove_weights(run: RunFolder, step: int) -> int:
    """Delete a step's model but keep its samples, settings and foreign files; return the bytes freed."""
    return sum(_deleted(file, run.path) for file in weight_files(run, step))


def run_to_clean(path: Path) -> RunFolder:
    """Return the run at a path; raises RunFolderError if there is none, including the seed script's own."""
    run = RunFolder(path)
    if not run.steps() and not run.config_path.exists():
        raise RunFolderError(
            f"{path} holds no run.", "It contains no step folder with a model.", "Give the folder of a run."
        )
    return run
