"""Photos with masks painted over them, from the command line: what is trained, and what a resumed run must share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth.commands.cli import main
from dreambooth.data.dataset import INSTANCE, Pick
from dreambooth.data.focus import Focus, keep_focus
from dreambooth.data.photos import find_photos
from dreambooth.records.workspace import RunFolder
from dreambooth.training import preparation
from tests.harness.killed_runs import Killed, killing_at
from tests.harness.trained import Run, losses_in

MIXED = ((130, 90), (90, 140), (96, 96))


def bright_place(size: tuple[int, int], number: int) -> Image.Image:
    """Return a picture of this (width, height) that is white in one place off its middle, and black elsewhere."""
    picture = Image.new("L", size, 0)
    left, top = size[0] * (1 + number) // 8, size[1] // 5
    picture.paste(255, (left, top, left + size[0] // 3, top + size[1] // 2))
    return picture


@pytest.fixture
def same_as_masks(tmp_path: Path) -> Path:
    """Return a folder of photos that look as their masks do, so that their crops do too; one lies sideways."""
    folder = tmp_path / "bright"
    folder.mkdir()
    for number, size in enumerate(MIXED):
        picture = bright_place(size, number)
        picture.resize((size[0] * 2, size[1] * 2), Image.Resampling.NEAREST).save(folder / f"{number}-masklabel.png")
        exif = Image.Exif()
        if number == 1:
            picture, exif[0x0112] = picture.transpose(Image.Transpose.ROTATE_90), 6
        picture.convert("RGB").save(folder / f"{number}.png", exif=exif)
    return folder


@pytest.mark.parametrize(
    "settings",
    [{"hflip": True}, {"buckets": True, "hflip": True, "resolution": 64}, {"not_cache_latents": True, "hflip": True}],
    ids=["random crops", "buckets", "latents not cached"],
)
def test_a_mask_is_cut_turned_and_mirrored_as_its_photo_is(
    make: Callable[..., Run], same_as_masks: Path, settings: dict[str, object]
) -> None:
    from dreambooth.config.concepts import Concept

    keep_focus(same_as_masks, {"2.png": Focus(0.4, 0.55, 1.6)})
    concepts = (Concept("photo of zwx dog", str(same_as_masks)),)  # no class prompt: nothing has to be found
    run = make(**({"resolution": 32, "background_weight": 0.0, "num_crop_variants": 4} | settings), concepts=concepts)
    pool, batches = run.materials.batches.pool, run.materials.batches
    mirrored = set()
    for photo in range(3):
        for variant in range(4):
            pick = Pick(0, photo, variant)
            crop = pool._crop(INSTANCE, pick)
            mirrored.add(crop.flip)
            seen, _ = pool.view(INSTANCE, pick, crop, pool.size_px(INSTANCE, pick))
            bright = torch.from_numpy(np.array(seen.convert("L"), dtype=np.float32))[None] / 255
            wanted = torch.nn.functional.avg_pool2d(bright, 8)
            painted = pool.painted(pick)
            assert painted.shape == (1, seen.height // 8, seen.width // 8)
            assert (painted - wanted).abs().max() < 0.06
            if wanted.max():
                weights = batches.painted_weights(pick)
                assert weights.mean().item() == pytest.approx(1.0, abs=1e-5)
                assert weights.max() > 1.2
    assert mirrored == {True, False}
    batch = batches.batch(0, 0)
    assert batch.place_weights is not None
    assert batch.place_weights.shape[-2:] == batch.latents.shape[-2:]
    run.train()
    assert len(run.losses) == 2


def asked(base: Path, photos: Path, **flags: object) -> list[str]:
    """Return the words of a training of six steps."""
    given = {
        "pretrained_model_name_or_path": base, "instance_data_dir": photos, "instance_prompt": "photo of zwx dog",
        "class_prompt": "photo of dog", "resolution": 32, "train_batch_size": 1, "max_train_steps": 4, "seed": 3,
        "checkpointing_steps": 2, "num_crop_variants": 2, "gauge_interval": 0, "log_interval": 1,
        "background_weight": 0.1,
    } | flags  # fmt: skip
    return ["train", *(str(word) for name, value in given.items() for word in (f"--{name}", value))]


def test_a_folder_with_masks_trains_otherwise_and_resumes_with_the_same_masks_only(
    tiny_base_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    found, whole, killed = (RunFolder(tmp_path / name) for name in ("found", "whole", "killed"))
    assert main([*asked(tiny_base_folder, photos), "--output_dir", str(found.path)]) == 0
    for number, photo in enumerate(find_photos(photos).photos):
        bright_place((48, 48), number).save(photo.with_name(f"{photo.stem}-masklabel.png"))
    assert main([*asked(tiny_base_folder, photos), "--output_dir", str(whole.path)]) == 0
    losses = losses_in(whole.path)
    assert losses != losses_in(found.path)

    again = [*asked(tiny_base_folder, photos), "--output_dir", str(killed.path)]
    with killing_at(monkeypatch, 3), pytest.raises(Killed):
        main(again)
    again += ["--resume_from_checkpoint", "latest"]
    mask = photos / "1-masklabel.png"
    painted = mask.read_bytes()
    bright_place((48, 48), 3).save(mask)
    assert main(again) != 0
    assert "are not those that the state of step 2 was trained with" in capsys.readouterr().err
    mask.write_bytes(painted)
    assert main(again) == 0
    assert {*losses_in(killed.path)} == {*losses}, "the step that was lost comes again"
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (killed.step_folder(4) / weights).read_bytes() == (whole.step_folder(4) / weights).read_bytes()


def test_a_run_that_took_masks_for_photos_goes_on_with_them(
    tiny_base_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bright_place((48, 48), 0).save(photos / "0-masklabel.png")
    words = [*asked(tiny_base_folder, photos), "--output_dir", str(tmp_path / "run")]
    with monkeypatch.context() as earlier:
        earlier.setattr(preparation, "PHOTO_READER", 2)
        earlier.setattr(preparation, "write_reader", lambda file: file.write_text('{"version": 2}'))
        with killing_at(monkeypatch, 3), pytest.raises(Killed):
            main(words)
    assert main([*words, "--resume_from_checkpoint", "latest"]) == 0
    assert RunFolder(tmp_path / "run").photo_reader_path.read_text() == '{"version": 2}'
