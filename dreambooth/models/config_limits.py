"""Limits of a model's configuration files, checked before anything is built from them.

A configuration may come from anywhere with its model, and the libraries build whatever it says: a million layers for
ten minutes, or a meaningless schedule.
"""

import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from dreambooth.errors import BaseModelError

Check = Callable[[Any], bool]
# A value's constraint, in words, and its check.
Limit = tuple[str, Check]


def _whole(low: int, high: int) -> Limit:
    return f"a whole number from {low:,} to {high:,}", lambda value: type(value) is int and low <= value <= high


def _wholes(low: int, high: int) -> Limit:
    """One number for all levels of a network, or one for each."""
    words, is_one = _whole(low, high)
    return (
        f"{words}, or a list of at most 8 of them",
        lambda value: all(map(is_one, value)) if isinstance(value, list) and 0 < len(value) <= 8 else is_one(value),
    )


def _number(low: float, high: float) -> Limit:
    return (
        f"a number above {low:g} and at most {high:g}",
        lambda value: (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and low < value <= high
        ),
    )


def _one_of(*names: str) -> Limit:
    return " or ".join(f'"{name}"' for name in names), lambda value: isinstance(value, str) and value in names


def _or_none(limit: Limit) -> Limit:
    words, check = limit
    return words, lambda value: value is None or check(value)


NOT_THERE = "left out, as models of Stable Diffusion have it"
WIDTH = _whole(1, 16_384)
WIDTHS = _wholes(1, 16_384)
LAYERS, DEPTHS = _wholes(1, 8), _wholes(1, 16)
LIMITS: dict[str, dict[str, Limit]] = {
    "unet/config.json": {
        "sample_size": _whole(1, 1024),
        "in_channels": _whole(1, 64),
        "out_channels": _whole(4, 4),
        "layers_per_block": LAYERS,
        "transformer_layers_per_block": DEPTHS,
        "block_out_channels": WIDTHS,
        "cross_attention_dim": WIDTHS,
        "attention_head_dim": WIDTHS,
        "num_attention_heads": _or_none(WIDTHS),
        "norm_num_groups": WIDTH,
        "reverse_transformer_layers_per_block": _or_none(DEPTHS),
        "conv_in_kernel": _whole(1, 15),
        "conv_out_kernel": _whole(1, 15),
        "time_embedding_dim": _or_none(WIDTH),
        "time_cond_proj_dim": _or_none(WIDTH),
        "encoder_hid_dim": _or_none(WIDTH),
        "num_class_embeds": _or_none(WIDTH),
        "projection_class_embeddings_input_dim": _or_none(WIDTH),
        "addition_time_embed_dim": _or_none(WIDTH),
    },
    "text_encoder/config.json": {
        "vocab_size": _whole(1, 1_000_000),
        "hidden_size": WIDTH,
        "intermediate_size": _whole(1, 65_536),
        "projection_dim": WIDTH,
        "num_hidden_layers": _whole(1, 100),
        "num_attention_heads": WIDTH,
        "max_position_embeddings": _whole(77, 4096),
    },
    "vae/config.json": {
        # A model with statistics of its own latents is of another kind (Playground 2.5).
        "latents_mean": _or_none((NOT_THERE, lambda value: False)),
        "block_out_channels": WIDTHS,
        "layers_per_block": _whole(1, 8),
        "latent_channels": _whole(4, 4),
        "norm_num_groups": WIDTH,
        "scaling_factor": _number(0, 1000),
        "shift_factor": _or_none(_number(-1000, 1000)),
    },
    "scheduler/scheduler_config.json": {
        "num_train_timesteps": _whole(100, 10_000),
        "beta_start": _number(0, 0.999),
        "beta_end": _number(0, 0.999),
        "beta_schedule": _one_of("linear", "scaled_linear", "squaredcos_cap_v2"),
        "trained_betas": _or_none(
            (
                "a list of 100 to 10,000 numbers from 0 to 1",
                lambda value: (
                    isinstance(value, list) and 100 <= len(value) <= 10_000 and all(0 <= one <= 1 for one in value)
                ),
            )
        ),
        "prediction_type": _one_of("epsilon", "v_prediction"),
        "steps_offset": _whole(0, 99),
        "timestep_spacing": _one_of("leading", "linspace", "trailing"),
    },
}


LIMITS["text_encoder_2/config.json"] = LIMITS["text_encoder/config.json"]


def refuse_wrong_configs(folder: Path, given: Collection[str] = ()) -> None:
    """Raise BaseModelError for values outside the limits in a model's folder; `given` parts are not read."""
    for name in LIMITS:
        if name.partition("/")[0] not in given and (folder / name).exists():
            refuse_wrong_config(folder / name, name)


def refuse_wrong_config(file: Path, kind: str) -> None:
    """Raise BaseModelError, with everything that is wrong, for a file that is not a configuration of this kind."""
    try:
        values = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        raise _refused(file, "It is not readable as JSON.") from None
    if not isinstance(values, dict):
        raise _refused(file, "It is not a JSON object with settings.")
    if wrong := list(_out_of_limits(values, LIMITS[kind])):
        raise _refused(file, " ".join(wrong[:3]))


def _out_of_limits(values: Mapping[str, Any], limits: Mapping[str, Limit]) -> list[str]:
    found = []
    for name, (words, is_right) in limits.items():
        if name in values and not _is_right(is_right, values[name]):
            shown = json.dumps(values[name])[:60]
            found.append(f'"{name}" is {shown}; it must be {words}.')
    return found


def _is_right(check: Check, value: Any) -> bool:
    try:
        return check(value)
    except TypeError:  # texts in a list of numbers
        return False


def _refused(file: Path, why: str) -> BaseModelError:
    return BaseModelError(f'"{file}" cannot be used.', why, "Download the model again, or choose another base model.")
