"""The seed's world: its notebook's cells and command lines run here as they are, and the page in docs/ tells the truth.

`BROKEN` marks what the seed can do and this cannot: each goes when it is mended.
"""

import json
import re
import shlex
import shutil
from glob import glob
from pathlib import Path
from typing import Any

import pytest
import torch
from natsort import natsorted
from PIL import Image
from safetensors.torch import load_file, save_file

from dreambooth.commands.cli import build_parser, main
from dreambooth.commands.train import training_config
from dreambooth.config.concepts import dump_concepts_list, load_concepts_list
from dreambooth.config.training import TrainingConfig
from dreambooth.errors import ConfigError
from dreambooth.models.base import load_base
from dreambooth.pictures.grid import write_sample_grid
from dreambooth.records.workspace import newest_step_folder

DOC = Path(__file__).resolve().parents[2] / "docs" / "from-the-notebook.md"
TOKEN = "hf_" + "Z" * 34  # made up

# Every argument of the seed's script and its default; None where it has none.
SEED_DEFAULTS: dict[str, Any] = {
    "pretrained_model_name_or_path": None, "pretrained_vae_name_or_path": None, "revision": None,
    "tokenizer_name": None, "instance_data_dir": None, "class_data_dir": None, "instance_prompt": None,
    "class_prompt": None, "concepts_list": None, "with_prior_preservation": False, "prior_loss_weight": 1.0,
    "num_class_images": 100, "sample_batch_size": 4, "save_sample_prompt": None, "save_sample_negative_prompt": None,
    "n_save_sample": 4, "save_guidance_scale": 7.5, "save_infer_steps": 20, "pad_tokens": False,
    "output_dir": "text-inversion-model", "seed": None, "resolution": 512, "center_crop": False, "hflip": False,
    "train_text_encoder": False, "train_batch_size": 4, "num_train_epochs": 1, "max_train_steps": None,
    "gradient_accumulation_steps": 1, "gradient_checkpointing": False, "learning_rate": 5e-6, "scale_lr": False,
    "lr_scheduler": "constant", "lr_warmup_steps": 500, "use_8bit_adam": False, "adam_beta1": 0.9,
    "adam_beta2": 0.999, "adam_weight_decay": 1e-2, "adam_epsilon": 1e-8, "max_grad_norm": 1.0, "push_to_hub": False,
    "hub_token": None, "hub_model_id": None, "logging_dir": "logs", "log_interval": 10, "save_interval": 10_000,
    "save_min_steps": 0, "mixed_precision": None, "not_cache_latents": False, "local_rank": -1,
    "read_prompts_from_txts": False,
}  # fmt: skip
CONVERTER = ("model_path", "checkpoint_path", "half", "use_safetensors")
# A value that is not the default, for those whose default does not show what kind they want.
VALUES = {
    "pretrained_model_name_or_path": "owner/model", "pretrained_vae_name_or_path": "owner/vae", "revision": "main",
    "tokenizer_name": "owner/tokenizer", "instance_prompt": "photo of ukj cup", "class_prompt": "photo of cup",
    "class_data_dir": "classes", "save_sample_prompt": "photo", "save_sample_negative_prompt": "blur",
    "output_dir": "out", "seed": "7", "lr_scheduler": "linear", "max_train_steps": "9", "hub_token": TOKEN,
    "hub_model_id": "me/dog", "logging_dir": "board", "mixed_precision": "bf16", "adam_beta1": "0.8",
    "adam_beta2": "0.99", "adam_weight_decay": "0.1", "adam_epsilon": "1e-7", "learning_rate": "1e-6",
    "resolution": "256",
}  # fmt: skip


# The notebook, cell by cell ------------------------------------------------------------------------------------------


def content(folder: Path) -> list[dict[str, str]]:
    """Do what cells 9 and 10 do: photos in the instance folder, and the list beside it, in the working folder."""
    concepts = [
        {
            "instance_prompt": "photo of zwx dog",
            "class_prompt": "photo of a dog",
            "instance_data_dir": str(folder / "data" / "zwx"),
            "class_data_dir": str(folder / "data" / "dog"),
        }
    ]
    for concept in concepts:
        Path(concept["instance_data_dir"]).mkdir(parents=True)
    for number in range(3):
        gradient = Image.linear_gradient("L").resize((48, 48)).rotate(90 * number).convert("RGB")
        gradient.save(folder / "data" / "zwx" / f"{number}.jpg")
    with open(folder / "concepts_list.json", "w") as file:
        json.dump(concepts, file, indent=4)
    return concepts


def cell_11(base: Path, output_dir: Path, *more: str) -> list[str]:
    """Return the launch cell's arguments with smaller numbers, in fp32, and without the Hub's files."""
    line = f"""
        --pretrained_model_name_or_path={shlex.quote(str(base))}
        --pretrained_vae_name_or_path={shlex.quote(str(base / "vae"))}
        --output_dir={shlex.quote(str(output_dir))}
        --with_prior_preservation --prior_loss_weight=1.0
        --seed=1337 --resolution=32 --train_batch_size=1 --train_text_encoder --mixed_precision="no" --use_8bit_adam
        --gradient_accumulation_steps=1 --learning_rate=1e-6 --lr_scheduler="constant" --lr_warmup_steps=0
        --num_class_images=3 --sample_batch_size=4 --max_train_steps=10 --save_interval=2
        --save_sample_prompt="photo of zwx dog" --save_infer_steps=2 --concepts_list="concepts_list.json"
    """
    return ["train", *shlex.split(line), *more]


@pytest.fixture(scope="module")
def world(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the notebook's working folder after cell 11, one class picture of the seed's in it before."""
    folder = tmp_path_factory.mktemp("content")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMBOOTH_HOME", str(tmp_path_factory.mktemp("home")))
        patch.chdir(folder)
        [concept] = content(folder)
        class_dir = Path(concept["class_data_dir"])
        class_dir.mkdir()
        Image.new("RGB", (64, 64), "tan").save(class_dir / f"0-{'ab' * 20}.jpg")
        output_dir(folder).mkdir(parents=True)
        assert main(cell_11(tiny_base_folder, output_dir(folder))) == 0
    return folder


def output_dir(world: Path) -> Path:
    """Return what the notebook calls OUTPUT_DIR."""
    return world / "stable_diffusion_weights" / "zwx"


def weights_dir(output: Path) -> str:
    """Return WEIGHTS_DIR as cell 12 finds it when it was left blank."""
    newest: str = natsorted(glob(f"{output}/*"))[-1]
    return newest


def drawn_rows(output: Path, names: list[str]) -> dict[str, list[tuple[int, int]]]:
    """Do what cell 13 does with the names it found: sort them as numbers, and open every sample of each."""
    steps = sorted((name for name in names if name != "0"), key=int)
    rows = {}
    for step in steps:
        files = [*(output / step / "samples").iterdir()]
        rows[step] = [Image.open(file).convert("RGB").size for file in files]
    return rows


def test_cell_9s_list_is_read_and_written_as_it_is(tmp_path: Path) -> None:
    [concept] = content(tmp_path)
    [read] = load_concepts_list(tmp_path / "concepts_list.json")
    assert {name: getattr(read, name) for name in concept} == concept
    assert json.loads(dump_concepts_list([read])) == [concept]


def test_cell_11_fills_the_seeds_folders(world: Path) -> None:
    output = output_dir(world)
    assert {entry.name for entry in output.iterdir()} == {".run", "0", "2", "4", "6", "8", "10"}
    parts = {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    for step in ("2", "10"):
        here = {entry.name for entry in (output / step).iterdir()}
        assert here == parts | {"model_index.json", "args.json", "samples", "card.json"}
        assert {file.name for file in (output / step / "samples").iterdir()} == {f"{n}.png" for n in range(4)}
    assert {entry.name for entry in (output / "0").iterdir()} - {"logs"} == {"samples"}
    classes = sorted((world / "data" / "dog").iterdir())
    assert len(classes) == 3
    assert [file.suffix for file in classes].count(".jpg") == 1, "the seed's own picture counts and stays"


def test_cell_12_left_blank_is_the_newest_step(world: Path, tmp_path: Path) -> None:
    output = output_dir(world)
    assert weights_dir(output) == str(output / "10")
    assert str(newest_step_folder(output)) == weights_dir(output)
    run, step = tmp_path / "run.safetensors", tmp_path / "step.safetensors"
    assert main(["convert", str(output), str(run)]) == 0
    assert main(["convert", weights_dir(output), str(step)]) == 0
    assert run.read_bytes() == step.read_bytes()
    assert main(["convert", str(output / "2"), str(step)]) == 0
    assert run.read_bytes() != step.read_bytes()


def test_cell_13_draws_the_grid_from_what_cell_12_lists(world: Path) -> None:
    output = output_dir(world)
    rows = drawn_rows(output, [Path(found).name for found in glob(f"{output}/*")])
    assert list(rows) == ["2", "4", "6", "8", "10"]
    assert all(sizes == [(32, 32)] * 4 for sizes in rows.values())


def test_our_grid_of_the_run(world: Path, tmp_path: Path) -> None:
    with Image.open(write_sample_grid(output_dir(world), tmp_path / "grid.png")) as grid:
        assert grid.width > 4 * 32
        assert grid.height > 6 * 32


def test_the_grid_command_leaves_cell_12_its_newest_step(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    shutil.copytree(output_dir(world), run)
    assert main(["grid", str(run)]) == 0
    assert weights_dir(run) == str(run / "10")


def test_cell_15_puts_the_ckpt_into_the_weights(world: Path, tmp_path: Path) -> None:
    weights = tmp_path / "10"
    shutil.copytree(weights_dir(output_dir(world)), weights)
    path = weights / "model.ckpt"
    assert main(["convert", "--model_path", str(weights), "--checkpoint_path", str(path), "--half"]) == 0
    stored = torch.load(path, weights_only=True)["state_dict"]
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.int64}
    prefixes = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model.")
    assert {next(prefix for prefix in prefixes if name.startswith(prefix)) for name in stored} == set(prefixes)
    # And everything that is done with the folder still works with the file in it.
    assert load_base(str(weights)).card.native_px == 32


def test_cells_17_to_19_open_the_folder_with_diffusers(world: Path) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    model_path = weights_dir(output_dir(world))
    # Without a GPU in fp32; the notebook says torch.float16.
    pipe = StableDiffusionPipeline.from_pretrained(model_path, safety_checker=None, torch_dtype=torch.float32)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(52362)
    pictures = pipe(
        "photo of zwx dog in a bucket", negative_prompt="", num_images_per_prompt=2, num_inference_steps=2,
        height=32, width=32, guidance_scale=7.5, generator=generator,
    ).images  # fmt: skip
    assert [picture.size for picture in pictures] == [(32, 32)] * 2


def test_the_seeds_converter_would_find_its_files_in_our_folders(world: Path) -> None:
    step = output_dir(world) / "10"
    assert (step / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert (step / "text_encoder" / "model.safetensors").is_file()
    # As the page in docs/ says: the VAE's attention has the new names, which that converter does not know.
    vae = load_file(step / "vae" / "diffusion_pytorch_model.safetensors")
    assert any(".to_q." in name for name in vae)
    assert not any(".query." in name for name in vae)


def test_cell_11_with_a_folder_as_model_name(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content(tmp_path)
    quick = ["--max_train_steps=1", "--n_save_sample=1", "--revision=fp16"]
    assert main(cell_11(tiny_base_folder, tmp_path / "out", *quick)) == 0


def test_cell_11_again_after_a_mistake_in_model_name(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content(tmp_path)
    quick = ["--max_train_steps=1", "--n_save_sample=1", "--num_class_images=1"]
    mistaken = "--pretrained_model_name_or_path=runwayml/stable-diffusion-v1-5"
    assert main(cell_11(tiny_base_folder, tmp_path / "out", *quick, mistaken)) == 1
    assert main(cell_11(tiny_base_folder, tmp_path / "out", *quick)) == 0


# A folder that the seed wrote ----------------------------------------------------------------------------------------

OLD_VAE_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
# What diffusers 0.15 and transformers 4 knew of a part's configuration.
OLD_UNET = """
    sample_size in_channels out_channels center_input_sample flip_sin_to_cos freq_shift down_block_types mid_block_type
    up_block_types only_cross_attention block_out_channels layers_per_block downsample_padding mid_block_scale_factor
    act_fn norm_num_groups norm_eps cross_attention_dim attention_head_dim dual_cross_attention use_linear_projection
    class_embed_type num_class_embeds upcast_attention resnet_time_scale_shift
"""
OLD_VAE = """
    in_channels out_channels down_block_types up_block_types block_out_channels layers_per_block act_fn latent_channels
    norm_num_groups sample_size scaling_factor
"""


def seeds_folder(base: Path, folder: Path, *, pickled: bool) -> Path:
    """Write the base as the seed's script saved a step in 2023, and return the folder."""
    shutil.copytree(base, folder)
    (folder / "card.json").unlink()
    _old_weights(folder, pickled=pickled)
    for part, kind, known in (("unet", "UNet2DConditionModel", OLD_UNET), ("vae", "AutoencoderKL", OLD_VAE)):
        config = json.loads((folder / part / "config.json").read_text())
        kept = {name: value for name, value in config.items() if name in known.split()}
        written = {"_class_name": kind, "_diffusers_version": "0.15.0.dev0", **kept}
        (folder / part / "config.json").write_text(json.dumps(written))
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    scheduler |= {"_diffusers_version": "0.15.0.dev0", "skip_prk_steps": True}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    _old_tokenizer(folder / "tokenizer")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.15.0.dev0",
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        "requires_safety_checker": None,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "feature_extractor").mkdir()
    preprocessor = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "do_resize": True}
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (folder / "args.json").write_text(json.dumps(_old_settings(), indent=2))
    (folder / "samples").mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 90, 90)).save(folder / "samples" / f"{number}.png")
    return folder


def _old_weights(folder: Path, *, pickled: bool) -> None:
    stems = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    for part, stem in stems.items():
        file = folder / part / f"{stem}.safetensors"
        weights = {name: tensor.float().clone() for name, tensor in load_file(file).items()}
        if part == "vae":
            weights = {_old_vae_name(name): tensor for name, tensor in weights.items()}
            assert any(".proj_attn." in name for name in weights)
        if part == "text_encoder":
            weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        if pickled:
            file.unlink()
            old_stem = "pytorch_model" if part == "text_encoder" else stem
            torch.save(weights, folder / part / f"{old_stem}.bin")
        else:
            save_file(weights, file, {"format": "pt"})


def _old_vae_name(name: str) -> str:
    for new, old in OLD_VAE_NAMES.items():
        if ".attentions." in name:
            name = name.replace(f".{new}.", f".{old}.")
    return name


def _old_tokenizer(folder: Path) -> None:
    for file in folder.iterdir():
        if file.name not in ("vocab.json", "merges.txt"):
            file.unlink()
    start, end = "<|startoftext|>", "<|endoftext|>"
    token = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    config = {
        "add_prefix_space": False, "bos_token": token | {"content": start}, "do_lower_case": True,
        "eos_token": token | {"content": end}, "errors": "replace", "model_max_length": 77, "pad_token": end,
        "special_tokens_map_file": "./special_tokens_map.json", "tokenizer_class": "CLIPTokenizer",
        "unk_token": token | {"content": end},
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    special = {"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": end}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


def _old_settings() -> dict[str, Any]:
    """Return what the seed writes as args.json: every argument, the list in place of its file, the token in clear."""
    concept = {
        "instance_prompt": "photo of zwx dog", "class_prompt": "photo of a dog",
        "instance_data_dir": "/content/data/zwx", "class_data_dir": "/content/data/dog",
    }  # fmt: skip
    return SEED_DEFAULTS | {
        "pretrained_model_name_or_path": "runwayml/stable-diffusion-v1-5", "output_dir": "/content/weights/zwx",
        "concepts_list": [concept], "hub_token": TOKEN, "max_train_steps": 800, "seed": 1337, "revision": "fp16",
    }  # fmt: skip


@pytest.fixture(scope="module", params=["safetensors", "bin"])
def old_step(request: pytest.FixtureRequest, tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a step folder of the seed's, in an OUTPUT_DIR as it leaves it."""
    output = tmp_path_factory.mktemp("old")
    (output / "0" / "logs").mkdir(parents=True)
    return seeds_folder(tiny_base_folder, output / "800", pickled=request.param == "bin")


def test_a_folder_of_the_seeds_opens_as_a_base(old_step: Path, tiny_base_folder: Path) -> None:
    old, new = load_base(str(old_step)), load_base(str(tiny_base_folder))
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(new, part).state_dict(), getattr(old, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    words = "photo of zwx dog in a bucket"
    assert old.tokenizer(words).input_ids == new.tokenizer(words).input_ids
    assert old.tokenizer.model_max_length == 77
    assert old.card.native_px == 32
    assert old.noise_scheduler_config["prediction_type"] == "epsilon"


def test_a_folder_of_the_seeds_converts_to_what_it_holds(
    old_step: Path, tiny_base_folder: Path, tmp_path: Path
) -> None:
    files = [tmp_path / "old.ckpt", tmp_path / "new.ckpt"]
    for folder, file in zip((old_step, tiny_base_folder), files, strict=True):
        assert main(["convert", "--model_path", str(folder), "--checkpoint_path", str(file), "--half"]) == 0
    old, new = (torch.load(file, weights_only=True)["state_dict"] for file in files)
    assert old.keys() == new.keys()
    assert [name for name in old if not torch.equal(old[name], new[name])] == []
    # Given OUTPUT_DIR, its newest step is taken.
    assert main(["convert", str(old_step.parent), str(tmp_path / "run.safetensors"), "--half"]) == 0
    assert load_file(tmp_path / "run.safetensors").keys() == old.keys()


# Not strict: whether a picture differs in one bit follows from where the tensors happen to lie in the file.
def test_a_folder_of_the_seeds_converts_in_its_own_precision(old_step: Path, tmp_path: Path) -> None:
    assert main(["convert", str(old_step), str(tmp_path / "model.safetensors")]) == 0
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_a_token_in_the_seeds_args_json_goes_into_no_file(old_step: Path, tmp_path: Path, name: str) -> None:
    assert main(["convert", str(old_step), str(tmp_path / name), "--half"]) == 0
    data = (tmp_path / name).read_bytes()
    assert [secret for secret in (TOKEN, "/content/") if secret.encode() in data] == []


def test_a_folder_of_the_seeds_is_taught_further_and_makes_pictures(
    old_step: Path, photos: Path, tmp_path: Path
) -> None:
    words = ["--instance_data_dir", str(photos), "--instance_prompt", "photo of zwx dog"]
    flags = ["--resolution=32", "--max_train_steps=1", "--train_batch_size=1", f"--output_dir={tmp_path / 'run'}"]
    assert main(["train", f"--pretrained_model_name_or_path={old_step}", *words, *flags]) == 0
    assert (tmp_path / "run" / "1" / "model_index.json").is_file()
    request = ["--prompt", "photo of zwx dog", "--num_images_per_prompt", "1", "--num_inference_steps", "1"]
    assert main(["generate", "--model", str(old_step.parent), *request, "--output_dir", str(tmp_path / "p")]) == 0
    assert len(list((tmp_path / "p").glob("*.png"))) == 1
    # A new run does not mix its steps with the old ones.
    refused = ["--resolution=32", "--max_train_steps=1", f"--output_dir={old_step.parent}"]
    assert main(["train", f"--pretrained_model_name_or_path={old_step}", *words, *refused]) == 1


def test_the_seeds_samples_make_a_grid(old_step: Path, tmp_path: Path) -> None:
    with Image.open(write_sample_grid(old_step.parent, tmp_path / "grid.png")) as grid:
        assert grid.width > 4 * 32


# The page in docs/ ---------------------------------------------------------------------------------------------------


def doc() -> str:
    """Return the page."""
    return DOC.read_text("utf-8")


def verdicts(heading: str) -> dict[str, tuple[str, str]]:
    """Return what a table of arguments says of each: same, differs, ignored or refused, and the sentence."""
    found = re.findall(
        r"^\| `--(\w+)` \| (\w+) \| (.*?) ?\|$", doc().split(f"## {heading}\n")[1].split("\n## ")[0], re.MULTILINE
    )
    names = [name for name, *_ in found]
    assert len(names) == len(set(names))
    return {name: (verdict, sentence) for name, verdict, sentence in found}


def config_of(photos: Path, *flags: str) -> TrainingConfig:
    """Return the settings of a command line with these flags."""
    words = [
        "--instance_data_dir",
        str(photos),
        "--instance_prompt",
        "photo of zwx dog",
        "--class_prompt",
        "photo of dog",
    ]
    arguments = vars(build_parser().parse_args(["train", *words, *flags]))
    arguments.pop("run_command")
    return training_config(arguments)


def test_every_cell_has_its_row() -> None:
    numbers = re.findall(r"^\| (\d+) \| ", doc().split("## Find each cell\n")[1].split("\n## ")[0], re.MULTILINE)
    assert [int(number) for number in numbers] == list(range(23))


def test_every_argument_has_its_row_and_its_reason() -> None:
    told = verdicts("Find each argument of the training")
    assert told.keys() == SEED_DEFAULTS.keys()
    assert {verdict for verdict, _ in told.values()} == {"same", "differs", "ignored", "refused"}
    assert [name for name, (verdict, why) in told.items() if verdict != "same" and not why.endswith(".")] == []
    converter = verdicts("Find each argument of the converter")
    assert converter.keys() == set(CONVERTER)
    assert all(why.endswith(".") for _, why in converter.values())


@pytest.mark.parametrize("name", SEED_DEFAULTS)
def test_the_parser_does_what_the_row_says(
    name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    verdict, _ = verdicts("Find each argument of the training")[name]
    default = SEED_DEFAULTS[name]
    value = VALUES.get(name) or (None if default is False else str(int(default or 0) + 1))
    if name == "instance_data_dir":
        shutil.copytree(photos, tmp_path / "other")
        value = "other"
    if name == "concepts_list":
        entries = [{"instance_prompt": "a", "instance_data_dir": str(photos)}]
        Path("list.json").write_text(json.dumps(entries))
        value = "list.json"
    flags = [f"--{name}" if value is None else f"--{name}={value}"]
    plain = config_of(photos)
    if verdict == "refused":
        with pytest.raises(ConfigError, match=name):
            config_of(photos, *flags)
        return
    changed = config_of(photos, *flags)
    if name in ("push_to_hub", "hub_model_id"):
        assert changed == plain, "what is done with the model afterwards is no setting of the run"
        return
    assert (changed == plain) == (verdict == "ignored")
    if verdict == "same" and name in TrainingConfig.__dataclass_fields__:
        assert getattr(plain, name) == default
        kind = str if default is None else type(default)
        assert getattr(changed, name) == (True if value is None else kind(value))


@pytest.mark.parametrize("name", CONVERTER)
def test_the_converter_knows_the_argument(name: str) -> None:
    flags = {"model_path": "m", "checkpoint_path": "o.ckpt"}
    line = ["convert", f"--{name}={flags[name]}" if name in flags else f"--{name}"]
    assert vars(build_parser().parse_args(line))[name] == flags.get(name, True)


def test_the_pages_commands_are_commands() -> None:
    lines = re.findall(r"`python -m dreambooth ([^`]+)`", doc())
    assert {line.split()[0] for line in lines} >= {"train", "convert", "generate", "grid", "doctor", "clean", "push"}
    known = next(action.choices for action in build_parser()._actions if action.choices)
    for line in lines:
        if line.split()[0] in known and "ARGUMENTS" not in line:  # type: ignore[operator]
            build_parser().parse_args(shlex.split(line))
