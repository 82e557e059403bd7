"""What differs between training methods: which weights are trained, and what a saved step holds.

One module per method implements `Method`: `full.py`, every weight of the trained models; `lora.py`, low-rank factors
beside them. No other code asks which method a run has: the loop and everything that belongs to its updates see the
trained weights, by model and name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from dreambooth.config.training import MethodName, TrainingConfig
    from dreambooth.models.base import Base
from dreambooth.models.card import BaseCard

# By model (a part of the base, such as "unet") and name, in the order in which optimizer and exact states number them.
LearningWeights = dict[str, dict[str, "nn.Parameter"]]
# By part of the base and name.
StepWeights = dict[str, dict[str, "Tensor"]]


class Method(Protocol):
    """How a base is trained.

    Teacher and drift are computed between `prepare` and `attach`, while the models still are the base.
    """

    def check(self, base: "Base", config: "TrainingConfig") -> None:
        """Raise ConfigError for settings that do not fit this base, before any long work."""

    def prepare(self, base: "Base", config: "TrainingConfig") -> None:
        """Cast a base that was just loaded to the number formats of the training."""

    def autocast_dtype(self, config: "TrainingConfig") -> "torch.dtype | None":
        """Return the format in which steps compute if it is not the weights' own; else None."""

    def attach(self, base: "Base", config: "TrainingConfig") -> None:
        """Prepare the base's models for training; those to be trained are on the device."""

    def learning(self, base: "Base") -> LearningWeights:
        """Return the trained weights, after `attach`; they do not change later."""

    def step_weights(self, base: "Base") -> StepWeights:
        """Return everything a saved step holds, the trained weights as the same objects that `learning` returns."""

    def write_step(
        self, folder: Path, base: "Base", weights: "Mapping[str, Mapping[str, Tensor]]", dtype: "torch.dtype",
        card: "BaseCard", name: str,
    ) -> None:  # fmt: skip
        """Fill a step's folder, which has its args.json, with these weights in `dtype`; `name` is the run's and step's.

        Reads nothing of the base that a training changes.
        """


def method_of(config: "TrainingConfig") -> Method:
    """Return the method named in these settings."""
    from dreambooth.training.full import FullFineTuning
    from dreambooth.training.lora import LowRankAdaptation

    methods: dict[MethodName, type[Method]] = {"full": FullFineTuning, "lora": LowRankAdaptation}
    return methods[config.method]()


def parameters_of(weights: LearningWeights) -> "list[nn.Parameter]":
    """Return the parameters of all models in one list, whose indices are their numbers in an exact state."""
    return [parameter for named in weights.values() for parameter in named.values()]
