"""The commands that measure quality: scoring the steps of a run, and the paper's benchmark."""

from pathlib import Path
from typing import Any, get_args

from dreambooth.commands.bars import StageBars, progress_bar
from dreambooth.commands.flags import BASE_HELP, base_name
from dreambooth.config.limits import refuse_place, user_path
from dreambooth.config.training import SD15, MethodName, TrainingConfig
from dreambooth.errors import ConfigError, FieldProblem


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    sentence = "score every saved step of a run, and recommend one"
    score = commands.add_parser("score", help=sentence, description=sentence.capitalize() + ".")
    score.set_defaults(run_command=score_command)
    score.add_argument("run", type=user_path, help="The run's folder.")
    score.add_argument("--probes", type=int, metavar="NUMBER", help="Pictures of the subject per step; default 4.")
    score.add_argument("--base", type=base_name, help=BASE_HELP)
    score.add_argument("--offline", action="store_true", help="Do not download encoders; use those on this machine.")

    sentence = "compare a saved step with its base model on other prompts: the most changed first"
    bleed = commands.add_parser("bleed", help=sentence, description=sentence.capitalize() + ".")
    bleed.set_defaults(run_command=bleed_command)
    bleed.add_argument("run", type=user_path, help="The run's folder.")
    bleed.add_argument("--step", type=int, help="A saved step; default: the last.")
    bleed.add_argument("--base", type=base_name, help=BASE_HELP)
    bleed.add_argument("--offline", action="store_true", help="Do not download encoders; use those on this machine.")
    _add_evaluate(commands)


def _add_evaluate(commands: Any) -> None:
    sentence = "run the DreamBooth paper's evaluation on a folder of subjects: train, generate, measure, table"
    evaluate = commands.add_parser("evaluate", help=sentence, description=sentence.capitalize() + ".")
    evaluate.set_defaults(run_command=evaluate_command)
    evaluate.add_argument(
        "subjects_dir", type=user_path, help="A folder with one folder of photos per subject, named after it."
    )
    evaluate.add_argument(
        "--output_dir", type=user_path, required=True, help="Folder for all results; existing results are kept."
    )
    evaluate.add_argument("--pretrained_model_name_or_path", default=SD15, help="The base model; default SD 1.5.")
    evaluate.add_argument("--class_word", help="Class for subjects that prompts_and_classes.txt does not list.")
    evaluate.add_argument("--subjects", type=int, metavar="N", help="Only the first N subjects.")
    evaluate.add_argument("--prompts", type=int, metavar="N", help="Only the first N of the 25 prompts.")
    evaluate.add_argument("--images", type=int, default=4, metavar="N", help="Pictures per prompt; 4 in the paper.")
    evaluate.add_argument(
        "--max_train_steps", type=int, metavar="N", help="Number of training steps; default: the recipe's."
    )
    evaluate.add_argument(
        "--method", choices=get_args(MethodName), default=TrainingConfig().method,
        help="Train the whole model (full) or a LoRA for each subject.",
    )  # fmt: skip


def bleed_command(arguments: dict[str, Any]) -> int:
    """Write and print the report of what a step changed besides its subject."""
    from dreambooth.export.model_card import bleed_dir
    from dreambooth.records.workspace import RunFolder
    from dreambooth.scoring.bleed import bleed_report, report_lines

    run, step = RunFolder(arguments["run"]), arguments["step"]
    with progress_bar("Pictures of other prompts", "picture") as on_picture:
        ranked = bleed_report(
            run.path, step, download=not arguments["offline"], on_picture=on_picture, base=arguments["base"]
        )
    print("\n".join(report_lines(ranked, bleed_dir(run.step_folder(step or run.steps()[-1])))))
    return 0


def evaluate_command(arguments: dict[str, Any]) -> int:
    """Evaluate a base and its recipe on a folder of subjects, and print the table."""
    from dreambooth.runs.evaluate import Request, evaluate, table

    counts = {name: arguments[name] for name in ("subjects", "prompts", "images", "max_train_steps")}
    wrong = [FieldProblem(name, "must be at least 1.") for name, count in counts.items() if (count or 1) < 1]
    if wrong:
        raise ConfigError(wrong)
    refuse_place("output_dir", arguments["output_dir"])
    request = Request(
        arguments["subjects_dir"], arguments["output_dir"], arguments["pretrained_model_name_or_path"],
        arguments["class_word"], counts["subjects"], counts["prompts"], counts["images"], counts["max_train_steps"],
        arguments["method"],
    )  # fmt: skip
    with StageBars() as on_progress:
        scores = evaluate(request, on_progress=on_progress)
    print("\n".join(table(scores)))
    print(f"The scores are in {request.output_dir / 'scores.json'}, a contact sheet of each subject beside its run.")
    return 0


def score_command(arguments: dict[str, Any]) -> int:
    """Score a run, and print its table and the recommended step."""
    from dreambooth.records.workspace import RunFolder
    from dreambooth.scoring.run import score_lines, score_run

    run: Path = arguments["run"]
    with progress_bar("Probe pictures", "picture") as on_picture:
        scores = score_run(
            run, num_probes=arguments["probes"], download=not arguments["offline"], on_picture=on_picture,
            base=arguments["base"],
        )  # fmt: skip
    print("\n".join(score_lines(scores, RunFolder(run))))
    return 0
