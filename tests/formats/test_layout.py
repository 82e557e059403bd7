"""The parts of a saved model as data, which family a model is of, and whether a folder is a saved step."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth.errors import BaseModelError
from dreambooth.export.single_file import convert
from dreambooth.formats.layout import LAYOUTS, family_of, layout_of, saved_step_kind
from dreambooth.formats.ldm import UNET_PREFIX
from dreambooth.formats.other_kinds import FIRST_CONV
from dreambooth.models.base import load_base
from dreambooth.records.saved_weights import weight_files
from dreambooth.records.workspace import RunFolder
from tests.harness.tiny import tiny_base

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> dict[str, Path]:
    return {"sd1": tiny_base_folder, "sd2": tiny_base(tmp_path_factory.mktemp("sd2") / "base", is_sd2=True)}


def changed_folder(folder: Path, target: Path, index: dict[str, Any], unet: dict[str, Any]) -> Path:
    """Copy a folder's configurations with these changes."""
    for name, changes in (("model_index.json", index), ("unet/config.json", unet)):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))
    return target


def cached(folder: Path, cache: Path, repository: str) -> None:
    """Lay a folder's configurations into a Hub's cache."""
    root = cache / f"models--{repository.replace('/', '--')}"
    changed_folder(folder, root / "snapshots" / "0123abc", {}, {})
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0123abc")


def own_cache(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


# Which family --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sd2"])
@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "old.ckpt"])
def test_folder_and_files_of_a_family_are_known_by_it(
    folders: dict[str, Path], tmp_path: Path, family: str, name: str
) -> None:
    folder = folders[family]
    file = convert(folder, tmp_path / name)
    if name == "old.ckpt":  # from before torch 1.6: several pickles instead of an archive
        torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)
    assert family_of(folder) == family_of(file) == family
    assert layout_of(folder) == LAYOUTS[family_of(file)]


def test_the_family_of_a_loaded_base_has_the_layout_it_was_loaded_by(folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        assert load_base(str(folder)).family.layout.family == name


def test_a_hub_id_is_known_from_the_local_cache(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = own_cache(monkeypatch, tmp_path / "cache")
    for name, folder in folders.items():
        cached(folder, cache, f"somebody/{name}")
        assert family_of(f"somebody/{name}") == name
    for unknown in ("somebody/absent", "no such name"):
        with pytest.raises(BaseModelError, match=f'"{unknown}" is not known. It is not in the local cache.'):
            family_of(unknown)


@pytest.mark.parametrize(
    ("index", "unet", "kind"),
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, {}, "a StableDiffusionXLPipeline whose UNet is of another kind"),
        (
            {},
            {"addition_embed_type": "text_time", "use_linear_projection": True},
            "a StableDiffusionPipeline whose UNet is of another kind",
        ),
        ({}, {"in_channels": 9}, "an inpainting model"),
        ({"_class_name": "OnnxStableDiffusionPipeline"}, {}, "an ONNX model"),
        ({"_class_name": "FluxPipeline"}, {}, "a FluxPipeline"),
    ],
)
def test_another_kind_of_folder_is_refused_by_name_as_loading_it_is(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: Any, unet: Any, kind: str
) -> None:
    folder = changed_folder(tiny_base_folder, tmp_path / "copy", index, unet)
    only = "Only text-to-image models of SD 1.x, 2.x and SDXL"
    with pytest.raises(BaseModelError, match=f"copy is {kind}. {only}") as told:
        family_of(folder)
    with pytest.raises(BaseModelError) as when_loaded:
        load_base(str(folder))
    assert str(told.value) == str(when_loaded.value)
    cached(folder, own_cache(monkeypatch, tmp_path / "cache"), "somebody/other")
    with pytest.raises(BaseModelError, match=f"is {kind}"):
        family_of("somebody/other")


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_refiners_file_is_refused_as_loading_it_is(tiny_base_folder: Path, tmp_path: Path, suffix: str) -> None:
    weights = {FIRST_CONV: torch.zeros(8, 4, 3, 3), "conditioner.embedders.0.model.ln_final.weight": torch.zeros(2)}
    file = tmp_path / f"xl{suffix}"
    save_file(weights, file) if suffix == ".safetensors" else torch.save({"state_dict": weights}, file)
    with pytest.raises(BaseModelError, match=rf"xl{suffix} is the refiner of SDXL\.") as told:
        family_of(file)
    with pytest.raises(BaseModelError) as when_loaded:
        load_base(str(file))
    assert str(told.value) == str(when_loaded.value)


@pytest.mark.parametrize(
    ("weights", "kind"),
    [
        ({FIRST_CONV: (8, 9, 3, 3)}, "an inpainting model"),
        ({"dog": (1, 768)}, "an embedding"),
        ({"lora_unet_down.weight": (2, 2)}, "a LoRA"),
        ({"strange.weight": (2, 2)}, 'not a complete model in the original layout. It holds "strange.weight"'),
    ],
)
def test_another_kind_of_file_is_refused_by_what_its_header_says(tmp_path: Path, weights: Any, kind: str) -> None:
    file = tmp_path / "file.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in weights.items()}, file)
    with pytest.raises(BaseModelError, match=f"is {kind}"):
        family_of(file)


@pytest.mark.parametrize("content", [b"", b"\x80\x02}", b"<html>", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0[]"])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_what_is_no_file_of_weights_is_told(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"file{suffix}"
    file.write_bytes(content)
    with pytest.raises(BaseModelError, match=f'"file{suffix}" cannot be read'):
        family_of(file)


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json"])
@pytest.mark.parametrize("content", [None, "[]", "[" * 10**5, "{"])
def test_a_folder_without_its_configurations_is_no_model(
    tiny_base_folder: Path, tmp_path: Path, name: str, content: str | None
) -> None:
    folder = changed_folder(tiny_base_folder, tmp_path / "copy", {}, {})
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    if content == "[]" and name == "unet/config.json":
        assert family_of(folder) == "sd1"  # an empty list of settings: every one has its default
        return
    with pytest.raises(BaseModelError, match="is not a diffusers model|is a None"):
        family_of(folder)


def test_neither_torch_nor_its_libraries_are_needed(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [convert(folders["sd2"], tmp_path / name) for name in ("model.safetensors", "model.ckpt")]
    cached(folders["sd2"], tmp_path / "cache", "somebody/model")
    code = """
import sys
from pathlib import Path
from dreambooth.formats.layout import family_of, saved_step_kind
*paths, name = sys.argv[1:]
print({family_of(Path(path)) for path in paths} | {family_of(name)}, saved_step_kind(Path(paths[0])))
print([name for name in ("torch", "diffusers", "transformers", "safetensors.torch") if name in sys.modules])
"""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    told = subprocess.run(
        [sys.executable, "-c", code, str(folders["sd2"]), *map(str, files), "somebody/model"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert told.stdout.splitlines() == ["{'sd2'} model", "[]"]


# Saved steps and their files -----------------------------------------------------------------------------------------


def test_a_saved_step_is_known_by_its_index_which_is_deleted_first(tiny_base_folder: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    step = Path(shutil.copytree(tiny_base_folder, run.step_folder(5)))
    assert saved_step_kind(step) == "model"
    assert run.steps() == [5]
    files = weight_files(run, 5)
    assert files[0] == step / "model_index.json"
    files[0].unlink()
    assert saved_step_kind(step) is None
    assert run.steps() == []
    (step / "model_index.json").mkdir()
    assert saved_step_kind(step) is None
    assert saved_step_kind(tmp_path / "absent") is None


def test_every_file_of_a_saved_model_is_described(tiny_base_folder: Path) -> None:
    layout = layout_of(tiny_base_folder)
    written = {file.relative_to(tiny_base_folder) for file in tiny_base_folder.rglob("*") if file.is_file()}
    described = {
        file.relative_to(tiny_base_folder) for pattern in layout.saved_files for file in tiny_base_folder.glob(pattern)
    }
    assert described == written
    assert {Path(name) for name in layout.needed_files} <= written


def test_the_index_is_diffusers_own(tiny_base_folder: Path) -> None:
    import diffusers

    index = json.loads((tiny_base_folder / "model_index.json").read_text())
    pipeline = getattr(diffusers, index["_class_name"])
    expected, optional = pipeline._get_signature_keys(pipeline)
    components = {name for name in index if not name.startswith("_")}
    assert components == set(expected) | (set(optional) & components)
    assert index == layout_of(tiny_base_folder).model_index(diffusers.__version__, {"requires_safety_checker": False})
    assert list(index) == sorted(index)


def test_single_files_hold_the_parts_of_their_layout(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, folder in folders.items():
        weights = load_file(convert(folder, tmp_path / f"{name}.safetensors"))
        has_open_clip = any(tensor.startswith("cond_stage_model.model.") for tensor in weights)
        assert has_open_clip == LAYOUTS[family_of(folder)].open_clip == (name == "sd2")
        assert any(tensor.startswith(UNET_PREFIX) for tensor in weights)
