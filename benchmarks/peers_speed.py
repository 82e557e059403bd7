"""Train the same thing with ours and with other people's scripts, each in a process of its own, by turns.

    python -m benchmarks.peers_speed --runner RUN_PEER --peer NAME=SCRIPT [--peer ...] [--base DIR] [--rounds 3]
                                     [--busy 0 1 2] [--cpu-clock] [--ours NAME="FLAGS"] [--frozen-text-encoder]

A peer is a `train_dreambooth.py`; the runner starts it unchanged. All get the same base (the mini one of
`benchmarks.bases` when left out), photos, class pictures and arguments: text encoder and prior on, fp32, batch 1, and
in the middle of the run a save with two sample pictures. `--busy` is how many other processes, each of which keeps one
core busy, run beside all of them. Seconds are the mean between two updates, before the save and after it, without the
first two steps and the pause of the save itself; memory is the largest of the whole process, its last save included.
`--ours` adds other settings of ours, such as `lora="--method lora"`, to be compared with a peer's script for LoRAs.
On a machine that others use as well `--cpu-clock` counts the seconds of processor time of one thread instead, for all
alike.
"""

import argparse
import contextlib
import itertools
import json
import resource
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.bases import random_base
from benchmarks.measuring import heading, keep, random_pictures, told, watched
from dreambooth.data.samples import sample_concept

MARKER = "PEER "
WARM_UP = 2
HALF = "HALF"  # the middle of the run, put in when the number of steps is known
SAMPLES = ["--n_save_sample", "2", "--save_infer_steps", "10"]
PROMPT = "photo of zwx robot"
OUR_SAVE = ["--save_interval", HALF, "--save_min_steps", "0", "--save_sample_prompt", PROMPT, *SAMPLES]
THEIR_SAVE = OUR_SAVE
# It makes 25 denoising steps a picture, and has no setting for that.
DIFFUSERS_SAVE = [
    "--checkpointing_steps", HALF, "--validation_steps", HALF, "--validation_prompt", PROMPT,
    "--num_validation_images", "2",
]  # fmt: skip
# diffusers' script for LoRAs makes pictures after whole passes over the photos only.
LORA_SAVE = ["--checkpointing_steps", HALF]
ON_CPU_CLOCK = "--on-cpu-clock"


def main() -> None:
    """Measure by turns and print the table."""
    if sys.argv[1:2] == [ON_CPU_CLOCK]:
        time.perf_counter = time.process_time
        del sys.argv[1]
    if sys.argv[1:2] == ["--ours"]:
        train_ours(sys.argv[2:])
        return
    if sys.argv[1:2] == ["--theirs"]:
        train_theirs(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runner", type=Path, required=True)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=SCRIPT")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, nargs="*", default=[0], metavar="PROCESSES")
    parser.add_argument("--cpu-clock", action="store_true")
    parser.add_argument("--extra", nargs="*", default=[], help="more arguments for ours, to try a setting of it")
    parser.add_argument("--ours", action="append", default=[], metavar="NAME=FLAGS", help="other settings of ours")
    parser.add_argument("--frozen-text-encoder", action="store_true", help="train nobody's text encoder")
    arguments = parser.parse_args()
    found: dict[str, dict[str, list[dict[str, float | None]]]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        base = arguments.base or random_base(folder / "mini", "mini")
        shared = common_arguments(base, folder, arguments.resolution, arguments.steps)
        if arguments.frozen_text_encoder:
            shared.remove("--train_text_encoder")
        this = [sys.executable, "-m", "benchmarks.peers_speed", *[ON_CPU_CLOCK] * arguments.cpu_clock]
        commands = {"ours": [*this, "--ours", *shared, *OUR_SAVE, *arguments.extra]}
        for own, _, words in (one.partition("=") for one in arguments.ours):
            commands[f"ours, {own}"] = [*commands["ours"], *words.split()]
        for peer, _, script in (one.partition("=") for one in arguments.peer):
            text = Path(script).read_text("utf-8")
            by_argument = {"save_sample_prompt": THEIR_SAVE, "validation_steps": DIFFUSERS_SAVE}
            save = next((flags for name, flags in by_argument.items() if name in text), LORA_SAVE)
            commands[peer] = [*this, "--theirs", str(arguments.runner), script, *shared, *save]
        half = str(arguments.steps // 2)
        for number, busy in itertools.product(range(arguments.rounds), arguments.busy):
            for who, command in commands.items():
                output = folder / f"{who.strip()}-{number}-{busy}"
                threads = {"OMP_NUM_THREADS": "1"} if arguments.cpu_clock else {}
                with busy_processes(busy):
                    whole = [half if part == HALF else part for part in command]
                    done = watched([*whole, "--output_dir", str(output)], threads)
                rounds = found.setdefault(str(busy), {}).setdefault(who, [])
                rounds.append(told(done.output, MARKER))
                print(busy, who, rounds[-1], file=sys.stderr, flush=True)
                shutil.rmtree(output, ignore_errors=True)
    print(heading(), table(found), sep="\n\n")
    keep("_".join(["peers_speed", *map(str, arguments.busy)]), found)


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run this many processes beside the block, each of which keeps a core busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def common_arguments(base: Path, folder: Path, resolution: int, steps: int) -> list[str]:
    """Return what all are asked for, class pictures made beforehand so that nobody has to."""
    class_dir = random_pictures(folder / "class", 20, resolution)
    concept = sample_concept()
    return [
        "--pretrained_model_name_or_path", str(base), "--instance_data_dir", concept.instance_data_dir,
        "--instance_prompt", concept.instance_prompt, "--class_data_dir", str(class_dir),
        "--class_prompt", str(concept.class_prompt), "--with_prior_preservation", "--prior_loss_weight", "1.0",
        "--num_class_images", "20", "--train_text_encoder", "--resolution", str(resolution),
        "--train_batch_size", "1", "--max_train_steps", str(steps), "--learning_rate", "1e-6",
        "--lr_scheduler", "constant", "--lr_warmup_steps", "0", "--seed", "1",
    ]  # fmt: skip


def train_ours(flags: list[str]) -> None:
    """Train in this process as the command line would, and print the line that the runner prints of a peer."""
    from dreambooth.commands.cli import build_parser
    from dreambooth.commands.train import training_config
    from dreambooth.events import Event, PhaseProgress
    from dreambooth.runs.run import train

    stamps: dict[int, float] = {}

    def on_event(event: Event) -> None:
        if isinstance(event, PhaseProgress) and event.phase == "training" and event.done:
            stamps.setdefault(event.done, time.perf_counter())

    arguments = vars(build_parser().parse_args(["train", *flags]))
    arguments.pop("run_command")
    train(training_config(arguments), on_event=on_event)
    tell([stamps[step] for step in sorted(stamps)], flags)


def train_theirs(command: list[str]) -> None:
    """Run the runner with a peer's script, and print the same line after it, from the time of each of its updates."""
    from accelerate.optimizer import AcceleratedOptimizer

    stamps: list[float] = []
    step = AcceleratedOptimizer.step

    def timed(self: AcceleratedOptimizer, *arguments: Any, **named: Any) -> None:
        step(self, *arguments, **named)
        stamps.append(time.perf_counter())

    AcceleratedOptimizer.step = timed
    sys.argv = command
    runpy.run_path(sys.argv[0], run_name="__main__")
    tell(stamps, command)


def tell(stamps: list[float], flags: list[str]) -> None:
    """Print what the table is made of, from the time of every update; the save comes after the middle one.

    A peer whose save does not fit today's libraries ends there, and has nothing after it.
    """
    between = [after - before for before, after in itertools.pairwise(stamps)]
    middle = int(flags[flags.index("--max_train_steps") + 1]) // 2
    pause = max(range(middle - 2, min(middle + 1, len(between))), key=lambda index: between[index])
    after = between[pause + 1 :] if len(between) > middle + 1 else []
    print(MARKER + json.dumps({
        "steps": len(stamps), "before_s": round(statistics.mean(between[WARM_UP:pause]), 4),
        "after_s": round(statistics.mean(after), 4) if after else None, "save_s": round(between[pause], 2),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
    }))  # fmt: skip


def table(found: dict[str, dict[str, list[dict[str, float | None]]]]) -> str:
    """Return medians over the rounds as Markdown, and how many times faster ours is."""
    lines = [
        "| busy beside it | | s/step before the save | after it | ours is faster by | peak memory, GB |",
        "|---|---|---|---|---|---|",
    ]
    for busy, by_name in found.items():
        ours = [median(by_name["ours"], name) for name in ("before_s", "after_s")]
        for who, rounds in by_name.items():
            theirs = [median(rounds, name) for name in ("before_s", "after_s")]
            seconds = " | ".join("none" if one is None else f"{one:.3f}" for one in theirs)
            pairs = [(one, own) for one, own in zip(theirs, ours, strict=True) if one is not None and own is not None]
            ratio = "" if who == "ours" else ", ".join(f"{one / own:.2f}x" for one, own in pairs)
            peak = max(one["peak_rss_gb"] or 0 for one in rounds)
            lines.append(f"| {busy} | {who} | {seconds} | {ratio} | {peak:.2f} |")
    return "\n".join(lines)


def median(rounds: list[dict[str, float | None]], name: str) -> float | None:
    """Return the median of one figure over the rounds that have it."""
    values = [value for one in rounds if (value := one[name]) is not None]
    return statistics.median(values) if values else None


if __name__ == "__main__":
    main()
