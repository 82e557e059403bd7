"""The starter's loss, trained the plain way and in the lean ways: same photos, seed and steps.

    python -m benchmarks.loss_curves [--steps 150] [--json FILE]

Without clipping, which the lean ways do not have. Each line is the mean loss over a stretch of steps.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from dreambooth.config.presets import resolve
from dreambooth.config.training import TrainingConfig
from dreambooth.data import samples
from dreambooth.events import Event, StepLoss
from dreambooth.models.base import STARTER, read_card
from dreambooth.runs.run import train

LEAN: dict[str, Any] = {"update_in_backward": True}
WAYS: dict[str, dict[str, Any]] = {
    "plain, fp32": {},
    "updates inside backward, fp32": LEAN,
    "plain, bf16 arithmetic": {"mixed_precision": "bf16"},
    "updates inside backward, bf16 arithmetic, 8-bit": LEAN | {"mixed_precision": "bf16", "use_8bit_adam": True},
    "the same with bf16 weights": LEAN | {"mixed_precision": "bf16", "use_8bit_adam": True, "weight_precision": "bf16"},
}
NUM_STRETCHES = 6


def main() -> None:
    """Train each way and print the curves side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        curves = {name: losses(Path(folder), name, arguments.steps, ways) for name, ways in WAYS.items()}
    print(table(curves, arguments.steps))
    if arguments.json:
        arguments.json.write_text(json.dumps(curves, indent=1) + "\n", "utf-8")


def losses(folder: Path, name: str, num_steps: int, changes: dict[str, Any]) -> list[float]:
    """Train the bundled subject on the starter this way, and return the loss of every step."""
    found: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, StepLoss):
            found.append(event.loss)

    explicit = {
        "concepts": (samples.sample_concept(),), "pretrained_model_name_or_path": STARTER,
        "output_dir": str(folder / name.replace(" ", "-").replace(",", "")), "max_train_steps": num_steps,
        "save_interval": 10 * num_steps, "checkpointing_steps": 0, "max_grad_norm": 0.0, "mixed_precision": "no",
        "use_8bit_adam": False, "train_text_encoder": True, "seed": 1337, "save_sample_prompt": None,
    }  # fmt: skip
    config: TrainingConfig = resolve(explicit | changes, read_card(STARTER).recipes, None)
    train(config.checked(), on_event=note)
    return found


def table(curves: dict[str, list[float]], num_steps: int) -> str:
    """Return the mean loss of each stretch of steps, a column a way."""
    stretch = max(num_steps // NUM_STRETCHES, 1)
    lines = [f"| steps | {' | '.join(curves)} |", f"| --- |{' --- |' * len(curves)}"]
    for begin in range(0, num_steps, stretch):
        means = [statistics.mean(curve[begin : begin + stretch]) for curve in curves.values()]
        row = " | ".join(f"{mean:.4f}" for mean in means)
        lines.append(f"| {begin + 1} to {min(begin + stretch, num_steps)} | {row} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
