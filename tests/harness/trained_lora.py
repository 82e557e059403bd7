"""A run that trained a LoRA of the tiny base, from the command line."""

from pathlib import Path

import pytest

PROMPT = "photo of zwx dog"
LEARNING = [
    "--method=lora", "--lora_rank=3", "--lora_targets=all", "--resolution=32", "--train_batch_size=1",
    "--max_train_steps=3", "--train_text_encoder", "--learning_rate=1e-2", "--seed=7", "--save_precision=fp32",
    "--mixed_precision=no", "--num_probe_images=0", "--gauge_interval=0", f"--save_sample_prompt={PROMPT}",
    "--n_save_sample=1", "--save_infer_steps=1", f"--instance_prompt={PROMPT}", "--drop_final_state",
]  # fmt: skip


def lora_run(home: Path, base: Path) -> Path:
    """Return the folder of a run of three steps on two photos, `home`/zwx-dog: rank 3, all modules, fp32."""
    from PIL import Image

    from dreambooth.commands.cli import main

    photos = home / "photos"
    photos.mkdir()
    for number in range(2):
        Image.linear_gradient("L").resize((48, 48)).rotate(90 * number).convert("RGB").save(photos / f"{number}.png")
    flags = [f"--pretrained_model_name_or_path={base}", f"--instance_data_dir={photos}",
             f"--output_dir={home / 'zwx-dog'}"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMBOOTH_HOME", str(home))
        assert main(["train", *flags, *LEARNING]) == 0
    return home / "zwx-dog"
