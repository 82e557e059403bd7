"""How a step's cost grows with batch, resolution, photos and concepts, and how much of it is handling data.

    python -m benchmarks.scaling [--steps 8]

Trains the starter, text encoder and prior on, one setting after the other, each in a process of its own that has one
thread; seconds are processor time. `data` is the share of a step that is spent on making its batch; `before` what
encoding all crops took, once.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.measuring import heading, keep, random_pictures
from benchmarks.planner import import_libraries, read_peak, reset_peak, status_of_this
from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig

PLAIN = {"batch": 1, "px": 64, "photos": 5, "concepts": 1}
GROWTH: list[dict[str, int]] = [
    *({"batch": batch} for batch in (1, 2, 4, 8)),
    *({"px": px} for px in (96, 128, 192)),
    *({"photos": photos} for photos in (3, 30, 300, 1000)),
    *({"concepts": concepts} for concepts in (4, 16)),
]


def main() -> None:
    """Measure setting by setting and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as name:
        pictures = random_pictures(Path(name) / "all", 1000, 256)
        random_pictures(Path(name) / "class", 8, 64)
        import_libraries()
        for change in GROWTH:
            sizes = PLAIN | change
            config = setting(Path(name), pictures, sizes, arguments.steps)
            context = multiprocessing.get_context("fork")  # the libraries are there already
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=measure, args=(config, theirs))
            child.start()
            found.append(sizes | ours.recv())
            child.join()
            print(found[-1], file=sys.stderr, flush=True)
    print(heading(), table(found), sep="\n\n")
    keep("scaling", found)


def setting(folder: Path, pictures: Path, sizes: dict[str, int], steps: int) -> TrainingConfig:
    """Return a short training of these sizes."""
    concepts = []
    for number in range(sizes["concepts"]):
        own = Path(tempfile.mkdtemp(prefix="photos-", dir=folder))
        for photo in range(sizes["photos"]):
            (own / f"{photo}.png").symlink_to(pictures / f"{photo}.png")
        concepts.append(Concept(f"photo of zwx{number} dog", str(own), "photo of dog", str(folder / "class")))
    return TrainingConfig(
        pretrained_model_name_or_path="starter", concepts=tuple(concepts), resolution=sizes["px"],
        train_batch_size=sizes["batch"], max_train_steps=steps, num_crop_variants=1, num_class_images=8,
        train_text_encoder=True, with_prior_preservation=True, learning_rate=1e-6, lr_warmup_steps=0, seed=1,
        pad_tokens=True, output_dir=tempfile.mkdtemp(prefix="run-", dir=folder),
    )  # fmt: skip


def measure(config: TrainingConfig, answer: Any) -> None:
    """Train in this process and send what a step took."""
    import torch

    from dreambooth.events import Event, PhaseProgress
    from dreambooth.runs.run import train
    from dreambooth.training.batches import BatchMaker

    torch.set_num_threads(1)
    in_batches: list[float] = []
    make = BatchMaker.batch

    def timed(self: BatchMaker, step: int, micro_step: int) -> Any:
        began_s = time.process_time()
        batch = make(self, step, micro_step)
        in_batches.append(time.process_time() - began_s)
        return batch

    stamps: dict[tuple[str, int], float] = {}

    def on_event(event: Event) -> None:
        if isinstance(event, PhaseProgress):
            stamps.setdefault((event.phase, event.done), time.process_time())

    before = status_of_this()["VmRSS"]
    reset_peak(cuda=False)
    with mock.patch.object(BatchMaker, "batch", timed):
        train(config, on_event=on_event)
    done = [when for (phase, step), when in stamps.items() if phase == "training" and step]
    steps = [after - earlier for earlier, after in zip(done, done[1:], strict=False)][1:]
    crops = [when for (phase, _), when in stamps.items() if phase == "latents"]
    answer.send({
        "step_s": statistics.median(steps), "data_s": statistics.median(in_batches[2:]),
        "before_s": max(crops) - min(crops), "rise_bytes": read_peak(cuda=False) - before,
    })  # fmt: skip


def table(found: list[dict[str, Any]]) -> str:
    """Return the sizes and their cost as Markdown."""
    lines = [
        "| batch (with as many class images) | px | photos a concept | concepts | s/step | examples/s | data "
        "| memory, MiB | before, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        lines.append(
            f"| {one['batch']} | {one['px']} | {one['photos']} | {one['concepts']} | {one['step_s']:.3f} | "
            f"{2 * one['batch'] / one['step_s']:.1f} | {one['data_s'] / one['step_s']:.1%} | "
            f"{one['rise_bytes'] / 2**20:.0f} | {one['before_s']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
