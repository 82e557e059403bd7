"""LoRA files added to a model for pictures: right numbers, factors alone exchanged, told when they do not fit."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dreambooth.commands.cli import main
from dreambooth.config.generation import AddedLora, GenerationConfig
from dreambooth.errors import BaseModelError, ConfigError
from dreambooth.models.base import Base, load_base
from dreambooth.models.lora_file import tensors_hash
from dreambooth.models.manager import ModelManager
from dreambooth.models.saved_step import ModelSource, load, resident
from dreambooth.models.strength import Strength
from dreambooth.pictures.painter import generate
from dreambooth.pictures.settings_text import read_recipe, text_of_picture
from tests.harness.lora_files import kohya, layers_of, random_factors, written
from tests.harness.tiny import tiny_base

LEARNING = [
    "--method=lora", "--lora_rank=3", "--train_text_encoder", "--resolution=32", "--train_batch_size=1",
    "--max_train_steps=2", "--save_interval=1", "--learning_rate=1e-1", "--seed=7", "--save_precision=fp32",
    "--mixed_precision=no", "--num_probe_images=0", "--gauge_interval=0", "--n_save_sample=1", "--save_infer_steps=1",
]  # fmt: skip
REQUEST = GenerationConfig(prompt="photo of dog", num_images_per_prompt=1, num_inference_steps=2, seed=5)
PICTURE = ["--prompt=photo of dog", "--num_images_per_prompt=1", "--num_inference_steps=2", "--seed=5"]


@pytest.fixture
def run(tiny_base_folder: Path, photos: Path, tmp_path: Path) -> Path:
    """Train a LoRA on the tiny base from the command line, and return the run's folder."""
    flags = [f"--pretrained_model_name_or_path={tiny_base_folder}", f"--instance_data_dir={photos}",
             "--instance_prompt=photo of zwx dog", f"--output_dir={tmp_path / 'zwx-dog'}"]  # fmt: skip
    assert main(["train", *flags, *LEARNING]) == 0
    return tmp_path / "zwx-dog"


@pytest.fixture(scope="module")
def files(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return LoRA files of every layer of the tiny base, one that it lacks layers of, and one for SD 2.x."""
    folder = tmp_path_factory.mktemp("loras")
    base = load_base(str(tiny_base_folder))
    whole = kohya(random_factors(base, layers_of(base), lambda number: 1 + number % 3))
    other = kohya(random_factors(base, layers_of(base), seed=8))
    more = whole | {name.replace("lora_unet_conv_in", "lora_unet_conv_on"): one for name, one in whole.items()}
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    of_sd2 = {f"{name}.lora_down.weight": torch.ones(2, 1024), f"{name}.lora_up.weight": torch.ones(24, 2)}
    tensors = {"whole": whole, "other": other, "more": more, "sd2": of_sd2}
    return {name: written(folder / f"{name}.safetensors", one) for name, one in tensors.items()}


def predictions(base: Base) -> torch.Tensor:
    """Return what UNet and text encoder say of one noise, as one row."""
    with torch.no_grad():
        condition = base.family.encode_text(base, base.family.text_inputs(base, ["photo of zwx dog"], length=None))
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
        seen = base.family.predict(base.unet, noise, torch.tensor([500]), condition)
    return torch.cat([seen.flatten(), condition.states.flatten()])


def of_source(source: ModelSource, **options: Any) -> torch.Tensor:
    """Return the predictions of a source as pictures are made of it, with the factors on hooks."""
    manager = ModelManager("cpu")
    with manager.lease("generation", wait=False):
        return predictions(resident(manager, source, **options))


def test_hooks_and_merged_weights_are_the_same_model(files: dict[str, Path], tiny_base_folder: Path) -> None:
    plain = of_source(ModelSource(str(tiny_base_folder)))
    loras = (AddedLora(str(files["whole"]), 0.5), AddedLora(str(files["other"]), -1.25))
    for added in (loras[:1], loras):
        source = ModelSource(str(tiny_base_folder), loras=added)
        on_hooks, merged = of_source(source), predictions(load(source))
        assert torch.allclose(on_hooks, merged, atol=1e-4)
        assert float((merged - plain).norm()) > 100 * float((on_hooks - merged).norm())
    nothing = of_source(ModelSource(str(tiny_base_folder), loras=(AddedLora(str(files["whole"]), 0),)))
    assert torch.equal(nothing, plain)


def test_loras_are_added_to_steps_of_both_methods_and_to_their_strength(
    run: Path, files: dict[str, Path], tiny_base_folder: Path
) -> None:
    added = (AddedLora(str(files["other"]), 0.5),)
    lora_step = ModelSource(str(run / "2"), Strength(0.7, 0.2), loras=added)
    assert torch.allclose(of_source(lora_step), predictions(load(lora_step)), atol=1e-4)
    as_file = AddedLora(str(run / "2" / "zwx-dog-2.safetensors"), 0.7)
    whole = ModelSource(str(run / "2"), Strength(0.7, 0.7), loras=added)
    both = ModelSource(str(tiny_base_folder), loras=(as_file, *added))
    assert torch.allclose(of_source(whole), of_source(both), atol=1e-5), "a step's own file is a LoRA file like others"


def test_strength_step_and_file_change_without_reading_the_base_again(
    run: Path, files: dict[str, Path], tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dreambooth.models import saved_step

    loads: list[str] = []

    def counted(name: str, **options: Any) -> Base:
        loads.append(name)
        return load_base(name, **options)

    monkeypatch.setattr(saved_step, "load_base", counted)
    whole, other = str(files["whole"]), str(files["other"])
    sources = [
        ModelSource(str(run / "1")), ModelSource(str(run / "2")), ModelSource(str(run / "2"), Strength(0.5, 1)),
        ModelSource(str(run / "2"), loras=(AddedLora(whole),)),
        ModelSource(str(run / "2"), loras=(AddedLora(whole, 0.5),)),
        ModelSource(str(run / "2"), loras=(AddedLora(whole, 0.5), AddedLora(other))),
        ModelSource(str(run / "2")), ModelSource(str(run / "1")),
    ]  # fmt: skip
    manager = ModelManager("cpu")
    with manager.lease("generation", wait=False):
        found = [predictions(resident(manager, source)) for source in sources]
        assert loads == [str(tiny_base_folder)]
        assert torch.equal(found[0], found[-1])
        assert torch.equal(found[1], found[-2])
        assert len({tuple(one.tolist()) for one in found}) == len(sources) - 2
        # A base by itself, then with files: the same again.
        alone = predictions(resident(manager, ModelSource(str(tiny_base_folder))))
        resident(manager, ModelSource(str(tiny_base_folder), loras=(AddedLora(whole),)))
        assert torch.equal(alone, predictions(resident(manager, ModelSource(str(tiny_base_folder)))))
    assert len(loads) == 1, "the base by itself is the one that the steps are added to"


def test_a_file_that_is_replaced_is_read_again_and_one_that_does_not_fit_leaves_no_hooks(
    files: dict[str, Path], tiny_base_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(files["whole"].read_bytes())
    source = ModelSource(str(tiny_base_folder), loras=(AddedLora(str(file)),))
    manager = ModelManager("cpu")
    with manager.lease("generation", wait=False):
        plain = predictions(resident(manager, ModelSource(str(tiny_base_folder))))
        before = predictions(resident(manager, source))
        file.write_bytes(files["other"].read_bytes())
        assert not torch.equal(before, predictions(resident(manager, source)))
        wrong = ModelSource(str(tiny_base_folder), loras=(AddedLora(str(file)), AddedLora(str(files["sd2"]))))
        with pytest.raises(BaseModelError, match=r"It is for SD 2\.x, text 1024 wide; the model is of SD 1\.x"):
            resident(manager, wrong)
        assert torch.equal(plain, predictions(resident(manager, ModelSource(str(tiny_base_folder)))))
        file.unlink()
        with pytest.raises(BaseModelError, match="is not there"):
            resident(manager, source)


def test_modules_without_a_place_are_told_each_time(files: dict[str, Path], tiny_base_folder: Path) -> None:
    told: list[str] = []
    manager = ModelManager("cpu")
    source = ModelSource(str(tiny_base_folder), loras=(AddedLora(str(files["more"])),))
    with manager.lease("generation", wait=False):
        for _ in range(2):
            found = predictions(resident(manager, source, notice=told.append))
    assert torch.equal(found, of_source(ModelSource(str(tiny_base_folder), loras=(AddedLora(str(files["whole"])),))))
    assert len(told) == 2
    assert re.match(r'1 of the \d+ modules of the LoRA "more\.safetensors" are not in "tiny"', told[0])
    assert "lora_unet_conv_on" in told[0]


def test_sd2_takes_loras_too(tmp_path: Path) -> None:
    folder = tiny_base(tmp_path / "sd2", is_sd2=True)
    base = load_base(str(folder))
    file = written(tmp_path / "a.safetensors", kohya(random_factors(base, layers_of(base))))
    source = ModelSource(str(folder), loras=(AddedLora(str(file)),))
    assert torch.allclose(of_source(source), predictions(load(source)), atol=1e-4)


# The independent reader -----------------------------------------------------------------------------------------------
def by_diffusers(base_folder: Path, file: Path, scale: float = 1.0) -> torch.Tensor:
    """Return the predictions with a file loaded by diffusers and peft."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(base_folder, safety_checker=None)
    pipeline.load_lora_weights(file, adapter_name="it")
    pipeline.set_adapters(["it"], [scale])
    base = load_base(str(base_folder))
    base.unet, base.text_encoder = pipeline.unet.eval(), pipeline.text_encoder.eval()
    return predictions(base)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_diffusers_makes_the_same_of_our_trainings_file(run: Path, tiny_base_folder: Path, scale: float) -> None:
    file = run / "2" / "zwx-dog-2.safetensors"
    theirs = by_diffusers(tiny_base_folder, file, scale)
    plain = of_source(ModelSource(str(tiny_base_folder)))
    for ours in (
        of_source(ModelSource(str(run / "2"), Strength(scale, scale))),
        of_source(ModelSource(str(tiny_base_folder), loras=(AddedLora(str(file), scale),))),
    ):
        assert torch.allclose(ours, theirs, atol=1e-4)
        assert float((theirs - plain).norm()) > 100 * float((ours - theirs).norm())


def test_we_make_the_same_of_diffusers_file(tiny_base_folder: Path, tmp_path: Path) -> None:
    """Alpha is another than the rank, and lies in the header alone."""
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig, get_peft_model_state_dict

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base_folder, safety_checker=None)
    settings = {"r": 4, "lora_alpha": 10, "init_lora_weights": False}
    pipeline.unet.add_adapter(LoraConfig(target_modules=["to_q", "to_v", "proj_in", "conv2"], **settings))
    pipeline.text_encoder.add_adapter(LoraConfig(target_modules=["q_proj", "fc2"], **settings))
    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    layers = {f"{part}_lora_layers": get_peft_model_state_dict(module) for part, module in parts.items()}
    pipeline.save_lora_weights(tmp_path, **layers, **_collate_lora_metadata(parts))
    base = load_base(str(tiny_base_folder))
    base.unet, base.text_encoder = pipeline.unet.eval(), pipeline.text_encoder.eval()
    file = tmp_path / "pytorch_lora_weights.safetensors"
    theirs, ours = predictions(base), of_source(ModelSource(str(tiny_base_folder), loras=(AddedLora(str(file)),)))
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert float((theirs - of_source(ModelSource(str(tiny_base_folder)))).norm()) > 1e-2


# The command line ----------------------------------------------------------------------------------------------------


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the program as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "dreambooth", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def test_generate_adds_loras_and_the_picture_says_so(
    files: dict[str, Path], tiny_base_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "made"
    added = [f"--lora={files['more']}:0.5", f"--lora={files['other']}"]
    done = command("generate", f"--model={tiny_base_folder}", f"--output_dir={out}", *added, *PICTURE)
    assert done.returncode == 0, done.stderr
    assert 'modules of the LoRA "more.safetensors" are not in' in done.stderr
    (picture,) = out.glob("*.png")
    text = text_of_picture(picture)
    hashes = [tensors_hash(files[name])[:12] for name in ("more", "other")]
    assert f'Lora hashes: "more: {hashes[0]}, other: {hashes[1]}", Lora strengths: "more: 0.5, other: 1"' in text
    assert [(one.name, one.hash, one.strength) for one in read_recipe(text).loras] == [
        ("more", hashes[0], 0.5), ("other", hashes[1], 1.0),
    ]  # fmt: skip
    (without,) = generate(tiny_base_folder, REQUEST, tmp_path / "without")
    assert Image.open(picture).tobytes() != Image.open(without).tobytes()
    assert "Lora" not in text_of_picture(without)


@pytest.mark.parametrize(
    ("added", "told"),
    [("nowhere.safetensors", '"nowhere.safetensors" is not there'), ("sd2", "It is for SD 2.x"),
     ("whole:9", 'lora: adds "whole.safetensors" at 9: it must be -5 to 5'), ("base", "is not a LoRA")],
)  # fmt: skip
def test_a_lora_that_cannot_be_added_is_told_in_words(
    files: dict[str, Path], tiny_base_folder: Path, tmp_path: Path, added: str, told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    places = {"sd2": str(files["sd2"]), "whole:9": f"{files['whole']}:9",
              "base": str(tiny_base_folder / "vae" / "diffusion_pytorch_model.safetensors")}  # fmt: skip
    flags = [f"--model={tiny_base_folder}", f"--output_dir={tmp_path / 'made'}", *PICTURE]
    assert main(["generate", *flags, f"--lora={places.get(added, added)}"]) == 1
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


def test_a_lora_run_goes_onto_another_base_and_compares_with_files_on_it(
    run: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    other_base = tiny_base(tmp_path / "other", seed=6)
    flags = [f"--model={run}", f"--base={other_base}", f"--output_dir={tmp_path / 'made'}", *PICTURE]
    assert main(["generate", *flags]) == 0
    (on_other,) = (tmp_path / "made").glob("*.png")
    (alone,) = generate(run, REQUEST, tmp_path / "alone")
    assert Image.open(on_other).tobytes() != Image.open(alone).tobytes()
    assert text_of_picture(on_other).endswith(f"Model: {run.name}/2 on other")
    loras = [f"--lora={files['other']}:0.5"]
    assert main(["compare", str(run), "--steps", "0", "1", "2", f"--output_dir={tmp_path / 'rows'}", *loras,
                 f"--base={other_base}", *PICTURE]) == 0  # fmt: skip
    rows = sorted((tmp_path / "rows").glob("*-[0-9].png"))
    assert [text_of_picture(path).rpartition("Model: ")[2] for path in rows] == [
        "other", f"{run.name}/1 on other", f"{run.name}/2 on other"
    ]  # fmt: skip
    assert all("Lora strengths" in text_of_picture(path) for path in rows)
    assert len({Image.open(path).tobytes() for path in rows}) == 3
    added = (AddedLora(str(files["other"]), 0.5),)
    (base_row,) = generate(other_base, GenerationConfig(**{**vars(REQUEST), "loras": added}), tmp_path / "row")
    assert Image.open(rows[0]).tobytes() == Image.open(base_row).tobytes()


@pytest.mark.parametrize(
    ("text", "file", "strength"),
    [("a.safetensors", "a.safetensors", 1.0), ("a.safetensors:0.8", "a.safetensors", 0.8), ("a:-1", "a", -1.0),
     (r"C:\x.safetensors", r"C:\x.safetensors", 1.0), (r"C:\x.safetensors:.5", r"C:\x.safetensors", 0.5),
     ("a:b", "a:b", 1.0), ("a:b:2", "a:b", 2.0), ("a:", "a:", 1.0), ("a:nan", "a:nan", 1.0), ("a:1e3", "a", 1000.0),
     ("a:5e-05", "a", 5e-05), ("a:1e", "a:1e", 1.0), (":3", ":3", 1.0)],
)  # fmt: skip
def test_a_colon_counts_only_before_a_number(text: str, file: str, strength: float) -> None:
    assert AddedLora.of(text) == AddedLora(file, strength)


@pytest.mark.parametrize(
    ("loras", "told"),
    [((AddedLora("a", 5.5),), "must be -5 to 5"), ((AddedLora("a", float("nan")),), "must be -5 to 5"),
     ((AddedLora("a"), AddedLora("a", 0.5)), "twice"), (tuple(AddedLora(f"{n}") for n in range(17)), "at most 16"),
     ((AddedLora("a\nb"),), "control or invalid characters")],
)  # fmt: skip
def test_a_request_is_checked_with_its_loras(loras: tuple[AddedLora, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        GenerationConfig(prompt="x", loras=loras).checked()
    GenerationConfig(prompt="x", loras=(AddedLora("a", -5), AddedLora("b", 5))).checked()
