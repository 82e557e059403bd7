"""Zips from anywhere: unpacked whole under names of ours, or refused with a reason and nothing left behind."""

import json
import re
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.data.archives import MAX_UNPACKED_BYTES, unpack_photos, unpacked_folder
from dreambooth.data.dataset import load_concept
from dreambooth.data.focus import Focus
from dreambooth.data.photo_records import read_records
from dreambooth.durable import write_json
from dreambooth.errors import PhotoError
from dreambooth.records.workspace import RunFolder
from tests.harness.corpus_archives import archives, photo, tree, zipped
from tests.harness.corpus_photos import encoded, exif_with_gps, turned
from tests.harness.letters import is_upright_letter

# Odd names that are harmless, since no name of an archive's becomes a path.
HARMLESS = {"name '~/out.jpg'", "name '%2e%2e/out.jpg'"}


def test_hostile_archives_are_refused_with_a_reason_and_leave_nothing(tmp_path: Path) -> None:
    """S3: N = 67: 0 bytes outside, 0 over quota, a reason for each; two odd names are unpacked under ours."""
    cases = list(archives())
    assert len(cases) == len({case.name for case in cases}) == 67
    wrong = []
    for number, case in enumerate(cases):
        room = tmp_path / str(number) / "data" / "deep"
        room.mkdir(parents=True)
        archive = room / "photos.zip"
        archive.write_bytes(case.content)
        before = tree(tmp_path)
        try:
            unpack_photos(archive, room / "set")
        except PhotoError as error:
            if not (error.what and error.why and error.todo and str(error).isprintable()):
                wrong.append(f"{case.name}: no reason: {error}")
            if not re.search(case.reason, str(error)):
                wrong.append(f"{case.name}: {error}")
            if tree(tmp_path) != before:
                wrong.append(f"{case.name}: left {tree(tmp_path).keys() - before.keys()}")
            if case.name in HARMLESS:
                wrong.append(f"{case.name}: refused: {error}")
            continue
        new = tree(tmp_path).keys() - before.keys() - {f"{number}/data/deep/set/photos.json"}
        if case.name not in HARMLESS or not all(name.startswith(f"{number}/data/deep/set/001-") for name in new):
            wrong.append(f"{case.name}: was unpacked to {new}")
    assert not wrong, "\n".join(wrong)


def test_never_more_is_written_than_one_photo_s_limit_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3: written bytes stay within limit + 1 MiB, whatever the entries add up to."""
    limit = 200_000
    monkeypatch.setattr("dreambooth.data.archives.MAX_UNPACKED_BYTES", limit)
    monkeypatch.setattr("dreambooth.data.archives.MAX_PHOTO_BYTES", limit)
    pictures = [(f"{n}.png", encoded(Image.effect_noise((120, 120), 90 + n).convert("RGB"), "PNG")) for n in range(12)]
    (tmp_path / "many.zip").write_bytes(zipped(*pictures))
    highest = 0

    def watched(source: Path, folder: Path) -> Path:
        nonlocal highest
        highest = max(highest, sum(tree(tmp_path).values()))
        return plain_ingest(source, folder)

    from dreambooth.data import archives as module

    plain_ingest = module.ingest
    monkeypatch.setattr(module, "ingest", watched)
    with pytest.raises(PhotoError, match="GiB"):
        unpack_photos(tmp_path / "many.zip", tmp_path / "set")
    assert highest <= (tmp_path / "many.zip").stat().st_size + limit + 1024**2
    assert not (tmp_path / "set").exists()
    assert MAX_UNPACKED_BYTES == 1024**3


def test_a_zip_of_photos_becomes_a_folder_of_upright_ones_with_their_captions(tmp_path: Path) -> None:
    """S2, S3: what phones and file managers put into zips is unpacked; photos lose their metadata on the way."""
    content = zipped(
        ("my photos/", b""), ("my photos/10.jpg", encoded(turned(6), "JPEG", exif=exif_with_gps(6), quality=95)),
        ("my photos/9.png", photo(3)), ("my photos/10.txt", "a letter\nF".encode("utf-8-sig")),
        ("my photos/broken.jpg", b"no photo"), ("my photos/.DS_Store", b"x"), ("__MACOSX/my photos/._9.png", b"x"),
        ("my photos/movie.mov", b"x"), ("my photos/Bildschirmfoto 9.41.00\u202fAM.jpg", photo(4)),
    )  # fmt: skip
    (tmp_path / "my photos.zip").write_bytes(content)

    found = unpack_photos(tmp_path / "my photos.zip", tmp_path / "set")

    assert [path.name[:4] for path in found.photos] == ["001-", "002-", "003-"]
    assert {path.name: reason.split()[0] for path, reason in found.skipped} == {
        "broken.jpg": "is", "movie.mov": "is"
    }  # fmt: skip
    assert [one["name"] for one in read_records(tmp_path / "set").values()] == [
        "9.png", "10.jpg", "Bildschirmfoto 9.41.00\u202fAM.jpg"
    ]  # fmt: skip
    assert is_upright_letter(Image.open(found.photos[1]))
    assert not any(b"CANARY" in path.read_bytes() for path in found.photos)
    concept = Concept("photo of zwx letter", str(tmp_path / "set"))
    loaded = load_concept(concept, read_prompts_from_txts=True, num_class_images=0, report=lambda text: None)
    assert [photo.caption for photo in loaded.instance] == ["photo of zwx letter", "a letter F", "photo of zwx letter"]


def test_the_same_archive_is_unpacked_once(tmp_path: Path) -> None:
    """S3: a resumed run and a second start find the photos where the first one put them."""
    (tmp_path / "a.zip").write_bytes(zipped(("1.jpg", photo(1)), ("2.jpg", photo(2))))
    first = unpacked_folder(tmp_path / "a.zip", tmp_path / "datasets")
    again = unpacked_folder(tmp_path / "a.zip", tmp_path / "datasets")
    assert first.photos == again.photos
    assert len(first.photos) == 2
    assert [folder.name for folder in (tmp_path / "datasets").iterdir()] == [first.photos[0].parent.name]
    with pytest.raises(PhotoError, match="No such file"):
        unpacked_folder(tmp_path / "gone.zip", tmp_path / "datasets")


def test_the_command_line_takes_a_zip_for_a_folder(tmp_path: Path, own_home: Path) -> None:
    """S3: `--instance_data_dir some.zip` unpacks it under the data folder."""
    from dreambooth.commands.cli import build_parser
    from dreambooth.commands.train import training_config

    (tmp_path / "dog.zip").write_bytes(zipped(("1.jpg", photo(1)), ("2.jpg", photo(2))))
    flags = ["train", "--instance_data_dir", str(tmp_path / "dog.zip"), "--instance_prompt", "photo of zwx dog"]
    arguments = vars(build_parser().parse_args([*flags, "--pretrained_model_name_or_path", "starter"]))
    arguments.pop("run_command")
    arguments.pop("resume_from_checkpoint")
    folder = Path(training_config(arguments).concepts[0].instance_data_dir)
    assert folder.parent == own_home / "datasets"
    assert len(list(folder.glob("*.jpg"))) == 2


@pytest.mark.parametrize("ending", ["", "-2"])
def test_the_same_zip_resumes_a_run_that_an_earlier_version_began(
    tmp_path: Path, own_home: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    """Those versions unpacked it into folders without the number of the reader of photos, or with an earlier one."""
    from dreambooth.commands.cli import main

    (tmp_path / "dog.zip").write_bytes(zipped(("1.jpg", photo(1)), ("2.jpg", photo(2))))
    now = unpacked_folder(tmp_path / "dog.zip", own_home / "datasets").photos[0].parent
    earlier = now.rename(now.with_name(now.name.removesuffix("-3") + ending))
    assert earlier != now
    run = RunFolder(tmp_path / "run")
    write_json(run.config_path, TrainingConfig(concepts=(Concept("photo of zwx dog", str(earlier)),)).to_json())
    write_json(run.state_path, {"status": "done"})
    flags = ["--instance_data_dir", str(tmp_path / "dog.zip"), "--instance_prompt", "photo of zwx dog"]
    command = ["train", "--output_dir", str(run.path), "--resume_from_checkpoint", "latest"]
    assert main([*command, *flags]) == 1
    told = capsys.readouterr().err
    assert "concepts" not in told
    assert "is complete" in told  # the photos are those of the run: there is only nothing left to train


def test_a_directory_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    """S3: the number of entries is bounded before Python lists them."""
    archive = tmp_path / "many.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for number in range(30_000):
            opened.writestr(f"{number}", b"")
    with pytest.raises(PhotoError, match="directory is larger than 500 entries"):
        unpack_photos(archive, tmp_path / "set")


# One bad file costs no other -----------------------------------------------------------------------------------------


def wide_png() -> bytes:
    """Return a PNG of 66,000 x 700 pixels: within the limits of bytes and pixels, but longer than any JPEG can be."""
    return encoded(Image.new("RGB", (66_000, 700), "navy"), "PNG")


def test_one_bad_file_of_a_zip_costs_no_other(tmp_path: Path) -> None:
    content = zipped(("1.jpg", photo(1)), ("2.png", wide_png()), ("3.jpg", photo(3)), ("4.jpg", photo(4)), method=0)
    flipped = content.replace(photo(1)[200:300], bytes(100), 1)  # the checksum in the archive is another then
    (tmp_path / "a.zip").write_bytes(flipped)
    found = unpack_photos(tmp_path / "a.zip", tmp_path / "set")
    assert [path.name[:3] for path in found.photos] == ["003", "004"]
    assert [path.name for path, _ in found.skipped] == ["1.jpg", "2.png"]
    assert "damaged in the archive" in found.skipped[0][1]
    assert found.skipped[1][1] == "is too long. It has 66000 x 700 pixels; a side has at most 65500"


@pytest.mark.parametrize(
    "content", ["photo of café".encode("cp1252"), b" ".join(b"%d" % n for n in range(700)), b"a\0b"]
)
def test_a_caption_of_a_zip_that_cannot_be_used_is_named_and_never_trained(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(("1.jpg", photo(1)), ("2.jpg", photo(2)), ("2.txt", content)))
    found = unpack_photos(tmp_path / "a.zip", tmp_path / "set")
    assert len(found.photos) == 2
    ((path, reason),) = found.skipped
    assert path.name == "2.txt"
    assert "0xE9" in reason or "too long" in reason or "NUL" in reason
    concept = Concept("photo of zwx letter", str(tmp_path / "set"))
    with pytest.raises(PhotoError, match=r"002-.*\.txt"):
        load_concept(concept, read_prompts_from_txts=True, num_class_images=0, report=lambda text: None)
    plain = load_concept(concept, read_prompts_from_txts=False, num_class_images=0, report=lambda text: None)
    assert [one.caption for one in plain.instance] == ["photo of zwx letter"] * 2


def test_captions_and_squares_of_a_zip_are_found_whatever_system_named_them(tmp_path: Path) -> None:
    nfd, nfc = unicodedata.normalize("NFD", "é.jpg"), unicodedata.normalize("NFC", "é.jpg")
    squares = {nfc: {"x": 0.5, "y": 0.5, "zoom": 2}, "gone.jpg": {"x": 0.5, "y": 0.5, "zoom": 3}}
    content = zipped(
        (f"mine/{nfd}", photo(1)), ("mine/3.jpg", photo(2)), ("mine/3.TXT", "asleep".encode("utf-16")),
        ("mine/focus.json", json.dumps(squares).encode("utf-8-sig")), ("__MACOSX/mine/._focus.json", b"x"),
    )  # fmt: skip
    (tmp_path / "a.zip").write_bytes(content)
    found = unpack_photos(tmp_path / "a.zip", tmp_path / "set")
    assert found.skipped == []
    told: list[str] = []
    concept = Concept("photo of zwx letter", str(tmp_path / "set"))
    loaded = load_concept(concept, read_prompts_from_txts=True, num_class_images=0, report=told.append)
    assert {one.caption: one.focus for one in loaded.instance} == {
        "asleep": None, "photo of zwx letter": Focus(0.5, 0.5, 2.0)
    }  # fmt: skip
    assert [one for one in told if '"gone.jpg"' in one and "do not exist" in one], told


def test_squares_of_a_zip_that_cannot_be_read_are_named_and_refused_by_training(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(("1.jpg", photo(1)), ("focus.json", b'{"1.jpg": 3}')))
    found = unpack_photos(tmp_path / "a.zip", tmp_path / "set")
    assert [(path.name, reason) for path, reason in found.skipped] == [
        ("focus.json", "cannot be read. each photo needs x, y and zoom")
    ]
    with pytest.raises(PhotoError, match=r"focus\.json cannot be read"):
        load_concept(
            Concept("x", str(tmp_path / "set")), read_prompts_from_txts=False, num_class_images=0, report=print
        )


def test_a_caption_of_a_zip_that_cannot_be_read_is_refused_by_the_name_of_its_photo(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(("1.jpg", photo(1)), ("1.txt", "café".encode("cp1252"))))
    unpack_photos(tmp_path / "a.zip", tmp_path / "set")
    concept = Concept("x", str(tmp_path / "set"))
    with pytest.raises(PhotoError, match='The caption of "1.jpg" cannot be used: .* Line 1 has the byte 0xE9'):
        load_concept(concept, read_prompts_from_txts=True, num_class_images=0, report=print)


def test_the_command_line_names_what_it_leaves_out_of_a_zip(tmp_path: Path) -> None:
    content = zipped(("1.jpg", photo(1)), ("2.png", wide_png()), ("1.txt", "café".encode("cp1252")), method=0)
    (tmp_path / "dog.zip").write_bytes(content)
    command = [sys.executable, "-m", "dreambooth", "preflight", "--instance_data_dir", str(tmp_path / "dog.zip")]
    command += ["--instance_prompt", "photo of zwx dog", "--resolution", "65"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert '"2.png" in "dog.zip" is too long.' in answer.stderr
    assert '"1.txt" in "dog.zip" cannot be read. Line 1 has the byte 0xE9' in answer.stderr
    assert "Traceback" not in answer.stderr
