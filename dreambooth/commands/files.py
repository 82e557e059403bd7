"""The commands that handle files: a model as one file or archive, or on the Hub; sample grids; cleaning up."""

import ctypes
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.commands.bars import progress_bar
from dreambooth.commands.flags import BASE_HELP, add_command, base_name
from dreambooth.config.limits import refuse_place, user_path
from dreambooth.errors import ConfigError, FieldProblem
from dreambooth.export.extraction import SIZE_LIMITS, LoraSize
from dreambooth.formats.lora_keys import LORA_TARGETS
from dreambooth.models.strength import WHOLE, Strength
from dreambooth.records.storage import CHOICES as CLEANABLE

if TYPE_CHECKING:
    from dreambooth.export.single_file import Precision
    from dreambooth.export.verify import Verdict

# Of malloc.h.
M_MMAP_THRESHOLD = -3
LARGE_BYTES = 1 << 20


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    convert = add_command(commands, "convert", convert_command, "write a model or LoRA file for other tools")
    convert.add_argument("model_dir", nargs="?", help="A run, a step folder or any diffusers folder.")
    convert.add_argument("out", nargs="?", help="The file to write: .safetensors or .ckpt.")
    convert.add_argument("--model_path", help="The same as MODEL_DIR.")
    convert.add_argument("--checkpoint_path", help="The same as OUT.")
    convert.add_argument("--half", action="store_true", help="Store weights in fp16.")
    convert.add_argument("--precision", choices=("fp16", "fp32"), help="Number format; default: the folder's own.")
    for name in ("unet", "text_encoder"):
        convert.add_argument(
            f"--{name}_strength", type=float, default=1.0, metavar="FLOAT",
            help="Strength to bake in: 0 is the base model, 1 the trained model, at most 2.",
        )  # fmt: skip
    convert.add_argument("--use_safetensors", action="store_true", help="Write safetensors, whatever the file's name.")
    convert.add_argument(
        "--as", choices=("checkpoint", "lora"), dest="kind",
        help="Write a whole model, or a LoRA: a small file that adds what was learned to any model of the same family. "
        "Default: what the step is.",
    )  # fmt: skip
    size = convert.add_mutually_exclusive_group()
    size.add_argument("--rank", type=int, metavar="INT", help="Rank of the LoRA, 1 to 320 (default 16).")
    size.add_argument(
        "--max_mb", type=float, metavar="FLOAT", help="Size limit of the LoRA in megabytes: the best ranks that fit."
    )
    size.add_argument(
        "--max_error", type=float, metavar="FLOAT",
        help="Largest error of the LoRA, as a share of the change (0 to 1): the smallest ranks that reach it.",
    )  # fmt: skip
    convert.add_argument(
        "--lora_targets",
        choices=LORA_TARGETS,
        help="Which weights a LoRA changes: attention; all linear layers of the transformer blocks; with convolutions "
        "(default linear).",
    )
    convert.add_argument(
        "--base", type=base_name, help=BASE_HELP + " With --as checkpoint, any other that a LoRA is added to."
    )

    push = add_command(commands, "push", push_command, "upload a model to the Hub, private by default")
    push.add_argument("model", help="A run, a step folder or any diffusers folder.")
    push.add_argument("repo_id", help="owner/name, or a name in your own account; an existing repository is updated.")
    push.add_argument("--public", action="store_true", help="Make a new repository public.")
    push.add_argument("--single_file", action="store_true", help="Also upload one .safetensors file for web UIs.")
    push.add_argument("--base", type=base_name, help=BASE_HELP)

    pack = add_command(commands, "zip", zip_command, "pack a model folder, or the samples of a run, into a .zip")
    pack.add_argument("model", type=user_path, help="A run, a step folder or any diffusers folder.")
    pack.add_argument("out", type=user_path, help="The archive.")
    pack.add_argument("--samples", action="store_true", help="Pack the sample pictures of a run instead.")

    clean = add_command(commands, "clean", clean_command, "show disk usage, and delete what is not needed")
    clean.add_argument("run", nargs="?", type=user_path, help="A run's folder; default: everything in the data folder.")
    clean.add_argument(
        "--what", nargs="+", choices=CLEANABLE, metavar="CHOICE",
        help=f"What to delete: {', '.join(map(repr, CLEANABLE))}; default: intermediate weights and caches.",
    )  # fmt: skip
    clean.add_argument("--yes", action="store_true", help="Delete it; without this flag it is only listed.")

    grid = add_command(commands, "grid", grid_command, "put a run's sample pictures into one grid, one row per step")
    grid.add_argument("run", type=user_path, help="The run's folder.")
    grid.add_argument(
        "out", nargs="?", type=user_path, help="The picture file; default: `grid.png` in the current folder."
    )


def convert_command(arguments: dict[str, Any]) -> int:
    """Write one file in the original layout and print where it is."""
    model = arguments["model_path"] or arguments["model_dir"]
    out = arguments["checkpoint_path"] or arguments["out"]
    problems = [FieldProblem(name, "is missing.") for name, value in (("MODEL_DIR", model), ("OUT", out)) if not value]
    if arguments["half"] and arguments["precision"] == "fp32":
        problems.append(FieldProblem("half", "means fp16, and precision says fp32."))
    if problems:
        raise ConfigError(problems)
    precision: Precision | None = "fp16" if arguments["half"] else arguments["precision"]
    _give_freed_memory_back_at_once()
    strength = Strength(arguments["unet_strength"], arguments["text_encoder_strength"])
    wrong = [name for name in ("unet_strength", "text_encoder_strength") if not 0 <= arguments[name] <= 2]
    if wrong:
        raise ConfigError([FieldProblem(name, f"is {arguments[name]:g}: it must be 0 to 2.") for name in wrong])
    refuse_place("OUT", user_path(out), is_folder=False)
    from dreambooth.formats.layout import lora_file
    from dreambooth.records.workspace import newest_step_folder

    step, target = newest_step_folder(user_path(model)), user_path(out)
    is_lora = lora_file(step) is not None
    if arguments["kind"] == "lora" or (is_lora and arguments["kind"] is None):
        if arguments["use_safetensors"] and target.suffix == ".ckpt":
            target = target.with_suffix(".safetensors")
        if is_lora and all(arguments[name] is None for name in SIZE_LIMITS):
            _refuse_settings(arguments, ["lora_targets"], "is that of the training: add --rank to write another LoRA.")
            return _saved_lora_command(arguments, step, target, precision, strength)
        return _lora_command(arguments, step, target, precision, strength)
    _refuse_settings(arguments, [*SIZE_LIMITS, "lora_targets"], "applies only with --as lora.")
    if not is_lora and strength.is_whole:
        _refuse_settings(arguments, ["base"], "has no effect on a whole model at its trained strength.")
    verdict = converted(
        step, target, precision=precision, use_safetensors=arguments["use_safetensors"], strength=strength,
        base=arguments["base"],
    )  # fmt: skip
    print(f"{verdict.path}\n{verdict}")
    return 0


def _saved_lora_command(
    arguments: dict[str, Any], step: Path, out: Path, precision: "Precision | None", strength: Strength
) -> int:
    """Export a LoRA step as a LoRA file, and print the result of its verification."""
    from dreambooth.export.saved_lora import convert_lora

    verdict = convert_lora(
        step, out, precision=precision, strength=strength, base=arguments["base"], **_where_models_are()
    )
    print(f"{verdict.path}\n{verdict}")
    return 0


def _lora_command(
    arguments: dict[str, Any], step: Path, out: Path, precision: "Precision | None", strength: Strength
) -> int:
    """Extract a LoRA from a step and print what it lacks."""
    from dreambooth.export.extraction import extract_lora

    given = {name: arguments[name] for name in SIZE_LIMITS if arguments[name] is not None}
    size = LoraSize(**given).checked() if given else None
    with progress_bar("Extracting", "module") as on_progress:
        verdict = extract_lora(
            step, out, size=size, precision=precision,
            targets=arguments["lora_targets"], strength=strength, base=arguments["base"],
            on_progress=on_progress, **_where_models_are(),
        )  # fmt: skip
    print(f"{verdict.path}\n{verdict}")
    return 0


def _refuse_settings(arguments: dict[str, Any], names: list[str], why: str) -> None:
    """Raise ConfigError for those of these settings that were given, with the reason why they cannot be used."""
    given = [name for name in names if arguments[name] is not None]
    if given:
        raise ConfigError([FieldProblem(name, why) for name in given])


def _where_models_are() -> dict[str, Any]:
    """Return the models folder and the Hub token, as functions that load a base take them."""
    from dreambooth.environment import load_settings
    from dreambooth.records.workspace import Workspace

    settings = load_settings()
    return {"models_dir": Workspace(settings.data_dir).models_dir, "token": settings.hub_token}


def _give_freed_memory_back_at_once() -> None:
    """Have the C library map each large block separately, so that the process holds no more memory than is in use.

    By default glibc keeps freed memory for reuse: at SD 1.5's size 0.96 GB instead of 0.57. Only for a process that
    converts; in a training every large block would cost page faults.
    """
    if sys.platform == "linux":
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if set_option is not None:
            set_option(M_MMAP_THRESHOLD, LARGE_BYTES)


def converted(
    model: Path,
    out: Path,
    *,
    precision: "Precision | None" = None,
    use_safetensors: bool = False,
    strength: Strength = WHOLE,
    base: str | None = None,
) -> "Verdict":
    """Write one verified file of a run, a step or a folder at this strength, with a progress bar on the terminal."""
    from dreambooth.export.verify import convert_verified
    from dreambooth.records.workspace import newest_step_folder

    with progress_bar("Converting", "tensor") as on_progress:
        return convert_verified(
            newest_step_folder(model), out, strength=strength, precision=precision,
            use_safetensors=use_safetensors or None, on_progress=on_progress, base=base, **_where_models_are(),
        )  # fmt: skip


def push_command(arguments: dict[str, Any]) -> int:
    """Upload a model to the Hub and print where it is."""
    from dreambooth.formats.layout import lora_file
    from dreambooth.records.workspace import newest_step_folder

    model = newest_step_folder(user_path(arguments["model"]))
    # A LoRA is a single file for web UIs anyway.
    single_file = arguments["single_file"] and lora_file(model) is None
    pushed(
        model, arguments["repo_id"], private=not arguments["public"], single_file=single_file, base=arguments["base"]
    )
    return 0


def pushed(model: Path, repo_id: str, *, private: bool, single_file: bool, base: str | None = None) -> None:
    """Upload a step folder with the environment's token, including its verified single file if asked for."""
    from dreambooth.environment import load_settings
    from dreambooth.export.hub import push, refuse_push, single_file_name
    from dreambooth.scoring.bleed import report_for_card

    token = load_settings().hub_token
    refuse_push(repo_id, token)
    with progress_bar("Pictures of other prompts, for the model card", "picture", delay_s=1) as on_picture:
        report_for_card(model, on_picture=on_picture, base=base)
    with tempfile.TemporaryDirectory(prefix="dreambooth-") as folder:
        file = (
            converted(model, Path(folder) / single_file_name(repo_id), precision="fp16").path if single_file else None
        )
        print(push(model, repo_id, token=token, private=private, single_file=file))


def refuse_push_of_a_run(repo_id: str | None) -> None:
    """Raise ConfigError or ExportError now rather than after hours of training; the default name is the run's."""
    from dreambooth.environment import load_settings
    from dreambooth.export.hub import refuse_push

    token = load_settings().hub_token
    if token is None:
        message = "needs a token with write permission: set HF_TOKEN in the environment or in .env."
        raise ConfigError([FieldProblem("push_to_hub", message)])
    refuse_push(repo_id, token)


def zip_command(arguments: dict[str, Any]) -> int:
    """Write a model's folder, or a run's samples, as an archive and print where it is."""
    from dreambooth.export.archive import zip_model, zip_samples
    from dreambooth.records.workspace import RunFolder, newest_step_folder

    model: Path = arguments["model"]
    out: Path = arguments["out"]
    refuse_place("out", out, is_folder=False)
    print(zip_samples(RunFolder(model), out) if arguments["samples"] else zip_model(newest_step_folder(model), out))
    return 0


def clean_command(arguments: dict[str, Any]) -> int:
    """Print the disk usage and what would be deleted; deletes only with --yes."""
    from dreambooth.environment import load_settings
    from dreambooth.records.storage import CHOICES, COST, carry_out, plan, run_to_clean, usage
    from dreambooth.records.workspace import Workspace

    workspace = Workspace(load_settings().data_dir)
    runs = [run_to_clean(arguments["run"])] if arguments["run"] else None
    wanted = arguments["what"] or ["intermediate weights", "caches"]
    if runs is None:
        for one in usage(workspace):
            print(f"{in_mb(one.num_bytes)}  {one.kind}: {one.name}" + (f"  [{one.choice}]" if one.choice else ""))
        print()
    planned = plan(workspace, wanted, runs)
    for choice in CHOICES:
        if choice in wanted:
            print(f"{choice}: {COST[choice]}")
    for deletion in planned.deletions:
        print(f"{in_mb(deletion.num_bytes)}  {deletion.path}")
    for sentence in planned.kept:
        print(sentence)
    if not arguments["yes"]:
        print(f"{in_mb(planned.num_bytes)}  would be freed. Nothing was deleted; --yes deletes exactly these files.")
        return 0
    print(f"{in_mb(carry_out(workspace, planned))}  freed.")
    return 0


def in_mb(num_bytes: int) -> str:
    """Return a size in MB, padded to a column."""
    return f"{num_bytes / 1e6:10.1f} MB"


def grid_command(arguments: dict[str, Any]) -> int:
    """Write a run's samples as one grid image and print where it is."""
    from dreambooth.pictures.grid import write_sample_grid

    out: Path = arguments["out"] or Path("grid.png")
    refuse_place("out", out, is_folder=False)
    print(write_sample_grid(arguments["run"], out))
    return 0
