"""A training whose first process alone is told to stop after two steps.

python -m torch.distributed.run --nproc_per_node 2 -m tests.stopped_in_one_process THE_ARGUMENTS_OF_TRAIN
"""

import sys

from dreambooth.cli import build_parser
from dreambooth.events import Controls, Event, PhaseProgress
from dreambooth.runs import train
from dreambooth.train_commands import training_config


def main() -> None:
    """Train as the command line would, and stop."""
    arguments = vars(build_parser().parse_args(["train", *sys.argv[1:]]))
    arguments.pop("run_command")
    controls = Controls()

    def on_event(event: Event) -> None:
        if isinstance(event, PhaseProgress) and (event.phase, event.done) == ("training", 2):
            controls.stop.set()

    train(training_config(arguments), controls=controls, on_event=on_event)


if __name__ == "__main__":
    main()
