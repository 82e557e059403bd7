"""Writes a step's model on a separate thread, from a copy of its weights, while the training continues.

The thread ends with the file, and torch uses only this one thread in it: it takes no core from the steps.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreambooth.device.threads import single_threads
from dreambooth.formats.safetensors_file import stored_dtype
from dreambooth.models.base import Base
from dreambooth.training.checkpoint import Learner
from dreambooth.training.method import LearningWeights, Method, StepWeights
from dreambooth.training.sharding import gathered

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Writing:
    """A model being written: `write` writes it again, from the same weights."""

    step: int
    write: Callable[[], None]
    outcome: "Future[None]"


class ModelWriter:
    """Writes one model at a time; the caller checks the outcome of each before it starts the next."""

    def __init__(self) -> None:
        self.current: Writing | None = None

    def start(self, step: int, write: Callable[[], None]) -> None:
        """Start writing."""
        assert self.current is None, "what became of the one before is asked first"
        thread = single_threads(1, "model-writer")
        self.current = Writing(step, write, thread.submit(write))
        thread.shutdown(wait=False)  # it ends when this is written

    def close(self) -> None:
        """Wait until nothing is being written."""
        if self.current is not None:
            wait([self.current.outcome])


def weights_of(method: Method, base: Base, learner: Learner) -> StepWeights:
    """Return the weights of a step to be saved, by part and name: the moving average's if there is one."""
    averages: dict[Tensor, Tensor] = {}
    if learner.ema is not None:
        averages.update(zip(learner.parameters, learner.ema.shadow_params, strict=True))
    return {
        part: {name: averages.get(tensor, tensor).detach() for name, tensor in named.items()}
        for part, named in method.step_weights(base).items()
    }


def copied(
    weights: StepWeights, learning: LearningWeights, dtype: "torch.dtype", *, is_sharded: bool = False,
    is_kept: bool = True,
) -> StepWeights:  # fmt: skip
    """Return a copy of the weights in the machine's memory; copies are in `dtype`.

    Frozen weights are not copied. Shards are gathered one tensor at a time, for which all processes have to call;
    `is_kept` says whether this one wants the result.
    """
    kept: StepWeights = {part: dict(tensors) for part, tensors in weights.items()}
    for part, name, tensor in _to_copy(weights, learning):
        whole = gathered(tensor) if is_sharded else tensor
        if is_kept:
            kept[part][name] = whole.to("cpu", stored_dtype(tensor, dtype), copy=True)
    return kept


def copy_bytes(weights: StepWeights, learning: LearningWeights, dtype: "torch.dtype") -> int:
    """Return the memory that `copied` takes."""
    found = _to_copy(weights, learning)
    return sum(tensor.numel() * stored_dtype(tensor, dtype).itemsize for _, _, tensor in found)


def _to_copy(weights: StepWeights, learning: LearningWeights) -> "Iterator[tuple[str, str, Tensor]]":
    for part, tensors in weights.items():
        for name, tensor in tensors.items():
            if name in learning.get(part, ()) or tensor.device.type != "cpu":
                yield part, name, tensor
