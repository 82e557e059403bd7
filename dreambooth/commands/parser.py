"""A parser with a short usage line, which answers a mistyped flag or value in one line that names the nearest match."""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

NUMBERS = {"int": "a whole number", "float": "a number"}
# argparse's messages about a value, in Python 3.11 to 3.13.
WRONG_VALUE = re.compile(
    r"argument (?P<name>.+?): invalid (?P<kind>\w+)(?: value)?: '(?P<value>.*?)'(?: \(.*\))?", re.S
)


class Parser(argparse.ArgumentParser):
    """Parses like argparse; a mistake is one line on standard error and exit status 2."""

    # argparse's types have an overload for other namespace classes, which nobody here passes.
    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse, and report a flag that this command does not have before any missing argument."""
        if self._subparsers is None:
            given = _before_dashes(sys.argv[1:] if args is None else args)
            self._refuse([arg.split("=")[0] for arg in given if self._is_unknown_flag(arg)])
        found, unknown = super().parse_known_args(args, namespace)
        self._refuse(unknown)
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Print the mistake in one line and end the program with status 2."""
        self.exit(2, f"error: {self._in_words(message)}\n")

    def format_usage(self) -> str:
        """Return the command with its required arguments, in one line."""
        needed, rest = [], False
        for action in self._actions:
            word = self._metavar(action)
            if not action.option_strings:
                needed.append(word if action.nargs not in ("?", "*") else f"[{word}]")
            elif action.required:
                needed.append(f"{action.option_strings[0]} {word}")
            else:
                rest = True
        return " ".join(["usage:", self.prog, *needed, *(["[FLAGS]"] if rest else [])]) + "\n"

    def format_help(self) -> str:
        """Return argparse's help below the short usage."""
        self.usage = self.format_usage().removeprefix("usage: ").strip().replace("%", "%%")
        return super().format_help()

    def _metavar(self, action: argparse.Action) -> str:
        return action.metavar if isinstance(action.metavar, str) else action.dest.upper()

    def _is_unknown_flag(self, arg: str) -> bool:
        """Return whether this looks like a flag, complete or abbreviated, that the command does not have."""
        name = arg.split("=")[0]
        is_flag = name.startswith("--") and " " not in arg
        return is_flag and not any(flag.startswith(name) for flag in self._option_string_actions)

    def _refuse(self, unknown: Sequence[str]) -> None:
        if not unknown:
            return
        flags = [arg for arg in unknown if arg.startswith("-")]
        names = [f"{flag}{self._nearest(flag)}" for flag in dict.fromkeys(flags)]
        if names:
            self.exit(2, f"error: There is no flag {', and no flag '.join(names)}.{self._see_help()}\n")
        self.exit(2, f'error: "{unknown[0]}" is one word too many.{self._see_help()}\n')

    def _nearest(self, flag: str) -> str:
        visible = [name for name, action in self._option_string_actions.items() if action.help != argparse.SUPPRESS]
        found = difflib.get_close_matches(flag.replace("-", "_"), [name.replace("-", "_") for name in visible], n=1)
        nearest = next((name for name in visible if found and name.replace("-", "_") == found[0]), None)
        return f" (did you mean {nearest}?)" if nearest else ""

    def _see_help(self) -> str:
        return f" {self.prog} --help lists what there is."

    def _in_words(self, message: str) -> str:
        """Return argparse's message as a sentence."""
        wrong = WRONG_VALUE.fullmatch(message)
        if wrong is None:
            message = re.sub(r"^argument (.+?): expected (?:one|at least one) argument$", r"\1 needs a value.", message)
            missing = message.removeprefix("the following arguments are required: ")
            return message if missing == message else f"What is missing: {missing}.{self._see_help()}"
        name, kind, value = wrong["name"], wrong["kind"], wrong["value"]
        if kind in NUMBERS:
            return f'{name} is "{value}": it must be {NUMBERS[kind]}.'
        choices = self._choices(name)
        if not choices:
            return f'{name} is "{value}", which cannot be read.'
        near = difflib.get_close_matches(value, choices, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"choose {', '.join(choices[:-1])} or {choices[-1]}."
        return f'{name} is "{value}": {hint}'

    def _choices(self, name: str) -> list[str]:
        """Return the choices of an argument, by its name in argparse's messages."""
        for action in self._actions:
            if name in ("/".join(action.option_strings), action.metavar, action.dest):
                return [str(choice) for choice in action.choices or ()]
        return []


def _before_dashes(args: Sequence[str]) -> list[str]:
    """Return the arguments before a lone `--`, after which nothing is a flag."""
    return list(args[: args.index("--")]) if "--" in args else list(args)
