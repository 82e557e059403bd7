"""A training whose first process alone is told what to do, each after its step.

python -m torch.distributed.run --nproc_per_node 2 -m tests.harness.told_in_one_process stop=2 THE_ARGUMENTS_OF_TRAIN
"""

import sys

from dreambooth.commands.cli import build_parser
from dreambooth.commands.train import training_config
from dreambooth.events import Controls, Event, PhaseProgress
from dreambooth.runs.run import train


def main() -> None:
    """Train as the command line would, and press what is named: `lend` until the device is lent."""
    wishes = {int(step): name for name, _, step in (wish.partition("=") for wish in sys.argv[1].split(","))}
    arguments = vars(build_parser().parse_args(["train", *sys.argv[2:]]))
    arguments.pop("run_command")
    controls = Controls()

    def on_event(event: Event) -> None:
        if isinstance(event, PhaseProgress) and event.phase == "lent":
            controls.lend.clear()
        elif isinstance(event, PhaseProgress) and event.phase == "training" and event.done in wishes:
            getattr(controls, wishes.pop(event.done)).set()

    train(training_config(arguments), controls=controls, on_event=on_event)


if __name__ == "__main__":
    main()
