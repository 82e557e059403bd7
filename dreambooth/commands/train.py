"""The commands that train: flags and files become settings, progress is shown as bars, Ctrl-C stops and saves."""

import argparse
import contextlib
import dataclasses
import datetime
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dreambooth.commands import files as file_commands
from dreambooth.commands.bars import RunBars
from dreambooth.commands.flags import add_command, add_flag
from dreambooth.config.concepts import Concept, load_concepts_list
from dreambooth.config.counts import num_steps_of
from dreambooth.config.fields import GROUP_TITLES, describe
from dreambooth.config.limits import is_folder, user_path
from dreambooth.config.presets import PRESETS, preset, resolve, without_idle_options
from dreambooth.config.training import TrainingConfig, load_config
from dreambooth.data.concept_notices import concept_notices, photo_findings
from dreambooth.entry_point import calling_on_signals
from dreambooth.environment import load_settings
from dreambooth.errors import ConfigError, FieldProblem, StoppedError, TextFileError
from dreambooth.events import Controls, Event, Notice, StatusChanged
from dreambooth.formats.text_files import read_text
from dreambooth.records.workspace import Workspace

AUTO = "auto"
PRESET_HELP = f"Preset for a memory size: {', '.join(PRESETS)}; {AUTO}: the fastest one that fits this device."
CONCEPT_FLAGS = {
    "instance_data_dir": "Folder or .zip file with the photos of the subject.",
    "instance_prompt": "Prompt with the identifier, such as `photo of zwx dog`.",
    "class_data_dir": "Folder with class images; missing ones are added, none is replaced.",
    "class_prompt": "Prompt for the class, such as `photo of dog`.",
}
# What a first training needs; `--help` shows these first. A resume needs --resume_from_checkpoint instead.
MAIN_FLAGS = (
    "instance_data_dir", "instance_prompt", "class_prompt", "pretrained_model_name_or_path", "method", "preset",
    "max_train_steps", "save_sample_prompt", "output_dir",
)  # fmt: skip


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    train = add_command(commands, "train", train_command, "train a base model on your photos")
    main = _add_training_flags(train)
    main.add_argument(
        "--resume_from_checkpoint",
        metavar="latest|PATH",
        help="Continue a run: the one in --output_dir, else the newest (latest), or the one at PATH.",
    )
    hub = train.add_argument_group("Upload")
    hub.add_argument(
        "--push_to_hub", action="store_true", help="Upload the last step to a private repository at the end."
    )
    hub.add_argument("--hub_model_id", metavar="REPO", help="Repository as owner/name; default: the run's name.")

    trial = add_command(
        commands, "preflight", preflight_command, "measure a training's time, memory and disk before it starts"
    )
    _add_training_flags(trial)


def _add_training_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the training flags in groups and return the group of the main ones, which comes first."""
    infos = {info.name: info for info in describe(TrainingConfig)}
    main = parser.add_argument_group("Main settings")
    groups = {group: parser.add_argument_group(title) for group, title in GROUP_TITLES.items()}
    for name in MAIN_FLAGS:
        if name in infos:
            add_flag(main, infos.pop(name))
        elif name == "preset":
            main.add_argument("--preset", choices=(*PRESETS, AUTO), metavar="NAME", help=PRESET_HELP)
        else:
            main.add_argument(f"--{name}", default=argparse.SUPPRESS, metavar="TEXT", help=CONCEPT_FLAGS[name])
    photos = groups["photos"]
    photos.add_argument(
        "--class_data_dir", default=argparse.SUPPRESS, metavar="FOLDER", help=CONCEPT_FLAGS["class_data_dir"]
    )
    photos.add_argument(
        "--concepts_list",
        type=user_path,
        metavar="FILE",
        help="JSON file with several concepts; replaces the prompts and folders of one.",
    )
    groups["model"].add_argument(
        "--config",
        type=user_path,
        metavar="FILE",
        help="JSON file of settings, such as a run's `.run/config.json`; flags take precedence.",
    )
    for info in infos.values():
        add_flag(groups[info.group], info)
    for name in ("hub_token", "local_rank"):
        parser.add_argument(f"--{name}", nargs="?", const=True, default=None, help=argparse.SUPPRESS)
    return main


def train_command(arguments: dict[str, Any]) -> int:
    """Train as asked, with bars on the terminal; Ctrl-C finishes the step and saves, a second one exits at once."""
    from dreambooth.runs.run import resume, train

    wanted = arguments.pop("resume_from_checkpoint")
    push_to_hub, hub_model_id = arguments.pop("push_to_hub"), arguments.pop("hub_model_id")
    if hub_model_id and not push_to_hub:
        raise ConfigError([FieldProblem("hub_model_id", "has no effect without --push_to_hub.")])
    if push_to_hub:
        file_commands.refuse_push_of_a_run(hub_model_id)
    controls, bars = Controls(), RunBars()
    if wanted is None:
        config, asked = _available_training(arguments)
        with stopping_on_signals(controls):
            folder = train(config, controls=controls, on_event=_with_findings(config, bars), explicit=asked)
    else:
        run, step = _run_to_resume(wanted, arguments.pop("output_dir", None))
        changes = _changes(arguments, run)
        with stopping_on_signals(controls):
            folder = resume(run, controls=controls, on_event=bars, state_step=step, changes=changes)
    bars.close()
    print(f"The model is in {folder}")
    if push_to_hub and not controls.stop.is_set():
        file_commands.pushed(folder, hub_model_id or folder.parent.name, private=True, single_file=False)
    return 0


def _with_findings(config: TrainingConfig, show: Callable[[Event], None]) -> Callable[[Event], None]:
    """Return a callback that shows a run's events, first the findings about its photos; only in the first process."""

    def shown_event(event: Event) -> None:
        show(event)
        if isinstance(event, StatusChanged) and event.status == "running":
            for sentence in photo_findings(config.concepts, config.resolution, buckets=config.buckets):
                show(Notice(sentence, "warning"))

    return shown_event


def _run_to_resume(wanted: str, output_dir: str | None) -> tuple[Path, int | None]:
    """Return the folder of the run to resume, and the step of its exact state if one is named."""
    path = user_path(wanted)
    if wanted == "latest" and output_dir is None:
        runs = Workspace(load_settings().data_dir).runs()
        if not runs:
            raise ConfigError([FieldProblem("resume_from_checkpoint", "finds no run: give one with --output_dir.")])
        return runs[0].path, None
    if wanted == "latest":
        return user_path(str(output_dir)), None
    step = None
    if path.parent.name == "state" and path.parent.parent.name == ".run" and path.name.isdecimal():
        path, step = path.parent.parent.parent, int(path.name)
    if output_dir is not None and user_path(output_dir).resolve() != path.resolve():
        message = f'is "{output_dir}", and the run to resume is in "{path}": name one of them.'
        raise ConfigError([FieldProblem("output_dir", message)])
    return path, step


def _changes(arguments: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the settings that flags, file, preset and concepts ask for in addition to a resume, by name.

    Whether they match the run's own, or may change, is checked by the resume.
    """
    kept_file = path / ".run" / "config.json"
    if not kept_file.exists():
        return {}
    kept = load_config(kept_file)
    preset_name, config_path = arguments.pop("preset"), arguments.pop("config")
    of_file = _beside_flags(_settings_of_file(config_path), arguments) if config_path else {}
    concepts = _in_the_runs_folders(_concepts(arguments, kept.concepts), kept)
    flags = {name: value for name, value in arguments.items() if name in TrainingConfig.__dataclass_fields__}
    asked: dict[str, Any] = of_file | flags | ({"concepts": concepts} if concepts else {})
    # If the file names no seed, a run draws its own.
    asked = {name: value for name, value in asked.items() if (name, value) != ("seed", None)}
    if preset_name == AUTO:
        print("The preset auto is chosen once: a resumed run keeps its settings.", file=sys.stderr)
    elif preset_name:
        asked = _of_preset(preset_name, asked, kept) | asked
    # More steps need a flag: the file or preset that the run was started with has only its original total.
    if "max_train_steps" not in flags and asked.pop("max_train_steps", None) not in (None, kept.max_train_steps):
        print(
            f"The run keeps its total of {kept.max_train_steps} steps; change it with --max_train_steps.",
            file=sys.stderr,
        )
    # A class folder that is not given is the run's own.
    if len(asked.get("concepts", ())) == len(kept.concepts):
        asked["concepts"] = tuple(
            dataclasses.replace(concept, class_data_dir=concept.class_data_dir or before.class_data_dir)
            for concept, before in zip(asked["concepts"], kept.concepts, strict=True)
        )
    return asked


def _of_preset(preset_name: str, asked: dict[str, Any], kept: TrainingConfig) -> dict[str, Any]:
    """Return the values that a new run with this preset would have for the settings the preset sets."""
    from dreambooth.models.base import family_name, read_card

    concepts: dict[str, Any] = {"concepts": kept.concepts, "method": kept.method} | asked
    base = asked.get("pretrained_model_name_or_path", kept.pretrained_model_name_or_path)
    family = family_name(base)
    resolved = resolve(concepts, read_card(base).recipes, preset_name, family)
    return {name: getattr(resolved, name) for name in preset(preset_name, resolved.method, family)}


def _in_the_runs_folders(concepts: tuple[Concept, ...], kept: TrainingConfig) -> tuple[Concept, ...]:
    """Return the concepts with the folders into which an earlier version unpacked a run's archives."""
    from dreambooth.data.archives import earlier_folders

    folders = {concept.instance_data_dir for concept in kept.concepts}
    return tuple(
        dataclasses.replace(
            concept,
            instance_data_dir=next(
                (one for one in earlier_folders(concept.instance_data_dir) if one in folders), concept.instance_data_dir
            ),
        )
        for concept in concepts
    )


def training_config(arguments: dict[str, Any]) -> TrainingConfig:
    """Return the settings these flags ask for; raises ConfigError with every mistake in them."""
    return asked_training(arguments)[0]


def asked_training(arguments: dict[str, Any]) -> tuple[TrainingConfig, frozenset[str]]:
    """Return these settings and the names of those given by flags or a file; raises ConfigError as above."""
    from dreambooth.models.base import family_name, read_card

    if arguments.pop("hub_token") is not None:
        message = "is refused: other users could read it in the process list. Set HF_TOKEN in the environment or .env."
        raise ConfigError([FieldProblem("hub_token", message)])
    for name in ("local_rank", "resume_from_checkpoint", "push_to_hub", "hub_model_id"):
        arguments.pop(name, None)
    preset_name, config_path = arguments.pop("preset"), arguments.pop("config")
    concept_flags = {name for name in ("concepts_list", *CONCEPT_FLAGS) if arguments.get(name) is not None}
    concepts = _concepts(arguments)
    explicit = _beside_flags(_settings_of_file(config_path), arguments) if config_path else {}
    defaults = TrainingConfig()
    # A run's own file names every setting, so those with default values are not explicit.
    asked = {name for name, value in explicit.items() if value != getattr(defaults, name)}
    asked |= arguments.keys() | concept_flags
    explicit |= arguments | ({"concepts": concepts} if concepts else {})
    base = explicit.get("pretrained_model_name_or_path", defaults.pretrained_model_name_or_path)
    if preset_name != AUTO:
        return resolve(explicit, read_card(base).recipes, preset_name, family_name(base)).checked(), frozenset(asked)
    from dreambooth.data.photos import num_photos_in
    from dreambooth.device.hardware import detect_device
    from dreambooth.forecast.memory import fastest_plan
    from dreambooth.forecast.shape import read_shape

    # Contradictions are checked by the plan: the preset's own values may not fit the explicit ones.
    config = resolve(explicit, read_card(base).recipes, "recommended", family_name(base)).in_range()
    steps = num_steps_of(config, num_photos_in(concept.instance_data_dir for concept in config.concepts))
    plan = fastest_plan(config, read_shape(base), detect_device(), kept=explicit, num_steps=steps)
    return plan.checked(), frozenset(asked)


def _available_training(arguments: dict[str, Any]) -> tuple[TrainingConfig, frozenset[str]]:
    """Return these settings with the defaults of the base's family, and the names of those that were given.

    Downloads the configuration of a base on the Hub for this; raises BaseModelError if it cannot be had.
    """
    from dreambooth.models.availability import bytes_to_download
    from dreambooth.models.base import known_layout

    settings = load_settings()
    config, asked = asked_training(dict(arguments))
    was_known = known_layout(config.pretrained_model_name_or_path) is not None
    bytes_to_download(config, settings.hub_token, Workspace(settings.data_dir).models_dir)
    return (config, asked) if was_known else asked_training(arguments)


def _beside_flags(of_file: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """Return a file's settings without those that flags replace: epochs replace its steps, `--no_NAME` an option."""
    replaced = without_idle_options(of_file).keys() - without_idle_options(of_file | flags, flags).keys()
    if "num_train_epochs" in flags:
        replaced.add("max_train_steps")
    return {name: value for name, value in of_file.items() if name not in replaced}


def preflight_command(arguments: dict[str, Any]) -> int:
    """Try the settings for a few steps, a sampling and the saves, and print what a run with them will take."""
    from dreambooth.models.manager import ModelManager
    from dreambooth.runs.preflight import preflight
    from dreambooth.runs.start_notices import base_notices, memory_notices, setting_notices

    settings, controls, bars = load_settings(), Controls(), RunBars()
    config, asked = _available_training(arguments)
    workspace = Workspace(settings.data_dir)
    notices = [
        *setting_notices(config, asked, workspace.models_dir), *memory_notices(config, workspace.models_dir),
        *base_notices(config, settings.hub_token, workspace),
        *concept_notices(config.concepts, config.background_weight),
    ]  # fmt: skip
    for sentence in notices + photo_findings(config.concepts, config.resolution, buckets=config.buckets):
        print(sentence, file=sys.stderr)
    with stopping_on_signals(controls):
        found = preflight(
            config,
            workspace=workspace,
            manager=ModelManager(),
            token=settings.hub_token,
            report=bars,
            controls=controls,
        )
        bars.close()
        if found is None and controls.stop.is_set():
            raise StoppedError("The trial was stopped early.")
    if found is None:  # the first of several processes prints it
        return 0
    print("\n".join(found.lines(datetime.datetime.now())))
    return 0


def _settings_of_file(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_text(path))
    except TextFileError as error:
        raise ConfigError([FieldProblem("config", str(error))]) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError([FieldProblem("config", f"{path} is not JSON: {error}.")]) from None
    if not isinstance(values, dict):
        raise ConfigError([FieldProblem("config", f"{path} must contain a JSON object.")])
    config = TrainingConfig.from_json(values)
    return {name: getattr(config, name) for name in values if name != "output_dir"}


def _concepts(arguments: dict[str, Any], of_run: Sequence[Concept] = ()) -> tuple[Concept, ...]:
    """Return the requested concepts; for a resume, whatever is not given for a single concept comes from the run."""
    path = arguments.pop("concepts_list")
    single = {name: arguments.pop(name) for name in CONCEPT_FLAGS if name in arguments}
    if path is not None:
        return tuple(map(_with_photos_unpacked, load_concepts_list(path)))
    if not single:
        return ()
    if len(of_run) == 1:
        single = dataclasses.asdict(of_run[0]) | single
    missing = [name for name in ("instance_data_dir", "instance_prompt") if not single.get(name)]
    if missing:
        raise ConfigError([FieldProblem(name, "is missing.") for name in missing])
    return (_with_photos_unpacked(Concept(**single)),)


def _with_photos_unpacked(concept: Concept) -> Concept:
    """Return the concept with a .zip replaced by a folder in the data folder, into which it is unpacked once."""
    from dreambooth.data.archives import unpacked_folder
    from dreambooth.data.photos import shown

    archive = Path(concept.instance_data_dir)
    if archive.suffix.lower() != ".zip" or is_folder(concept.instance_data_dir):
        return concept
    found = unpacked_folder(archive, Workspace(load_settings().data_dir).datasets_dir)
    for path, reason in found.skipped:
        print(f'"{shown(path)}" in "{shown(archive)}" {reason}.', file=sys.stderr)
    return dataclasses.replace(concept, instance_data_dir=str(found.photos[0].parent))


def stopping_on_signals(controls: Controls) -> contextlib.AbstractContextManager[None]:
    """Have the first Ctrl-C, a SIGTERM or a closed terminal stop the run, and a second Ctrl-C exit at once."""

    def stop() -> None:
        controls.stop.set()
        print(
            "\nStopping after the current step, which is saved. Press Ctrl-C again to quit at once.",
            file=sys.stderr,
        )

    return calling_on_signals(stop)
