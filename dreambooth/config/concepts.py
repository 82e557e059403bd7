"""The concepts of a run: photos and prompts, and the concepts list that the seed's notebook writes."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambooth.config.limits import as_written, expand_paths, is_folder, place_problem, text_problems
from dreambooth.errors import ConfigError, FieldProblem, TextFileError
from dreambooth.formats.text_files import printable, read_text


@dataclass(frozen=True)
class Concept:
    """One subject: its photos, its instance prompt and, optionally, its class prompt and class images."""

    instance_prompt: str
    instance_data_dir: str
    class_prompt: str | None = None
    class_data_dir: str | None = None

    def __post_init__(self) -> None:
        # Normalized, so that concepts compare equal whoever made them: an empty field is None, and a path is text.
        for name in ("class_prompt", "class_data_dir"):
            object.__setattr__(self, name, getattr(self, name) or None)
        expand_paths(self, ("instance_data_dir", "class_data_dir"))


def read_concepts(entries: object) -> tuple[Concept, ...]:
    """Read the entries of a `concepts_list`; raises ConfigError with every mistake in every entry."""
    if not isinstance(entries, list):
        raise ConfigError([FieldProblem("concepts_list", "must be a list of objects.")])
    problems: list[FieldProblem] = []
    concepts = []
    names = [field.name for field in dataclasses.fields(Concept)]
    for number, entry in enumerate(entries, 1):
        where = f"concepts_list[{number}]"
        if not isinstance(entry, dict):
            problems.append(FieldProblem(where, "must be an object."))
            continue
        wrong = [f"unknown key {as_written(key)}" for key in entry if key not in names]
        wrong += [f"{key} is missing" for key in ("instance_prompt", "instance_data_dir") if not entry.get(key)]
        wrong += [f"{key} must be text" for key in names if not isinstance(entry.get(key), str | None)]
        if wrong:
            problems.append(FieldProblem(where, f"{'; '.join(wrong)}."))
        else:
            optional = {key: entry.get(key) or None for key in ("class_prompt", "class_data_dir")}
            concepts.append(Concept(entry["instance_prompt"], entry["instance_data_dir"], **optional))
    if problems:
        raise ConfigError(problems)
    return tuple(concepts)


def load_concepts_list(path: Path) -> tuple[Concept, ...]:
    """Read a `concepts_list.json` as the seed notebook writes it."""
    try:
        return read_concepts(json.loads(read_text(path)))
    except TextFileError as error:
        raise ConfigError([FieldProblem("concepts_list", str(error))]) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError([FieldProblem("concepts_list", f'"{printable(path.name)}" is not JSON: {error}.')]) from None


def dump_concepts_list(concepts: Iterable[Concept]) -> str:
    """Return the text of a `concepts_list.json` that the seed script reads too."""
    entries = [
        {name: value for name, value in dataclasses.asdict(concept).items() if value is not None}
        for concept in concepts
    ]
    return json.dumps(entries, indent=4) + "\n"


def concept_problems(concept: Concept) -> list[FieldProblem]:
    """Return what is wrong with a concept's prompts and folders."""
    problems = []
    for field in dataclasses.fields(Concept):
        text = getattr(concept, field.name)
        if text is not None:
            problems += text_problems(field.name, text, is_name=field.name.endswith("_dir"))
    if not concept.instance_prompt.strip():
        problems.append(
            FieldProblem("instance_prompt", "is empty: write a prompt with the identifier, such as photo of zwx dog.")
        )
    # A folder with images is only read.
    class_dir = concept.class_data_dir
    if class_dir is not None and not is_folder(class_dir) and (problem := place_problem(Path(class_dir))):
        problems.append(FieldProblem("class_data_dir", problem))
    if not is_folder(concept.instance_data_dir):
        message = f"{as_written(concept.instance_data_dir)} is not a folder: give the folder with the photos."
        problems.append(FieldProblem("instance_data_dir", message))
    return problems


def class_folder_problems(concepts: Sequence[Concept]) -> list[FieldProblem]:
    """Return the class folders that hold photos of a subject, or would serve two class prompts at once.

    Folders are compared by where they are on disk, however their paths are written. Subfolders are not read, so a
    folder inside another is no conflict.
    """
    problems = []
    photos = {_resolved(concept.instance_data_dir): concept.instance_data_dir for concept in concepts}
    prompts: dict[Path, str] = {}
    for concept in concepts:
        if not concept.class_data_dir:
            continue
        folder, prompt = _resolved(concept.class_data_dir), " ".join((concept.class_prompt or "").split())
        if folder in photos:
            message = (
                f"{as_written(concept.class_data_dir)} also holds the photos of the subject: class images would be "
                "trained as the subject. Choose another folder, or none."
            )
            problems.append(FieldProblem("class_data_dir", message))
        elif prompts.setdefault(folder, prompt) != prompt:
            message = (
                f"{as_written(concept.class_data_dir)} is used for {as_written(prompts[folder])} and for "
                f"{as_written(prompt)}: each class prompt needs its own folder."
            )
            problems.append(FieldProblem("class_data_dir", message))
    return problems


def _resolved(folder: str) -> Path:
    try:
        return Path(folder).resolve()
    except (OSError, ValueError, RuntimeError):  # no path at all, or a loop of links: the other checks name it
        return Path(folder)
