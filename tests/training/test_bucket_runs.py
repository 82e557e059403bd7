"""Photos of mixed shapes trained in aspect-ratio buckets, from the command line."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dreambooth.commands.cli import main
from dreambooth.models.family import PictureSize, joined
from dreambooth.records.workspace import RunFolder
from dreambooth.training import step as steps
from dreambooth.training.batches import Batch
from tests.harness.killed_runs import Killed, killing_at
from tests.harness.tiny import tiny_sdxl_base
from tests.harness.trained import Run, losses_in

# Upright (height, width) of each photo, and the bucket at 128 px.
SHAPES = {(60, 200): (64, 192), (200, 64): (192, 64), (90, 90): (128, 128), (64, 60): (128, 128), (300, 80): (256, 64)}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Return a folder with photos of these shapes; the first lies on its side and says so."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number, (height, width) in enumerate(SHAPES):
        photo = Image.radial_gradient("L").resize((width, height)).convert("RGB")
        exif = Image.Exif()
        if number == 0:
            photo, exif[0x0112] = photo.transpose(Image.Transpose.ROTATE_90), 6
        photo.save(folder / f"{number}.jpg", exif=exif)
    return folder


@pytest.fixture
def trained_batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """Return the list of the batches that this process trains on."""
    found: list[Batch] = []
    original = steps.step_loss

    def step_loss(family: Any, unet: Any, condition: Any, batch: Batch, *settings: Any) -> Any:
        found.append(batch)
        return original(family, unet, condition, batch, *settings)

    monkeypatch.setattr(steps, "step_loss", step_loss)
    return found


@pytest.mark.parametrize(("family", "method"), [("sdxl", "lora"), ("sd", "full")])
def test_photos_keep_their_shape_and_a_killed_run_is_resumed_bit_for_bit(
    tiny_base_folder: Path, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained_batches: list[Batch],
    capsys: pytest.CaptureFixture[str], family: str, method: str,
) -> None:  # fmt: skip
    base = tiny_sdxl_base(tmp_path / "base") if family == "sdxl" else tiny_base_folder
    asked = [
        "train", "--pretrained_model_name_or_path", base, "--method", method, "--instance_data_dir", mixed,
        "--instance_prompt", "photo of zwx dog", "--class_prompt", "photo of dog", "--buckets", "--resolution", "128",
        "--train_batch_size", "2", "--with_prior_preservation", "--num_class_images", "2", "--save_infer_steps", "2",
        "--class_data_dir", tmp_path / "class", "--num_crop_variants", "1", "--seed", "3", "--max_train_steps", "4",
        "--checkpointing_steps", "2", "--gauge_interval", "2", "--no_pad_tokens" if family == "sd" else "--pad_tokens",
    ]  # fmt: skip
    whole, killed = (RunFolder(tmp_path / name) for name in ("whole", "killed"))
    assert main([*map(str, [*asked, "--output_dir", whole.path])]) == 0
    assert "the crop leaves out" not in "".join(capsys.readouterr())
    for batch in trained_batches:
        of_class = batch.of_class
        assert of_class is not None
        assert {size.target for size in batch.sizes} == {(batch.latents.shape[2] * 8, batch.latents.shape[3] * 8)}
        assert [SHAPES[size.original] for size in batch.sizes] == [size.target for size in batch.sizes]
        assert set(of_class.sizes) == {PictureSize((128, 128), (0, 0), (128, 128))}
        assert of_class.latents.shape[2:] == (16, 16)
    assert len({batch.latents.shape for batch in trained_batches}) > 2

    with killing_at(monkeypatch, 3), pytest.raises(Killed):
        main([*map(str, [*asked, "--output_dir", killed.path])])
    assert killed.checkpoint_steps()[-1] == 2
    again = [*map(str, [*asked, "--output_dir", killed.path, "--resume_from_checkpoint", "latest"])]
    assert main(again) == 0
    assert losses_in(killed.path) == losses_in(whole.path)
    files = [*whole.step_folder(4).rglob("*.safetensors")]
    assert files
    for file in files:
        # A LoRA's file is named after its run, in its header too.
        again_file = killed.path / file.relative_to(whole.path).as_posix().replace("whole", "killed")
        wanted, found = load_file(file), load_file(again_file)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_what_has_no_part_in_batches_of_several_sizes_is_refused(
    tiny_base_folder: Path, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["--resolution", "72", "--capture_step", "--compile_unet", "--background_weight", "0.5"]
    asked = [
        "train", "--pretrained_model_name_or_path", tiny_base_folder, "--instance_data_dir", mixed, "--buckets",
        "--instance_prompt", "photo of zwx dog", "--class_prompt", "photo of dog", "--output_dir", tmp_path / "run",
    ]  # fmt: skip
    assert main([*map(str, [*asked, *wrong])]) != 0
    told = capsys.readouterr().err
    for problem in (
        "resolution: must be a multiple of 64 (buckets is on).",
        "capture_step: must be off: a recorded step has one size of photos (buckets is on).",
        "compile_unet: must be off: it compiles for one size of photos (buckets is on).",
        "background_weight: must be 1, or every photo needs a mask: the subject is only found in square crops "
        "(buckets is on).",
    ):
        assert problem in told


def test_two_forwards_are_one_where_both_halves_are_square(make: Callable[..., Run]) -> None:
    """The halves' losses are those of one batch, min-SNR weights and the prior's weight among them."""
    changes = {"with_prior_preservation": True, "train_batch_size": 2, "snr_gamma": 1.0, "prior_loss_weight": 0.3}
    run = make(buckets=True, resolution=64, **changes)
    batch, base, conditions = run.materials.batches.batch(0, 0), run.materials.base, run.materials.conditions
    of_class = batch.of_class
    assert of_class is not None
    both = dataclasses.replace(joined([batch, of_class]), of_class=None)
    both = dataclasses.replace(
        both, captions=batch.captions + of_class.captions, sizes=batch.sizes + of_class.sizes, num_instance=2
    )
    with torch.no_grad():
        condition = conditions(both.captions, both.sizes)
        apart, together = (
            steps.step_loss(base.family, base.unet, condition, one, run.materials.alpha_bar, "epsilon", 0.3, 1.0)
            for one in (batch, both)
        )
    for name in ("total", "instance", "prior"):
        assert torch.allclose(getattr(apart, name), getattr(together, name), rtol=1e-5), name
