"""Folders and photos that would teach another thing than is meant: refused where it is a mistake, else told."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from dreambooth.commands.cli import main
from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.data.concept_notices import concept_notices, photo_findings
from dreambooth.errors import ConfigError
from dreambooth.records.workspace import RunFolder
from tests.harness.made_photos import made_photo


def copied(photos: Path, name: str) -> Path:
    """Return a folder with the same three photos, each a little different."""
    folder = photos.with_name(name)
    folder.mkdir()
    for photo in sorted(photos.iterdir()):
        with Image.open(photo) as image:
            image.rotate(90).save(folder / photo.name)
    return folder


def spelled(folder: Path, how: str) -> str:
    """Return the folder's path written in another way."""
    if how == "linked":
        folder.with_name("link").symlink_to(folder)
        return str(folder.with_name("link"))
    return {"same": str(folder), "relative": os.path.relpath(folder), "roundabout": f"{folder}/../{folder.name}/"}[how]


@pytest.mark.parametrize("how", ["same", "relative", "roundabout", "linked"])
def test_class_images_among_the_photos_are_refused(photos: Path, how: str) -> None:
    concept = Concept("photo of zwx dog", str(photos), "photo of dog", spelled(photos, how))
    with pytest.raises(ConfigError, match="class_data_dir.*also holds the photos of the subject"):
        TrainingConfig(concepts=(concept,), with_prior_preservation=True).checked()
    # Without class images nothing is made or read there.
    TrainingConfig(concepts=(concept,), with_prior_preservation=False).checked()


def test_class_images_among_the_photos_of_another_concept_are_refused(photos: Path) -> None:
    cups = copied(photos, "cups")
    concepts = (
        Concept("photo of zwx dog", str(photos), "photo of dog"),
        Concept("photo of qrs cup", str(cups), "photo of cup", str(photos)),
    )
    with pytest.raises(ConfigError, match="also holds the photos of the subject"):
        TrainingConfig(concepts=concepts, with_prior_preservation=True).checked()


@pytest.mark.parametrize("route", ["flags", "list", "file"])
def test_every_command_refuses_one_class_folder_for_two_classes_or_for_the_photos(
    photos: Path, tmp_path: Path, route: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cups, shared = copied(photos, "cups"), tmp_path / "class"
    concepts = [
        {"instance_prompt": "photo of zwx dog", "instance_data_dir": str(photos), "class_prompt": "photo of dog"},
        {"instance_prompt": "photo of qrs cup", "instance_data_dir": str(cups), "class_prompt": "photo of cup"},
    ]
    arguments = ["--with_prior_preservation", "--output_dir", str(tmp_path / "run")]
    if route == "flags":
        reason = "also holds the photos of the subject"
        words = {**concepts[0], "class_data_dir": str(photos)}
        arguments += [part for name, value in words.items() for part in (f"--{name}", value)]
    else:
        reason = 'is used for "photo of dog" and for "photo of cup"'
        concepts = [one | {"class_data_dir": str(shared)} for one in concepts]
        file = tmp_path / "given.json"
        file.write_text(json.dumps(concepts if route == "list" else {"concepts": concepts}))
        arguments += ["--concepts_list" if route == "list" else "--config", str(file)]
    for command in ("train", "preflight"):
        assert main([command, *arguments]) == 1
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert not shared.exists()


def test_one_class_folder_for_one_class_is_fine(photos: Path, tmp_path: Path) -> None:
    cats = copied(photos, "cats")
    concepts = tuple(
        Concept(prompt, str(folder), "photo of a pet", str(photos / "class"))
        for prompt, folder in (("photo of zwx pet", photos), ("photo of qrs pet", cats))
    )
    TrainingConfig(concepts=concepts, with_prior_preservation=True).checked()
    assert concept_notices(concepts) == []


def test_what_is_there_twice_is_told(photos: Path) -> None:
    others = copied(photos, "others")
    (others / "again.png").write_bytes((photos / "0.png").read_bytes())
    (photos / "twin.png").write_bytes((photos / "1.png").read_bytes())
    told = concept_notices(
        (
            Concept("photo of zwx dog", str(photos), "photo of dog"),
            Concept("Photo of  dog", str(others), "photo of dog"),
            Concept("photo of qrs dog", f"{photos}/../photos", "photo of dog"),
        )
    )
    assert told == [
        '"Photo of  dog" is both the instance prompt and the class prompt: the subject gets no name of its own. '
        "Add an identifier to the instance prompt.",
        f'Concepts 1 and 3 have the same photos: both read "{photos}/../photos".',
        'Some photos are duplicates and count twice: "twin.png in photos" is the same file as "1.png in photos"; '
        '"again.png in others" is the same file as "0.png in photos".',
    ]


def test_findings_name_the_photos(tmp_path: Path) -> None:
    made_photo(0).save(tmp_path / "good.png")
    made_photo(0).crop((24, 0, *made_photo(0).size)).save(tmp_path / "h-again.png")
    made_photo(1).resize((120, 90)).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_bytes(b"no photo")
    told = {line.partition(": ")[0]: line for line in photo_findings((Concept("x", str(tmp_path)),), 512)}
    assert 'nearly the same picture as "good.png"' in told["h-again.png"]
    assert "It is small" in told["small.png"]
    assert told.keys() == {"h-again.png", "small.png"}


def test_the_command_line_tells_before_it_trains(
    tiny_base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "mine"
    photos.mkdir()
    made_photo(0).resize((24, 18)).save(photos / "tiny.png")
    made_photo(1).save(photos / "good.png")
    made_photo(1).save(photos / "same.png")
    arguments = [
        "train", "--instance_data_dir", str(photos), "--instance_prompt", "photo of dog", "--class_prompt",
        "photo of dog", "--pretrained_model_name_or_path", str(tiny_base_folder), "--resolution", "32",
        "--max_train_steps", "1", "--output_dir", str(tmp_path / "run"), "--num_crop_variants", "1",
    ]  # fmt: skip
    assert main(arguments) == 0
    shown = capsys.readouterr()
    said = shown.out + shown.err
    for text in (
        "tiny.png: It is small: 18 pixels", 'It is nearly the same picture as "good.png"',
        "is both the instance prompt and the class prompt", '"same.png" is the same file as "good.png"',
    ):  # fmt: skip
        assert text in said
        assert said.index(text) < said.index("The model is in")
    log = RunFolder(tmp_path / "run").log_path.read_text("utf-8")
    assert "is both the instance prompt and the class prompt" in log
