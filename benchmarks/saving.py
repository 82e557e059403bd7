"""How long a save stops a training, beside the copy of its weights and beside a save that is waited for.

    python -m benchmarks.saving [BASE] [--saves 5]

Trains a base (without one: the mini base of `benchmarks.bases`) with its text encoder in this process, once as always
and once as if memory had no room for the copy, and takes the times from what is reported. The plain copy is that of the
weights of UNet and text encoder into the format they are saved in, tensor by tensor.
"""

import argparse
import dataclasses
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bases import random_base
from benchmarks.measuring import heading, keep, random_pictures
from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.events import Event, ModelSaved, PhaseProgress
from dreambooth.models.base import load_base, read_card
from dreambooth.runs.run import train
from dreambooth.training import saving as training_saving

STEPS_BETWEEN = 4


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?")
    parser.add_argument("--saves", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        base = arguments.base or str(random_base(Path(name) / "mini", "mini"))
        config = setting(Path(name), base, arguments.saves)
        found = {
            "a plain copy of the weights": plain_copies(base, arguments.saves),
            **timed(config),
            **waited_for(dataclasses.replace(config, output_dir=str(Path(name) / "waited"))),
        }
    print(heading(), table(found), sep="\n\n")
    keep("saving", found)


def setting(folder: Path, base: str, num_saves: int) -> TrainingConfig:
    """Return a short training with this many models on the way."""
    pictures = random_pictures(folder / "photos", 4, 256)
    return TrainingConfig(
        pretrained_model_name_or_path=base, concepts=(Concept("photo of zwx dog", str(pictures)),), seed=1,
        resolution=read_card(base).native_px, train_batch_size=1, num_crop_variants=1, train_text_encoder=True,
        max_train_steps=STEPS_BETWEEN * num_saves + 1, save_interval=STEPS_BETWEEN, gauge_interval=0,
        checkpointing_steps=0, output_dir=str(folder / "run"),
    )  # fmt: skip


def plain_copies(base: str, number: int) -> list[float]:
    """Return the seconds of copying the learning weights in half precision, each time anew."""
    import torch

    loaded, seconds = load_base(base), []
    for _ in range(number):
        began_s = time.perf_counter()
        copies = [
            tensor.to(torch.float16, copy=True)
            for part in (loaded.unet, loaded.text_encoder)
            for tensor in part.state_dict().values()
        ]
        seconds.append(time.perf_counter() - began_s)
        del copies
    return seconds


def timed(config: TrainingConfig) -> dict[str, list[float]]:
    """Train, and return the seconds of each pause, until each model was there, and of each exact state."""
    stamps = stamped(config)
    copies = [(when, end) for when, end, event in stamps if _phase(event) == "copying"]
    saved = [when for when, _, event in stamps if isinstance(event, ModelSaved)]
    return {
        "the pause of a save": [end - when for when, end in copies],
        "until its model is written": [there - when for (when, _), there in zip(copies, saved, strict=False)],
        "the pause of an exact state": [
            end - when for when, end, event in stamps if _phase(event) == "saving" and end not in saved
        ][: len(copies)],
    }


def waited_for(config: TrainingConfig) -> dict[str, list[float]]:
    """Train without room for the copy, and return the seconds of each save."""

    training_saving.HOST_MARGIN_BYTES = 1 << 60
    stamps = stamped(config)
    pauses = [
        after - when
        for (when, _, event), (after, _, following) in itertools.pairwise(stamps)
        if _phase(event) == "saving" and isinstance(following, ModelSaved)
    ]
    return {"a save that is waited for": pauses[:-1]}


def stamped(config: TrainingConfig) -> list[tuple[float, float, Event]]:
    """Train, and return each event with its time and that of the next."""
    stamps: list[tuple[float, Event]] = []
    train(config, on_event=lambda event: stamps.append((time.perf_counter(), event)))
    return [(when, after, event) for (when, event), (after, _) in itertools.pairwise(stamps)]


def _phase(event: Event) -> str:
    return event.phase if isinstance(event, PhaseProgress) else ""


def table(found: dict[str, list[float]]) -> str:
    """Return the seconds as Markdown."""
    lines = ["| | seconds, median | least to most | times the copy |", "|---|---|---|---|"]
    copy_s: Any = statistics.median(next(iter(found.values())))
    for name, seconds in found.items():
        middle = statistics.median(seconds)
        span = f"{min(seconds):.3f} to {max(seconds):.3f}"
        lines.append(f"| {name} | {middle:.3f} | {span} | {middle / copy_s:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
