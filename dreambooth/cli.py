"""The command line: one face of the engine, the page being the other.

Flags come from the settings' own descriptions. What is not given is left to the base's card, the preset, and last the
seed script's default (`presets.resolve`).
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth import file_commands, quality_commands
from dreambooth.config import Concept, GenerationConfig, TrainingConfig, load_concepts_list, load_config
from dreambooth.errors import ConfigError, DreamBoothError, FieldProblem, hide_in_tracebacks
from dreambooth.events import Controls, Event, PhaseProgress, StepLoss
from dreambooth.fields import FieldInfo, describe
from dreambooth.limits import is_folder
from dreambooth.presets import PRESETS, resolve
from dreambooth.settings import load_settings
from dreambooth.storage import CHOICES as CLEANABLE
from dreambooth.workspace import Workspace

if TYPE_CHECKING:
    from tqdm import tqdm

AUTO = "auto"
PRESET_HELP = "The notebook's recipe in one of its memory configurations; auto: the fastest that fits the device."
CONCEPT_FLAGS = {
    "instance_data_dir": "Folder or .zip with the photos of the subject.",
    "instance_prompt": "The words that will name the subject, such as `photo of zwx dog`.",
    "class_data_dir": "Folder with class pictures; filled up when short, never replaced.",
    "class_prompt": "The words for its class, such as `photo of dog`.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, 1 for a mistake of the user's told in words."""
    hide_in_tracebacks()
    arguments = vars(build_parser().parse_args(argv))
    command: Callable[[dict[str, Any]], int] = arguments.pop("run_command")
    try:
        return command(arguments)
    except DreamBoothError as error:
        print("\n".join(part for part in (f"error: {error.what}", error.why, error.todo) if part), file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="python -m dreambooth", description="Teach Stable Diffusion from 3-5 photos.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = _command(commands, "train", train_command, "teach a base model from photos")
    _add_training_flags(train)
    train.add_argument(
        "--resume_from_checkpoint",
        metavar="latest|PATH",
        help="Go on with a run that was ended: that of --output_dir, else the newest (latest), or the one at PATH.",
    )
    train.add_argument("--push_to_hub", action="store_true", help="Upload the last step when the run is done; private.")
    train.add_argument("--hub_model_id", metavar="REPO", help="Where to: owner/name; without it, the run's own name.")

    trial = _command(commands, "preflight", preflight_command, "measure what a training will take, before it")
    _add_training_flags(trial)

    generate = _command(commands, "generate", generate_command, "make pictures with a model")
    generate.add_argument("--model", required=True, help="A run, a step folder, a base, or `starter`.")
    generate.add_argument("--output_dir", required=True, type=Path, help="Where the pictures go.")
    for info in describe(GenerationConfig):
        _add_flag(generate, info)

    compare = _command(commands, "compare", compare_command, "make the same pictures with several steps of a run")
    compare.add_argument("run", type=Path, help="The run's folder.")
    compare.add_argument(
        "--steps", type=int, nargs="+", default=[], help="Saved steps; 0 is the base; all saved ones when left out."
    )
    compare.add_argument("--output_dir", required=True, type=Path, help="Where the pictures and their grid go.")
    for info in describe(GenerationConfig):
        _add_flag(compare, info)

    quality_commands.add(commands)
    _add_file_commands(commands)
    _command(commands, "doctor", doctor_command, "say what this machine has, lacks, and what to do")
    _command(commands, "demo", demo_command, "the whole job on the bundled sample subject, in minutes")
    _add_starter(commands)
    return parser


def _add_training_flags(parser: argparse.ArgumentParser) -> None:
    for name, sentence in CONCEPT_FLAGS.items():
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=sentence)
    parser.add_argument("--concepts_list", type=Path, help="JSON file with several concepts; overrides the four above.")
    parser.add_argument("--preset", choices=(*PRESETS, AUTO), help=PRESET_HELP)
    parser.add_argument("--config", type=Path, help="JSON file of settings, as every run keeps; flags come before it.")
    for info in describe(TrainingConfig):
        _add_flag(parser, info)
    for name in ("hub_token", "local_rank"):
        parser.add_argument(f"--{name}", nargs="?", const=True, default=None, help=argparse.SUPPRESS)


def _command(commands: Any, name: str, run: Callable[[dict[str, Any]], int], sentence: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=sentence, description=sentence.capitalize() + ".")
    parser.set_defaults(run_command=run)
    return parser


def _add_flag(parser: argparse.ArgumentParser, info: FieldInfo) -> None:
    if info.type is bool:
        parser.add_argument(f"--{info.name}", action="store_true", default=argparse.SUPPRESS, help=info.sentence)
        return
    details = "; ".join(
        part for part in (info.range_text, "" if info.default is None else f"default {info.default}") if part
    )
    parser.add_argument(
        f"--{info.name}",
        type=info.type,
        choices=info.choices or None,
        default=argparse.SUPPRESS,
        metavar=None if info.choices else info.type.__name__.upper(),
        help=(f"{info.sentence} ({details})" if details else info.sentence).replace("%", "%%"),
    )


def _add_file_commands(commands: Any) -> None:
    convert = _command(commands, "convert", file_commands.convert_command, "write one file for other tools")
    convert.add_argument("model_dir", nargs="?", help="A run, a step folder or any diffusers folder.")
    convert.add_argument("out", nargs="?", help="The file: .safetensors or .ckpt.")
    convert.add_argument("--model_path", help="The same as MODEL_DIR.")
    convert.add_argument("--checkpoint_path", help="The same as OUT.")
    convert.add_argument("--half", action="store_true", help="Store weights in fp16.")
    convert.add_argument("--precision", choices=("fp16", "fp32"), help="Number format; left out, the folder's own.")
    for name in ("unet", "text_encoder"):
        convert.add_argument(
            f"--{name}_strength", type=float, default=1.0, metavar="FLOAT",
            help="How much of what it learned is baked in: 0 is the base, 1 all of it, at most 2.",
        )  # fmt: skip
    convert.add_argument("--use_safetensors", action="store_true", help="Write safetensors whatever the name.")

    push = _command(commands, "push", file_commands.push_command, "upload a model to the Hub, private by default")
    push.add_argument("model", help="A run, a step folder or any diffusers folder.")
    push.add_argument("repo_id", help="owner/name, or a name of your own account; one that is there is updated.")
    push.add_argument("--public", action="store_true", help="Make a new repository public.")
    push.add_argument("--single_file", action="store_true", help="With one .safetensors file for web UIs beside it.")

    pack = _command(commands, "zip", file_commands.zip_command, "pack a model's folder, or a run's samples")
    pack.add_argument("model", type=Path, help="A run, a step folder or any diffusers folder.")
    pack.add_argument("out", type=Path, help="The archive.")
    pack.add_argument("--samples", action="store_true", help="The sample pictures of a run instead.")

    clean = _command(commands, "clean", file_commands.clean_command, "say what takes the disk, and delete what can go")
    clean.add_argument(
        "run", nargs="?", type=Path, help="One run, wherever it lies; all of the data folder without it."
    )
    clean.add_argument(
        "--what", nargs="+", choices=CLEANABLE, metavar="CHOICE",
        help=f"What should go: {', '.join(map(repr, CLEANABLE))}; without it, intermediate weights and caches.",
    )  # fmt: skip
    clean.add_argument("--yes", action="store_true", help="Delete it; without this it is only told.")

    grid = _command(commands, "grid", file_commands.grid_command, "put a run's sample pictures into one, a row a step")
    grid.add_argument("run", type=Path, help="The run's folder.")
    grid.add_argument("out", nargs="?", type=Path, help="The picture; `grid.png` in this folder when left out.")


def _add_starter(commands: Any) -> None:
    starter = commands.add_parser("starter", help="make the embedded starter model")
    build = starter.add_subparsers(required=True, metavar="COMMAND").add_parser("build", help="train it from scratch")
    build.set_defaults(run_command=starter_build_command)
    build.add_argument("--seed", type=int, default=0, help="Start of all randomness.")
    build.add_argument("--minutes", type=float, default=240.0, help="Time for all of it.")
    build.add_argument("--continue", action="store_true", dest="go_on", help="Go on from the weights that are there.")


# train ---------------------------------------------------------------------------------------------------------------


def train_command(arguments: dict[str, Any]) -> int:
    """Train as asked, with bars on the terminal; Ctrl-C finishes the step and saves, a second one leaves at once."""
    from dreambooth.runs import resume, train

    wanted = arguments.pop("resume_from_checkpoint")
    push_to_hub, hub_model_id = arguments.pop("push_to_hub"), arguments.pop("hub_model_id")
    if hub_model_id and not push_to_hub:
        raise ConfigError([FieldProblem("hub_model_id", "says where to, and --push_to_hub is not given.")])
    if push_to_hub:
        file_commands.refuse_push_without_token()
    controls, bars = Controls(), _Bars()
    if wanted is None:
        config = training_config(arguments)
        _stop_on_signals(controls)
        folder = train(config, controls=controls, on_event=bars)
    else:
        run = _run_to_resume(wanted, arguments)
        _stop_on_signals(controls)
        folder = resume(run, controls=controls, on_event=bars)
    bars.close()
    print(f"The model is in {folder}")
    if push_to_hub and not controls.stop.is_set():
        file_commands.pushed(folder, hub_model_id or folder.parent.name, private=True, single_file=False)
    return 0


def _run_to_resume(wanted: str, arguments: dict[str, Any]) -> Path:
    """Return the folder of the run that is meant; raises ConfigError for settings that would make it another run."""
    output_dir = arguments.pop("output_dir", None)
    path = Path(wanted)
    if wanted == "latest" and output_dir is not None:
        path = Path(output_dir)
    elif wanted == "latest":
        runs = Workspace(load_settings().data_dir).runs()
        if not runs:
            raise ConfigError([FieldProblem("resume_from_checkpoint", "finds no run: name one with --output_dir.")])
        path = runs[0].path
    elif path.parent.name == "state":
        path = path.parent.parent.parent
    kept = path / ".run" / "config.json"
    if kept.exists():
        _refuse_other_settings(arguments, load_config(kept))
    return path


def _refuse_other_settings(arguments: dict[str, Any], kept: TrainingConfig) -> None:
    asked: dict[str, Any] = {
        name: value for name, value in arguments.items() if name in TrainingConfig.__dataclass_fields__
    }
    if concepts := _concepts(arguments):
        asked["concepts"] = tuple(dataclasses.replace(concept, class_data_dir=None) for concept in concepts)
        kept = dataclasses.replace(
            kept, concepts=tuple(dataclasses.replace(concept, class_data_dir=None) for concept in kept.concepts)
        )
    problems = [
        FieldProblem(name, f"is {getattr(kept, name)} in the run, not {value}: a resumed run keeps its settings.")
        for name, value in asked.items()
        if getattr(kept, name) != value
    ]
    if problems:
        raise ConfigError(problems)


def training_config(arguments: dict[str, Any]) -> TrainingConfig:
    """Return the settings that these flags ask for; raises ConfigError with every mistake in them."""
    from dreambooth.models.base import read_card

    problems = []
    if arguments.pop("hub_token") is not None:
        problems.append(
            FieldProblem(
                "hub_token", "is refused: it would show in process lists. Put HF_TOKEN in the environment or .env."
            )
        )
    if problems:
        raise ConfigError(problems)
    for name in ("local_rank", "resume_from_checkpoint", "push_to_hub", "hub_model_id"):
        arguments.pop(name, None)
    preset_name, config_path = arguments.pop("preset"), arguments.pop("config")
    explicit = _settings_of_file(config_path) if config_path else {}
    concepts = _concepts(arguments)
    explicit |= arguments | ({"concepts": concepts} if concepts else {})
    defaults = TrainingConfig()
    base = explicit.get("pretrained_model_name_or_path", defaults.pretrained_model_name_or_path)
    if preset_name != AUTO:
        return resolve(explicit, read_card(base).recipe, preset_name).checked()
    from dreambooth.hardware import detect_device
    from dreambooth.memory_plan import fastest_plan
    from dreambooth.models.shape import read_shape

    config = resolve(explicit, read_card(base).recipe, "recommended").checked()
    return fastest_plan(config, read_shape(base), detect_device(), kept=explicit).checked()


def preflight_command(arguments: dict[str, Any]) -> int:
    """Try the settings for a few steps, a sampling and the saves, and print what a run with them will take."""
    from dreambooth.models.manager import ModelManager
    from dreambooth.preflight import preflight
    from dreambooth.runs import revealed_token

    settings, controls, bars = load_settings(), Controls(), _Bars()
    config = training_config(arguments)
    _stop_on_signals(controls)
    found = preflight(
        config,
        workspace=Workspace(settings.data_dir),
        manager=ModelManager(),
        token=revealed_token(settings),
        report=bars,
        controls=controls,
    )
    bars.close()
    print("Stopped before the end of the trial." if found is None else "\n".join(found.lines(datetime.datetime.now())))
    return int(found is None)


def _settings_of_file(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError([FieldProblem("config", f"{path} cannot be read: {error}.")]) from None
    if not isinstance(values, dict):
        raise ConfigError([FieldProblem("config", f"{path} must hold a JSON object.")])
    config = TrainingConfig.from_json(values)
    return {name: getattr(config, name) for name in values if name != "output_dir"}


def _concepts(arguments: dict[str, Any]) -> tuple[Concept, ...]:
    path = arguments.pop("concepts_list")
    single = {name: arguments.pop(name) for name in CONCEPT_FLAGS if name in arguments}
    if path is not None:
        return tuple(map(_with_photos_unpacked, load_concepts_list(path)))
    if not single:
        return ()
    missing = [name for name in ("instance_data_dir", "instance_prompt") if not single.get(name)]
    if missing:
        raise ConfigError([FieldProblem(name, "is missing.") for name in missing])
    return (_with_photos_unpacked(Concept(**single)),)


def _with_photos_unpacked(concept: Concept) -> Concept:
    """Return the concept with a folder of the data folder's in place of a .zip, which is unpacked there once."""
    from dreambooth.data.archives import unpacked_folder

    archive = Path(concept.instance_data_dir)
    if archive.suffix.lower() != ".zip" or is_folder(concept.instance_data_dir):
        return concept
    found = unpacked_folder(archive, Workspace(load_settings().data_dir).datasets_dir)
    for path, reason in found.skipped:
        print(f"{path.name!r} in {archive.name} is skipped: {reason}", file=sys.stderr)
    return dataclasses.replace(concept, instance_data_dir=str(found.photos[0].parent))


def _stop_on_signals(controls: Controls) -> None:
    def stop(number: int, frame: object) -> None:
        print("\nFinishing this step, then saving. Once more to leave at once.", file=sys.stderr)
        controls.stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


class _Bars:
    """Shows a run's events as progress bars with the time left, and its sentences between them."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._phase = ""

    def __call__(self, event: Event) -> None:
        from tqdm import tqdm

        from dreambooth.runlog import as_text

        if isinstance(event, PhaseProgress):
            if event.phase != self._phase:
                self.close()
                self._phase = event.phase
                if event.total:
                    name = event.phase.capitalize()
                    self._bar = tqdm(total=event.total, desc=name, initial=event.done, dynamic_ncols=True)
                else:
                    tqdm.write(f"{event.phase.capitalize()} ...")
            if self._bar is not None:
                self._bar.update(event.done - self._bar.n)
        elif isinstance(event, StepLoss):
            if self._bar is not None:
                self._bar.set_postfix(loss=f"{event.loss:.4f}", refresh=False)
        elif text := as_text(event):
            tqdm.write(text)

    def close(self) -> None:
        """End the bar that is shown."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None


# The other commands --------------------------------------------------------------------------------------------------


def generate_command(arguments: dict[str, Any]) -> int:
    """Make pictures and print where they are."""
    model, output_dir = arguments.pop("model"), arguments.pop("output_dir")
    for path in _with_bar(model, GenerationConfig(**arguments).checked(), output_dir):
        print(path)
    return 0


def _with_bar(model: str, config: GenerationConfig, output_dir: Path) -> list[Path]:
    from dreambooth.pictures import generate

    with _step_bar() as on_step:
        return generate(model, config, output_dir, on_step=on_step)


def compare_command(arguments: dict[str, Any]) -> int:
    """Make the same pictures with several steps of a run, and print where they and, last, their grid are."""
    from dreambooth.pictures import compare

    run, steps, output_dir = (arguments.pop(name) for name in ("run", "steps", "output_dir"))
    # Several prompts are several lines, as in a file of settings; a shell's own newline is hard to type.
    arguments["prompt"] = arguments.get("prompt", "").replace("\\n", "\n")
    with _step_bar() as on_step:
        paths = compare(run, GenerationConfig(**arguments), output_dir, steps=steps, on_step=on_step)
    for path in paths:
        print(path)
    return 0


@contextlib.contextmanager
def _step_bar() -> Iterator[Callable[[int, int], None]]:
    """Yield what shows (denoising steps done, in all) as a bar on the terminal."""
    from tqdm import tqdm

    with tqdm(desc="Generating", unit="step", dynamic_ncols=True) as bar:

        def on_step(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield on_step


def doctor_command(arguments: dict[str, Any]) -> int:
    """Print what this machine has; exits with 1 when something is bad."""
    from dreambooth.doctor import doctor

    marks = {"ok": "ok  ", "warn": "note", "bad": "BAD "}
    findings = doctor(load_settings().data_dir)
    for finding in findings:
        print(f"{marks[finding.level]}  {finding.what}")
        if finding.todo:
            print(f"      -> {finding.todo}")
    return int(any(finding.level == "bad" for finding in findings))


def demo_command(arguments: dict[str, Any]) -> int:
    """Train on the bundled sample subject with the starter, convert, generate, and say where everything is."""
    from dreambooth.models.base import STARTER, read_card
    from dreambooth.samples import sample_concept
    from dreambooth.workspace import Workspace

    workspace = Workspace(load_settings().data_dir)
    concept = sample_concept()
    run = workspace.run(workspace.new_run_name("demo"))
    explicit = {
        "pretrained_model_name_or_path": STARTER,
        "concepts": (concept,),
        "output_dir": str(run.path),
        "mixed_precision": "no",
        "use_8bit_adam": False,
    }
    config = resolve(explicit, read_card(STARTER).recipe, "recommended").checked()
    controls, bars = Controls(), _Bars()
    _stop_on_signals(controls)
    from dreambooth.runs import train

    model = train(config, controls=controls, on_event=bars)
    bars.close()
    file = file_commands.converted(model, workspace.exports_dir / f"{run.name}.safetensors", precision="fp16").path
    request = GenerationConfig(prompt=concept.instance_prompt, seed=1, guidance_scale=config.save_guidance_scale)
    pictures = _with_bar(str(model), request.checked(), workspace.pictures_dir / run.name)
    print(f"\nThe model:    {model}\nThe file:     {file}\nThe pictures: {pictures[0].parent}")
    for picture in pictures:
        print(f"              {picture.name}")
    return 0


def starter_build_command(arguments: dict[str, Any]) -> int:
    """Make the starter model; interrupted, the same command goes on where it was."""
    from dreambooth.models.original_file import starter_folder
    from dreambooth.starter.build import build_starter

    bars = _StageBars()
    build_starter(arguments["seed"], arguments["minutes"], arguments["go_on"], starter_folder(), on_progress=bars)
    bars.close()
    return 0


class _StageBars:
    """Shows the stages of a build one below the other, each as a bar with the time left."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def __call__(self, stage: str, percent: int, note: str) -> None:
        from tqdm import tqdm

        if self._bar is None or self._bar.desc != stage:
            self.close()
            self._bar = tqdm(total=100, desc=stage, unit="%", dynamic_ncols=True)
            self._bar.desc = stage
        self._bar.n = percent
        self._bar.set_postfix_str(note)

    def close(self) -> None:
        """End the bar that is shown."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None
