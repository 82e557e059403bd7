"""The command that identifies a file of weights."""

from pathlib import Path
from typing import Any

from dreambooth.commands.flags import add_command
from dreambooth.config.limits import user_path


def add(commands: Any) -> None:
    """Add the command to the parser."""
    inspect = add_command(
        commands, "inspect", inspect_command, "say what a file is: a LoRA, a model, or something else"
    )
    inspect.add_argument("file", type=user_path, help="A file of weights, or a run's or model's folder.")


def inspect_command(arguments: dict[str, Any]) -> int:
    """Print what a file is, which models it fits and whether it can be used here; exits with 1 if it cannot."""
    from dreambooth.models.inspection import inspect_file

    file: Path = arguments["file"]
    report = inspect_file(file)
    rows = [("What it is", report.what), *report.rows]
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        print(f"{label:<{width}}  {text}")
    print(f"\n{report.problem or 'It can be used here.'}")
    return int(bool(report.problem))
