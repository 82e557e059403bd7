"""The numbers of steps, class images and saves of a training, counted here for the plan, the preflight and the run."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dreambooth.config.training import TrainingConfig


def num_class_images_of(config: "TrainingConfig") -> int:
    """Return the number of class images a run trains on; missing ones are generated before its first step."""
    return config.num_class_images * len(config.concepts) if config.with_prior_preservation else 0


def num_steps_of(config: "TrainingConfig", num_photos: int, num_processes: int = 1) -> int:
    """Return how many steps a run makes with this many photos in all concepts.

    Without `max_train_steps` it follows from the epochs: one is a pass over the photos or the class images, whichever
    are more, and each process takes examples of its own.
    """
    if config.max_train_steps is not None:
        return config.max_train_steps
    examples_per_step = config.train_batch_size * config.gradient_accumulation_steps * num_processes
    return config.num_train_epochs * math.ceil(max(num_photos, num_class_images_of(config)) / examples_per_step)


def num_saves_before_last(config: "TrainingConfig", step: int, num_steps: int) -> int:
    """Return how many models are saved after this step and before the last one."""
    first = max(step + 1, config.save_min_steps)
    return max((num_steps - 1) // config.save_interval - (first - 1) // config.save_interval, 0)


def num_saves_left(config: "TrainingConfig", step: int, num_steps: int) -> int:
    """Return how many models are still saved after this step; the last step is always saved."""
    return num_saves_before_last(config, step, num_steps) + (1 if step < num_steps else 0)
