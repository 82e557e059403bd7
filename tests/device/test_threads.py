"""Which threads torch computes with: all of them where the device is held, one everywhere else, and none left over."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dreambooth.commands.cli import main
from dreambooth.config.training import TrainingConfig
from dreambooth.device.hardware import default_num_threads
from dreambooth.device.threads import Shares
from dreambooth.training.optimizer import build_optimizer, gradient_norm

ROOT = Path(__file__).resolve().parents[2]
# Trains by the command line, and prints after each step how many threads torch has in this and in a new thread, and
# how many threads the system counts that Python did not start.
WATCHED = """
import json, sys, threading
import psutil, torch
from dreambooth.commands.cli import main
from dreambooth.training.trainer import Trainer

def in_new_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]

def watched(self, step, original=Trainer._due_work):
    original(self, step)
    self._saver.settle()
    names = [thread.name for thread in threading.enumerate()]
    extra = psutil.Process().num_threads() - threading.active_count()
    seen.append([step, torch.get_num_threads(), in_new_thread(), extra, [n for n in names if "writer" in n]])

seen = []
Trainer._due_work = watched
status = main(sys.argv[1:])
print("SEEN " + json.dumps(seen))
sys.exit(status)
"""


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Have torch compute with two threads in this process, as on a machine with two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_after_a_save_only_the_training_has_threads_of_torch(
    tiny_base_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """From the shell, with two threads: each save's thread is gone, and the number of threads is that of before."""
    flags = [
        f"--pretrained_model_name_or_path={tiny_base_folder}", f"--instance_data_dir={photos}",
        "--instance_prompt=photo of zwx dog", f"--output_dir={tmp_path / 'run'}", "--resolution=32",
        "--train_batch_size=1", "--max_train_steps=8", "--save_interval=3", "--save_min_steps=0",
        "--train_text_encoder", "--save_sample_prompt=photo of zwx dog", "--save_infer_steps=2", "--n_save_sample=1",
        "--mixed_precision=no",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, "train", *flags], env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    seen = {step: rest for step, *rest in json.loads(line.removeprefix("SEEN "))}
    assert len(seen) == 8
    assert {(here, elsewhere) for here, elsewhere, _, _ in seen.values()} == {(2, 1)}
    assert all(writers == [] for *_, writers in seen.values())
    # Steps 3 and 6 are saved: what libraries start for good they start before the first step or with the first save.
    assert seen[7][2] == seen[4][2] == seen[2][2]


ANOTHER_NUMBER = 2 if default_num_threads() == 1 else 1


@pytest.mark.parametrize(
    ("dotenv", "expected"), [("", default_num_threads()), (f"OMP_NUM_THREADS={ANOTHER_NUMBER}\n", ANOTHER_NUMBER)]
)
def test_a_command_leaves_a_core_to_others_unless_told_otherwise(
    tiny_base_folder: Path, tmp_path: Path, dotenv: str, expected: int
) -> None:
    """From the shell: as many threads as cores wait for each other as soon as anything else runs."""
    (tmp_path / ".env").write_text(dotenv)
    program = "import sys\nfrom dreambooth.commands.cli import main\nassert main(sys.argv[1:]) == 0\n"
    program += "import torch\nprint('THREADS', torch.get_num_threads())"
    request = ["--prompt", "photo of dog", "--num_images_per_prompt", "1", "--num_inference_steps", "1"]
    done = subprocess.run(
        [sys.executable, "-c", program, "generate", "--model", tiny_base_folder, *request, "--output_dir", "pictures"],
        cwd=tmp_path, text=True, capture_output=True, check=False,
        env={name: text for name, text in os.environ.items() if name != "OMP_NUM_THREADS"} | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"THREADS {expected}"


def named(parameters: list[torch.nn.Parameter]) -> dict[str, torch.nn.Parameter]:
    return {str(number): parameter for number, parameter in enumerate(parameters)}


@pytest.mark.usefixtures("two_threads")
def test_norm_and_update_are_one_task_for_each_thread_and_change_no_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [(64, 64), (3,), (1,), (200, 300), (17, 5)] * 3
    found, tasks = [], list[int]()
    each = Shares.each
    for threads in (1, 2):
        torch.set_num_threads(threads)
        generator.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in sizes]
        optimizer = build_optimizer(
            TrainingConfig(use_8bit_adam=False), {"unet": named(parameters)}, num_processes=1, notice=lambda text: None
        )

        def counted(self: Shares, work: object, tensors: object) -> object:
            def task(share: object) -> object:
                tasks.append(torch.get_num_threads())
                return work(share)  # type: ignore[operator]  # what it is does not matter here

            return each(self, task, tensors)  # type: ignore[arg-type, type-var]  # as above

        monkeypatch.setattr(Shares, "each", counted)
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            norm = gradient_norm(parameters, optimizer.shares)  # type: ignore[attr-defined]  # AdamW's of the CPU
            optimizer.step()
        found.append([norm, *parameters, *(optimizer.state[parameter]["exp_avg_sq"] for parameter in parameters)])
        optimizer.shares.close()  # type: ignore[attr-defined]  # as above
    assert tasks == [1] * (3 * 2) + [1] * (3 * 2 * 2), "one task a thread, which computes alone"
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.usefixtures("two_threads")
def test_the_update_is_torch_s_own() -> None:
    generator = torch.Generator().manual_seed(1)
    starts = [torch.randn(size, generator=generator) for size in ((64, 64), (3,), (200, 300))]
    ours, plain = ([torch.nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    config = TrainingConfig(use_8bit_adam=False)
    optimizers = [
        build_optimizer(config, {"unet": named(ours)}, num_processes=1, notice=lambda text: None),
        torch.optim.AdamW(
            plain, lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon, weight_decay=config.adam_weight_decay, fused=True,
        ),
    ]  # fmt: skip
    for step in range(3):
        for one, other in zip(ours, plain, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.grad_scale = torch.tensor(1.5)  # type: ignore[attr-defined]  # what the fused kernel reads
            optimizer.found_inf = torch.tensor(float(step == 1))  # type: ignore[attr-defined]  # as above
            optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(ours, plain, strict=True))
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key][name], states[1][key][name]) for key in states[0] for name in states[0][key])


def test_conversion_leaves_torch_s_threads_as_they_were(tiny_base_folder: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    assert main(["convert", str(tiny_base_folder), str(tmp_path / "model.safetensors")]) == 0
    assert torch.get_num_threads() == before
