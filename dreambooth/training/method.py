"""What differs between methods of training: which weights learn, and what a saved step holds.

One module per method implements `Method`: `full.py`, every weight of the models that learn; `lora.py`, low-rank factors
beside them. Nothing else asks which method a run has: the loop and all that belongs to its updates see the weights that
learn, by model and name.
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
        """Raise ConfigError for settings that do not fit this base, before anything long is done."""

    def prepare(self, base: "Base", config: "TrainingConfig") -> None:
        """Put a base that was just loaded into the number formats of the training."""

    def autocast_dtype(self, config: "TrainingConfig") -> "torch.dtype | None":
        """Return the format that steps compute in over weights of another one; None for that of the weights."""

    def attach(self, base: "Base", config: "TrainingConfig") -> None:
        """Prepare the base's models for training; those that learn are on the device."""

    def learning(self, base: "Base") -> LearningWeights:
        """Return the weights that learn, once `attach` was called; which they are is not asked again later."""

    def step_weights(self, base: "Base") -> StepWeights:
        """Return all that a saved step holds, the weights that learn as the very objects that `learning` returns."""

    def write_step(
        self, folder: Path, base: "Base", weights: "Mapping[str, Mapping[str, Tensor]]", dtype: "torch.dtype",
        card: "BaseCard", name: str,
    ) -> None:  # fmt: skip
        """Fill a step's folder, where its args.json is, with these weights in `dtype`; `name` is the run's and step's.

        Reads nothing of the base that a training changes.
        """


def method_of(config: "TrainingConfig") -> Method:
    """Return the method that these settings name."""
    from dreambooth.training.full import FullFineTuning
    from dreambooth.training.lora import LowRankAdaptation

    methods: dict[MethodName, type[Method]] = {"full": FullFineTuning, "lora": LowRankAdaptation}
    return methods[config.method]()


def parameters_of(weights: LearningWeights) -> "list[nn.Parameter]":
    """Return the parameters of all models in one list, whose places are their numbers in an exact state."""
    return [parameter for named in weights.values() for parameter in named.values()]
