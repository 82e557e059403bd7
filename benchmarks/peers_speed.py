"""Train the same thing with ours and with other people's scripts, each in a process of its own, by turns.

    python -m benchmarks.peers_speed --runner RUN_PEER --peer NAME=SCRIPT [--peer ...] [--base DIR] [--rounds 3]
                                     [--cpu-clock]

A peer is a `train_dreambooth.py`; the runner starts it unchanged and prints a line `PEER {"steps", "step_s",
"peak_rss_gb"}`. All get the same base (the mini one of `benchmarks.bases` when left out), photos, class pictures and
arguments: text encoder and prior on, fp32, batch 1. Seconds are the median between two updates, memory is the largest
of the whole process, its last save included. On a machine that others use as well `--cpu-clock` counts the seconds of
processor time of one thread instead, for all alike.
"""

import argparse
import json
import resource
import runpy
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.bases import random_base
from benchmarks.measuring import heading, keep, random_pictures, told, watched
from dreambooth.samples import sample_concept

MARKER = "PEER "
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
        sys.argv = sys.argv[2:]
        runpy.run_path(sys.argv[0], run_name="__main__")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runner", type=Path, required=True)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=SCRIPT")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu-clock", action="store_true")
    parser.add_argument("--extra", nargs="*", default=[], help="more arguments for ours, to try a setting of it")
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = arguments.base or random_base(folder / "mini", "mini")
        shared = common_arguments(base, folder, arguments.resolution, arguments.steps)
        this = [sys.executable, "-m", "benchmarks.peers_speed", *[ON_CPU_CLOCK] * arguments.cpu_clock]
        commands = {"ours": [*this, "--ours", *arguments.extra]}
        for peer, _, script in (one.partition("=") for one in arguments.peer):
            commands[peer] = [*this, "--theirs", str(arguments.runner), script]
        for number in range(arguments.rounds):
            for who, command in commands.items():
                output = folder / f"{who.strip()}-{number}"
                threads = {"OMP_NUM_THREADS": "1"} if arguments.cpu_clock else {}
                done = watched([*command, *shared, "--output_dir", str(output)], threads)
                found.setdefault(who, []).append(told(done.output, MARKER))
                print(who, found[who][-1], file=sys.stderr, flush=True)
    print(heading(), table(found), sep="\n\n")
    keep("peers_speed", found)


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
    from dreambooth.cli import build_parser
    from dreambooth.events import Event, PhaseProgress
    from dreambooth.runs import train
    from dreambooth.train_commands import training_config

    stamps: dict[int, float] = {}

    def on_event(event: Event) -> None:
        if isinstance(event, PhaseProgress) and event.phase == "training" and event.done:
            stamps.setdefault(event.done, time.perf_counter())

    arguments = vars(build_parser().parse_args(["train", *flags]))
    arguments.pop("run_command")
    began_s = time.perf_counter()
    train(training_config(arguments), on_event=on_event)
    times = sorted(stamps.values())
    between = [after - before for before, after in zip(times, times[1:], strict=False)][1:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(MARKER + json.dumps({
        "steps": len(stamps), "step_s": round(statistics.median(between), 4),
        "wall_s": round(time.perf_counter() - began_s, 1), "peak_rss_gb": round(peak, 3),
    }))  # fmt: skip


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Return medians over the rounds as Markdown, and how many times faster ours is."""
    lines = ["| | s/step | least to most | peak memory, GB | ours is faster by |", "|---|---|---|---|---|"]
    medians = {who: statistics.median(one["step_s"] for one in rounds) for who, rounds in found.items()}
    for who, rounds in found.items():
        seconds = [one["step_s"] for one in rounds]
        peak = max(one["peak_rss_gb"] for one in rounds)
        ratio = "" if who == "ours" else f"{medians[who] / medians['ours']:.2f}x"
        lines.append(
            f"| {who} | {medians[who]:.3f} | {min(seconds):.3f} to {max(seconds):.3f} | {peak:.2f} | {ratio} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
