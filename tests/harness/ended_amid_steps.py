"""A training that ends without a word when its exact state of step 2 is there; its first process ends, as if killed.

python -m torch.distributed.run --nproc_per_node 2 -m tests.harness.ended_amid_steps THE_ARGUMENTS_OF_TRAIN
"""

import os
import sys
from pathlib import Path

from dreambooth.commands.cli import build_parser
from dreambooth.commands.train import training_config
from dreambooth.events import Event, PhaseProgress
from dreambooth.runs.run import train


def main() -> None:
    """Train as the command line would, to the death."""
    arguments = vars(build_parser().parse_args(["train", *sys.argv[1:]]))
    arguments.pop("run_command")
    config = training_config(arguments)
    state = Path(str(config.output_dir)) / ".run" / "state" / "2"

    def on_event(event: Event) -> None:
        if isinstance(event, PhaseProgress) and event.phase == "training" and state.exists():
            os._exit(9)

    train(config, on_event=on_event)


if __name__ == "__main__":
    main()
