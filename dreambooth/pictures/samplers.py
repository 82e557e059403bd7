"""The samplers that can be chosen, under the names that other tools write into image metadata.

DDIM (Song et al. 2020, arXiv 2010.02502) is used for samples in training; DPM-Solver++ (Lu et al. 2022, arXiv
2211.01095) and Euler (Karras et al. 2022, arXiv 2206.00364, algorithm 1) need fewer steps. `Euler a` adds fresh noise
at each step, which comes from the image's seed like its first.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from dreambooth.config.generation import Sampler

DDIM: Sampler = "DDIM"


def scheduler_for(sampler: Sampler, scheduler_config: Mapping[str, Any], num_steps: int) -> Any:
    """Return the sampler's scheduler over the model's own noise levels, set to this many steps."""
    scheduler = _ddim(scheduler_config, num_steps) if sampler == DDIM else _other(sampler, scheduler_config, num_steps)
    scheduler.set_timesteps(num_steps)
    return scheduler


def adds_noise(sampler: Sampler) -> bool:
    """Return whether the sampler draws noise at each step."""
    return sampler == "Euler a"


def _ddim(scheduler_config: Mapping[str, Any], num_steps: int) -> Any:
    from diffusers import DDIMScheduler

    # Latents are not pixels: they are never clipped to -1..1, whatever an old configuration says.
    values = {"set_alpha_to_one": False, "steps_offset": 1} | dict(scheduler_config) | {"clip_sample": False}
    num_levels = values.get("num_train_timesteps", 1000)
    values["steps_offset"] = min(values["steps_offset"], num_levels - 1 - (num_steps - 1) * (num_levels // num_steps))
    return _built(DDIMScheduler, values)


def _other(sampler: Sampler, scheduler_config: Mapping[str, Any], num_steps: int) -> Any:
    from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

    names = (
        "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
        "rescale_betas_zero_snr",
    )  # fmt: skip
    values = {name: scheduler_config[name] for name in names if name in scheduler_config}
    # Evenly from the noisiest level down, as in the tools that use these names; a single step begins at the top. A
    # schedule that ends in pure noise has to begin there (Lin et al. 2023, arXiv 2305.08891, section 3.3).
    is_to_the_end = values.get("rescale_betas_zero_snr") is True
    values["timestep_spacing"] = "linspace" if num_steps > 1 and not is_to_the_end else "trailing"
    if sampler == "Euler a":
        return _built(EulerAncestralDiscreteScheduler, values)
    if sampler == "Euler":
        return _built(EulerDiscreteScheduler, values)
    return _built(DPMSolverMultistepScheduler, values | {"use_karras_sigmas": sampler.endswith("Karras")})


def _built(kind: Any, values: Mapping[str, Any]) -> Any:
    known = inspect.signature(kind.__init__).parameters
    build: Callable[..., Any] = kind  # untyped in diffusers
    return build(**{name: value for name, value in values.items() if name in known})
