"""Lending the device during a run: everything large is moved off it and back, bit for bit.

Small things stay: the prepared latents, the captions, a batch made ahead.
"""

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dreambooth.events import PhaseProgress, StatusChanged
from dreambooth.models.manager import ModelManager
from dreambooth.training.checkpoint import Learner
from dreambooth.training.materials import Report

if TYPE_CHECKING:
    import torch

BEAT_S = 0.2

LENT = StatusChanged(
    "paused",
    "The device is being used to make pictures.",
    "They were requested during the training. The run keeps its place.",
    "It continues by itself when they are done.",
    cause="lent",
)


def lend_device(
    manager: ModelManager, models: list[Any], learner: Learner, is_wanted: Callable[[], bool], report: Report
) -> None:
    """Pause between two steps for as long as the device is wanted, and restore everything afterwards."""
    report(LENT)
    put_back = _nothing if manager.device.type == "cpu" else _taken_off(models, learner, manager.device)
    # Of several processes only the first holds the lease.
    with manager.lent() if manager.holder == "training" else contextlib.nullcontext():
        while is_wanted():
            report(PhaseProgress("lent"))
            time.sleep(BEAT_S)
    put_back()
    report(StatusChanged("running"))


def _nothing() -> None:
    """Do nothing: on the CPU there is nowhere to move to."""


def _taken_off(models: list[Any], learner: Learner, device: "torch.device") -> Callable[[], None]:
    """Move models, moments and average to the CPU, and return a function that moves them back.

    Parameters stay the same objects: the optimizer and its hooks identify them by that.
    """
    for parameter in learner.parameters:
        parameter.grad = None
    moved = [model for model in models if next(model.parameters()).device.type == device.type]
    for model in moved:
        model.to("cpu")
    # A LoRA's factors belong to no model.
    factors = [parameter for parameter in learner.parameters if parameter.device.type == device.type]
    for parameter in factors:
        parameter.data = parameter.data.to("cpu")
    # bitsandbytes shares one table among all parameters: it is moved once, and shared again afterwards.
    on_cpu: dict[int, Any] = {}
    back: dict[int, Any] = {}
    places: list[tuple[Any, Any]] = []

    def taken(holder: Any, key: Any) -> None:
        tensor = holder[key]
        if getattr(tensor, "is_cuda", False) or getattr(tensor, "is_mps", False):
            on_cpu.setdefault(id(tensor), (tensor, tensor.to("cpu")))
            places.append((holder, key))

    for state in learner.optimizer.state.values():
        for name in state:
            taken(state, name)
    if learner.ema is not None:
        for number in range(len(learner.ema.shadow_params)):
            taken(learner.ema.shadow_params, number)
    for holder, key in places:
        holder[key] = on_cpu[id(holder[key])][1]
    on_cpu.clear()

    def put_back() -> None:
        for model in moved:
            model.to(device)
        for parameter in factors:
            parameter.data = parameter.data.to(device)
        for holder, key in places:
            tensor = holder[key]
            if id(tensor) not in back:
                back[id(tensor)] = (tensor, tensor.to(device))
            holder[key] = back[id(tensor)][1]
        back.clear()

    return put_back
