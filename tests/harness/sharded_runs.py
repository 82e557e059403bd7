"""Trainings that share their weights among processes: one from start to end, and one that is killed and resumed.

python -m torch.distributed.run --nproc_per_node 2 -m tests.harness.sharded_runs FOLDER THE_ARGUMENTS_OF_TRAIN

Each process writes how many bytes of weights and of the optimizer's states it holds to FOLDER/RANK.json.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from dreambooth.commands.cli import build_parser
from dreambooth.commands.train import training_config
from dreambooth.runs.run import resume, train
from dreambooth.training.batches import BatchMaker
from dreambooth.training.method import parameters_of
from dreambooth.training.trainer import Trainer

DIES_AT = 3


class Killed(BaseException):
    """Ends a run where it stands."""


def main() -> None:
    """Train as the command line would."""
    folder = Path(sys.argv[1])
    arguments = vars(build_parser().parse_args(["train", *sys.argv[2:]]))
    arguments.pop("run_command")
    config = training_config(arguments)
    run = Trainer.run

    def measured(trainer: Trainer) -> int:
        num_steps = run(trainer)
        (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(held_bytes(trainer)))
        return num_steps

    Trainer.run = measured  # type: ignore[method-assign]
    train(dataclasses.replace(config, output_dir=str(folder / "whole" / "run")))
    batch = BatchMaker.batch

    def dying(self: BatchMaker, step: int, micro_step: int) -> Any:
        if step == DIES_AT:
            raise Killed
        return batch(self, step, micro_step)

    BatchMaker.batch = dying  # type: ignore[method-assign]
    try:
        train(dataclasses.replace(config, output_dir=str(folder / "parts" / "run")))
    except Killed:
        BatchMaker.batch = batch  # type: ignore[method-assign]
        resume(folder / "parts" / "run")


def held_bytes(trainer: Trainer) -> dict[str, int]:
    """Return the bytes that this process holds of the models that learn, and of the optimizer's states."""
    weights = parameters_of(trainer._learner.weights)
    states = [value for state in trainer._learner.optimizer.state.values() for value in state.values()]
    return {
        "weights": sum(_local(parameter).nbytes for parameter in weights),
        "all weights": sum(parameter.numel() * 4 for parameter in weights),
        "states": sum(value.nbytes for value in states),
    }


def _local(parameter: Any) -> Any:
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


if __name__ == "__main__":
    main()
