"""The base as its own teacher: its predictions on class images, computed once before it is trained.

The paper's prior has the model denoise class images; the image's noise is a noisy estimate of what the base predicted.
With a teacher the target is the base's own prediction, as in Li & Hoiem 2016 (Learning without Forgetting, arXiv
1606.09282, eq. 3, with a squared distance): L_prior = || eps_theta(x_t, c) - eps_base(x_t, c) ||^2, which is 0 at the
first step and grows only with drift. No second model is held, since the pairs are chosen beforehand: each image comes
with TEACHER_DRAWS noises and timesteps in turn.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from dreambooth.data.dataset import CLASS
from dreambooth.events import OnProgress
from dreambooth.training.batches import BatchMaker, Example
from dreambooth.training.captions import CaptionConditions
from dreambooth.training.predictions import predicted

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dreambooth.models.base import Base

EXAMPLES_AT_ONCE = 32


def fill_teacher(
    batches: BatchMaker,
    base: "Base",
    conditions: CaptionConditions,
    alpha_bar: "Tensor",
    num_steps: int,
    autocast_dtype: "torch.dtype | None",
    report: OnProgress,
    should_stop: Callable[[], bool],
) -> None:
    """Compute the prediction for every class example of the run; `report` gets (done, total).

    A resumed run computes the same again from the same base: nothing that could belong to another run is stored on
    disk.
    """
    import torch

    needed = list(_needed(batches, num_steps).values())
    for start in range(0, len(needed), EXAMPLES_AT_ONCE):
        if should_stop():
            return
        report(start, len(needed))
        some = needed[start : start + EXAMPLES_AT_ONCE]
        latents, sizes = batches.latents(some)
        noise = torch.stack([batches.noise(example, latents.shape[1:]) for example in some]).to(latents.device)
        timesteps = torch.tensor([batches.timestep(example) for example in some]).to(latents.device)
        with torch.no_grad():
            condition = conditions([batches.caption(example) for example in some], sizes)
        predictions = predicted(base, condition, latents, noise, timesteps, alpha_bar, autocast_dtype)
        batches.teacher.update({example.position: one for example, one in zip(some, predictions, strict=True)})
    report(len(needed), len(needed))


def _needed(batches: BatchMaker, num_steps: int) -> dict[tuple[int, ...], Example]:
    """Return the distinct class examples of the run."""
    config = batches.config
    per_step = config.train_batch_size * config.gradient_accumulation_steps * batches.num_processes
    examples = (batches.example(CLASS, k) for k in range(num_steps * per_step))
    return {example.position: example for example in examples}
