"""The commands about files: a model as one file, as an archive, on the Hub; samples in one picture; cleaning."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.errors import ConfigError, FieldProblem

if TYPE_CHECKING:
    from dreambooth.export.single_file import Precision
    from dreambooth.verify import Verdict


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
    verdict = converted(Path(model), Path(out), precision=precision, use_safetensors=arguments["use_safetensors"])
    print(f"{verdict.path}\n{verdict}")
    return 0


def converted(
    model: Path, out: Path, *, precision: "Precision | None" = None, use_safetensors: bool = False
) -> "Verdict":
    """Write one verified file of a run, a step or a folder, with a bar on the terminal."""
    from tqdm import tqdm

    from dreambooth.verify import convert_verified
    from dreambooth.workspace import newest_step_folder

    with tqdm(desc="Converting", unit="tensor", dynamic_ncols=True) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return convert_verified(
            newest_step_folder(model), out, precision=precision, use_safetensors=use_safetensors or None,
            on_progress=on_progress,
        )  # fmt: skip


def grid_command(arguments: dict[str, Any]) -> int:
    """Write one picture of a run's samples and print where it is."""
    from dreambooth.sample_grid import write_sample_grid

    run: Path = arguments["run"]
    print(write_sample_grid(run, arguments["out"] or Path("grid.png")))
    return 0
