"""The commands about how good a model is: scoring the steps of a run."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add these commands to the parser's."""
    sentence = "look at every saved step of a run, and name the best"
    score = commands.add_parser("score", help=sentence, description=sentence.capitalize() + ".")
    score.set_defaults(run_command=score_command)
    score.add_argument("run", type=Path, help="The run's folder.")
    score.add_argument("--probes", type=int, metavar="NUMBER", help="Pictures of the subject per step; left out, 4.")
    score.add_argument("--offline", action="store_true", help="Fetch no encoders; take those that are there.")


def score_command(arguments: dict[str, Any]) -> int:
    """Score a run, and print its table and which step to take."""
    from dreambooth.score import score_run, told
    from dreambooth.workspace import RunFolder

    run: Path = arguments["run"]
    with _bar("Probe pictures") as on_picture:
        scores = score_run(
            run, num_probes=arguments["probes"], download=not arguments["offline"], on_picture=on_picture
        )
    print("\n".join(told(scores, RunFolder(run))))
    return 0


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    from tqdm import tqdm

    with tqdm(desc=title, unit="picture", dynamic_ncols=True) as bar:

        def on_picture(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield on_picture
