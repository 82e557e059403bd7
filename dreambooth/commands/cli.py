"""The command line, which uses the same engine as the page.

Commands that train, handle files or measure quality have their own modules; the others are here.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dreambooth.commands import files as file_commands
from dreambooth.commands import inspection as inspection_commands
from dreambooth.commands import quality as quality_commands
from dreambooth.commands import train as train_commands
from dreambooth.commands.bars import RunBars, StageBars, progress_bar
from dreambooth.commands.flags import add_command, add_flag, base_name
from dreambooth.commands.parser import Parser
from dreambooth.config.fields import describe
from dreambooth.config.generation import AddedLora, GenerationConfig
from dreambooth.config.limits import refuse_place, user_path
from dreambooth.config.presets import resolve
from dreambooth.entry_point import run_program
from dreambooth.environment import load_settings
from dreambooth.errors import StoppedError
from dreambooth.events import Controls
from dreambooth.records.workspace import Workspace


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 1 for a user's mistake, which is reported in a sentence."""

    def run() -> int:
        arguments = vars(build_parser().parse_args(argv))
        command: Callable[[dict[str, Any]], int] = arguments.pop("run_command")
        return command(arguments)

    return run_program(run)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(prog="python -m dreambooth", description="Train Stable Diffusion on 3 to 5 photos of a subject.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train_commands.add(commands)
    _add_picture_commands(commands)
    quality_commands.add(commands)
    file_commands.add(commands)
    inspection_commands.add(commands)
    add_command(commands, "doctor", doctor_command, "check this machine: what works, what is missing and how to fix it")
    add_command(
        commands, "demo", demo_command, "train, convert and generate with the bundled sample photos, in minutes"
    )
    _add_starter(commands)
    return parser


def _add_picture_commands(commands: Any) -> None:
    generate = add_command(commands, "generate", generate_command, "generate pictures with a model")
    generate.add_argument("--model", required=True, help="A run, a step folder, a base, or `starter`.")
    generate.add_argument("--output_dir", required=True, type=user_path, help="Folder for the pictures.")
    _add_request(generate)

    compare = add_command(
        commands, "compare", compare_command, "generate the same pictures with several steps of a run, as a grid"
    )
    compare.add_argument("run", type=user_path, help="The run's folder.")
    compare.add_argument(
        "--steps", type=int, nargs="+", default=[], help="Saved steps; 0 is the base model; default: all saved steps."
    )
    compare.add_argument("--output_dir", required=True, type=user_path, help="Folder for the pictures and their grid.")
    _add_request(compare)


def _add_request(command: argparse.ArgumentParser) -> None:
    """Add the flags of a generation request, including the LoRAs to add to the model."""
    for info in describe(GenerationConfig):
        add_flag(command, info)
    command.add_argument(
        "--lora", action="append", type=AddedLora.of, default=[], metavar="FILE[:STRENGTH]",
        help="A LoRA file to add, with its strength (-5 to 5; default 1); can be repeated.",
    )  # fmt: skip
    command.add_argument(
        "--base", type=base_name, help="The base model that a LoRA is added to; default: the one it was trained on."
    )


def _add_starter(commands: Any) -> None:
    starter = commands.add_parser("starter", help="build the embedded starter model")
    build = starter.add_subparsers(required=True, metavar="COMMAND").add_parser("build", help="train it from scratch")
    build.set_defaults(run_command=starter_build_command)
    build.add_argument("--seed", type=int, default=0, help="Random seed.")
    build.add_argument("--minutes", type=float, default=240.0, help="Time limit for the whole build.")
    build.add_argument("--continue", action="store_true", dest="go_on", help="Continue from the existing weights.")
    build.add_argument("--size", type=int, choices=(64, 128), default=64, help="Native size in pixels.")
    build.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="Where to train.")
    build.add_argument("--output_dir", type=Path, help="Where to write the model (default: the embedded starter).")
    build.add_argument("--work_dir", type=Path, default=Path("outputs/starter-build"), help="Where progress is kept.")


def generate_command(arguments: dict[str, Any]) -> int:
    """Generate images and print where they are."""
    model, output_dir, base = (arguments.pop(name) for name in ("model", "output_dir", "base"))
    refuse_place("output_dir", output_dir)
    request = GenerationConfig(loras=tuple(arguments.pop("lora")), **arguments)
    for path in _with_bar(base_name(model), request.checked(), output_dir, base):
        print(path)
    return 0


def _with_bar(model: str, config: GenerationConfig, output_dir: Path, base: str | None = None) -> list[Path]:
    from dreambooth.pictures.painter import generate

    with _notices() as notice, progress_bar("Generating", "step") as on_step:
        return generate(model, config, output_dir, on_step=on_step, notice=notice, base=base)


@contextlib.contextmanager
def _notices() -> Iterator[Callable[[str], None]]:
    """Yield a callback that collects notices to print at the end, as a progress bar occupies the line until then."""
    texts: list[str] = []
    try:
        yield texts.append
    finally:
        for text in texts:
            print(text, file=sys.stderr)


def compare_command(arguments: dict[str, Any]) -> int:
    """Generate the same images with several steps of a run; print where they are and, last, where their grid is."""
    from dreambooth.pictures.painter import compare

    run, steps, output_dir, base = (arguments.pop(name) for name in ("run", "steps", "output_dir", "base"))
    refuse_place("output_dir", output_dir)
    # Several prompts are given as several values, because a newline is hard to type in a shell.
    arguments["prompt"] = arguments.get("prompt", "").replace("\\n", "\n")
    request = GenerationConfig(loras=tuple(arguments.pop("lora")), **arguments)
    with _notices() as notice, progress_bar("Generating", "step") as on_step:
        paths = compare(
            run, request, output_dir, steps=steps, base=base or "", on_step=on_step, notice=notice
        )  # fmt: skip
    for path in paths:
        print(path)
    return 0


def doctor_command(arguments: dict[str, Any]) -> int:
    """Print the state of this machine and installation; exits with 1 when something is wrong."""
    from dreambooth.device.doctor import doctor

    marks = {"ok": "ok  ", "warn": "note", "bad": "BAD "}
    findings = doctor(load_settings().data_dir)
    for finding in findings:
        print(f"{marks[finding.level]}  {finding.what}")
        if finding.todo:
            print("      -> " + finding.todo.replace("\n", "\n         "))
    return int(any(finding.level == "bad" for finding in findings))


def demo_command(arguments: dict[str, Any]) -> int:
    """Train on the bundled sample subject with the starter, convert, generate, and print where everything is."""
    from dreambooth.data.samples import sample_concept
    from dreambooth.models.base import STARTER, read_card
    from dreambooth.runs.run import train

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
    config = resolve(explicit, read_card(STARTER).recipes, "recommended").checked()
    controls, bars = Controls(), RunBars()
    with train_commands.stopping_on_signals(controls):
        model = train(config, controls=controls, on_event=bars, explicit=())
        bars.close()
        if controls.stop.is_set():
            raise StoppedError(
                f"The demo was stopped. Its model is in {model}.", "Nothing was converted or generated.",
                f"To continue the training: python -m dreambooth train --resume_from_checkpoint {run.path}",
            )  # fmt: skip
    file = file_commands.converted(model, workspace.exports_dir / f"{run.name}.safetensors", precision="fp16").path
    request = GenerationConfig(prompt=concept.instance_prompt, seed=1, guidance_scale=config.save_guidance_scale)
    pictures = _with_bar(str(model), request.checked(), workspace.pictures_dir / run.name)
    print(f"\nThe model:    {model}\nThe file:     {file}\nThe pictures: {pictures[0].parent}")
    for picture in pictures:
        print(f"              {picture.name}")
    return 0


def starter_build_command(arguments: dict[str, Any]) -> int:
    """Build the starter model; after an interruption the same command continues where it stopped."""
    from dreambooth.models.sd_file import starter_folder
    from dreambooth.starter.build import build_starter
    from dreambooth.starter.recipe import recipe_for

    with StageBars(unit="%") as bars:
        build_starter(
            arguments["seed"], arguments["minutes"], arguments["go_on"], arguments["output_dir"] or starter_folder(),
            on_progress=lambda stage, percent, note: bars(stage, percent, 100, note),
            recipe=recipe_for(arguments["size"], arguments["device"]), work_dir=arguments["work_dir"],
        )  # fmt: skip
    return 0
