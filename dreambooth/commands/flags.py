"""Adds commands and their flags to the parser.

Flags are generated from the settings' descriptions. A setting that is not given comes from the base's card, then the
preset, then the seed script's default (`presets.resolve`).
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from dreambooth.config.fields import FieldInfo
from dreambooth.config.limits import user_path

BASE_HELP = "The run's base model, if it is no longer where the run recorded it."


def base_name(text: str) -> str:
    """Return the name of a base as typed; `~` is expanded to the home folder."""
    return str(user_path(text)) if text.startswith("~") else text


def add_command(
    commands: Any, name: str, run: Callable[[dict[str, Any]], int], sentence: str
) -> argparse.ArgumentParser:
    """Add a command that calls this function, and return its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=sentence, description=sentence.capitalize() + ".")
    parser.set_defaults(run_command=run)
    return parser


class Switch(argparse.Action):
    """Turns a setting on with `--NAME`, and with `--no_NAME` turns off what a card or preset turned on."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        off = [option.replace("--", "--no_", 1) for option in option_strings]
        super().__init__([*option_strings, *off], dest, nargs=0, **options)
        self._off = frozenset(off)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Store whether the flag that was given turns the setting on."""
        setattr(namespace, self.dest, option not in self._off)


def add_flag(parser: "argparse._ActionsContainer", info: FieldInfo) -> None:
    """Add a setting as a flag with its range and default."""
    if info.type is bool:
        parser.add_argument(f"--{info.name}", action=Switch, default=argparse.SUPPRESS, help=info.sentence)
        return
    details = "; ".join(
        part for part in (info.range_text, "" if info.default is None else f"default {info.default}") if part
    )
    parser.add_argument(
        f"--{info.name}",
        type=info.type,
        choices=info.choices or None,
        default=argparse.SUPPRESS,
        metavar="NAME" if info.choices else info.type.__name__.upper(),
        help=(f"{info.sentence} ({details})" if details else info.sentence).replace("%", "%%"),
    )
