"""How long it takes to hand the device from a training to pictures and back, and whether its memory comes back.

    python -m benchmarks.swap [--base BASE] [--rounds 10] [--device cpu|cuda]

A training goes on in a thread; by turns it is asked for the device, a picture of one denoising step is made of the same
base by the models of generation, and the device is given back. `free` is the time until the training has let go, the
step it was at included; `load` until the models of generation are there; `picture` what it took; `back` until the
training has the device again. Memory is what the device holds while it is lent and nothing is loaded (the process's own
on the CPU).
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.bases import random_base
from benchmarks.measuring import heading, keep, memory_of
from dreambooth.config.concepts import Concept
from dreambooth.config.generation import GenerationConfig
from dreambooth.config.training import TrainingConfig
from dreambooth.data.samples import sample_concept
from dreambooth.events import Controls, Event, PhaseProgress
from dreambooth.models.base import load_base
from dreambooth.models.manager import ModelManager
from dreambooth.pictures.generation import generate_images
from dreambooth.records.workspace import Workspace
from dreambooth.runs.run import execute, start_records

PARTS = ("step", "free", "load", "picture", "back")
PICTURE = GenerationConfig(prompt="a photo", num_images_per_prompt=1, num_inference_steps=1, seed=0)


class Lender:
    """Tells when the training has let go of the device, and when it has it again or has made a step."""

    def __init__(self) -> None:
        self.is_lent, self.has_stepped = threading.Event(), threading.Event()
        self.steps: list[float] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, PhaseProgress) and event.phase == "lent":
            self.is_lent.set()
        if isinstance(event, PhaseProgress) and event.phase == "training" and event.done:
            self.steps.append(time.perf_counter())
            self.has_stepped.set()


def main() -> None:
    """Swap by turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="A folder; left out, the mini one of `benchmarks.bases`.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        base = arguments.base or str(random_base(Path(name) / "mini", "mini"))
        found = swaps(base, Workspace(Path(name) / "data"), ModelManager(arguments.device), arguments.rounds)
    print(heading(), table(found), sep="\n\n")
    keep("swap", found)


def swaps(base: str, workspace: Workspace, manager: ModelManager, num_rounds: int) -> list[dict[str, float]]:
    """Train in a thread, and return seconds and bytes of each round."""
    controls, lender = Controls(), Lender()
    concept = sample_concept()
    config = TrainingConfig(
        pretrained_model_name_or_path=base, concepts=(Concept(concept.instance_prompt, concept.instance_data_dir),),
        resolution=128, train_text_encoder=True, max_train_steps=1_000_000, learning_rate=1e-6,
        save_sample_prompt=None, checkpointing_steps=0, num_probe_images=0, seed=1,
    )  # fmt: skip
    run = workspace.run("swapped")
    config = start_records(config, run)
    training = threading.Thread(
        target=execute, args=(config, run),
        kwargs={"workspace": workspace, "manager": manager, "token": None, "controls": controls, "on_event": lender},
    )  # fmt: skip
    training.start()
    while len(lender.steps) < 5 and training.is_alive():
        time.sleep(0.1)
    found = []
    for number in range(num_rounds):
        found.append(_one_swap(base, manager, controls, lender))
        print(number, found[-1], file=sys.stderr, flush=True)
    controls.stop.set()
    training.join()
    return found


def _one_swap(base: str, manager: ModelManager, controls: Controls, lender: Lender) -> dict[str, float]:
    lender.is_lent.clear()
    asked_s = time.perf_counter()
    controls.lend.set()
    lender.is_lent.wait()
    free_s, held_bytes = time.perf_counter(), _held_bytes(manager)
    with manager.lease("generation", wait=True):
        models = manager.resident(base, lambda: load_base(base))
        loaded_s = time.perf_counter()
        next(generate_images(models, PICTURE))
    made_s = time.perf_counter()
    lender.has_stepped.clear()
    controls.lend.clear()
    lender.has_stepped.wait()
    back_s, first = time.perf_counter(), len(lender.steps)
    while len(lender.steps) < first + 3:
        time.sleep(0.01)
    return {
        "step": lender.steps[-1] - lender.steps[-2], "free": free_s - asked_s, "load": loaded_s - free_s,
        "picture": made_s - loaded_s, "back": back_s - made_s, "held_bytes": held_bytes,
    }  # fmt: skip


def _held_bytes(manager: ModelManager) -> int:
    if manager.device.type == "cpu":
        return memory_of(threading.get_native_id())[0]
    import torch

    held: int = torch.cuda.memory_allocated()
    return held


def table(found: list[dict[str, Any]]) -> str:
    """Return medians and spread as Markdown, and the memory of the first, second and last round."""
    lines = ["| | seconds | least to most |", "|---|---|---|"]
    for part in PARTS:
        seconds = [one[part] for one in found]
        lines.append(f"| {part} | {statistics.median(seconds):.2f} | {min(seconds):.2f} to {max(seconds):.2f} |")
    held = ", ".join(f"{found[number]['held_bytes'] / 2**20:.0f}" for number in (0, 1, -1))
    return "\n".join(lines) + f"\n\nHeld while lent in the first, second and last round: {held} MiB."


if __name__ == "__main__":
    main()
