"""Photos from anywhere: every file gets a verdict with a reason, and what is stored says nothing of where it was taken.

The files are those of tests/harness/corpus_photos.py, made by code from fixed seeds; the corpus goes through `ingest`,
the one door by which photos come in.
"""

import collections
import os
import resource
import time
from pathlib import Path

import pytest
from PIL import Image

from dreambooth.config.concepts import Concept
from dreambooth.data.dataset import load_concept
from dreambooth.data.photos import ingest, read_photo
from dreambooth.errors import PhotoError
from dreambooth.events import Notice, read_events
from dreambooth.records.runlog import RunLog
from dreambooth.records.workspace import RunFolder
from tests.harness.corpus_photos import Case, corpus, encoded, exif_with_gps, oriented, textured, turned
from tests.harness.letters import is_upright_letter

METADATA_MARKS = (b"CANARY", b"Exif", b"eXIf", b"EXIF", b"http://ns.adobe.com/xap", b"iCCP", b"ICC_PROFILE")
LARGE = [("JPEG", "jpg"), ("PNG", "png"), pytest.param("HEIF", "heic", marks=pytest.mark.reliability)]
MAX_SECONDS = 2.0
MAX_GROWTH_BYTES = 400 * 1024**2


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    pytest.importorskip("pillow_heif")
    return list(corpus())


def taken_in(case: Case, folder: Path) -> Path | PhotoError:
    """Put the file on disk under its own name and ingest it; returns the stored copy or the refusal."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / case.name
    source.write_bytes(case.content)
    try:
        return ingest(source, folder.parent / f"{folder.name}-stored")
    except PhotoError as error:
        return error
    finally:
        source.unlink()


def test_every_file_of_the_corpus_gets_a_verdict_with_a_reason(cases: list[Case], tmp_path: Path) -> None:
    """S1: N = 600 and 48 HEIC: no crash, a verdict with a reason for each, <= 2 s and <= 400 MB over idle."""
    assert collections.Counter(case.family for case in cases) == {
        "truncated": 180, "flipped": 180, "orientation": 24, "colour": 30, "bomb": 16, "content": 60, "size": 40,
        "name": 40, "duplicate": 20, "good": 10, "heic": 48,
    }  # fmt: skip
    taken_in(cases[-1], tmp_path / "first")  # libraries loaded, so that idle is idle
    idle_bytes, wrong = reset_peak(), []
    for case in cases:
        began_s = time.process_time()
        result = taken_in(case, tmp_path / case.family)
        if (seconds := time.process_time() - began_s) > MAX_SECONDS:
            wrong.append(f"{case.name}: {seconds:.1f} s")
        if problem := problem_with(case, result):
            wrong.append(f"{case.family} {case.name!r}: {problem}")
    assert not wrong, "\n".join(wrong)
    if idle_bytes is not None:
        assert peak_bytes() - idle_bytes <= MAX_GROWTH_BYTES


def problem_with(case: Case, result: Path | PhotoError) -> str:
    """Return what is wrong with this verdict, or nothing."""
    if isinstance(result, PhotoError):
        if case.verdict == "read":
            return f"refused: {result}"
        if not (result.what and result.why and result.todo):
            return f"no reason: {result}"
        text = str(result)
        if "Traceback" in text or not text.isprintable() or len(text) > 700:
            return f"no sentence for people: {text[:200]!r}"
        return ""
    if case.verdict == "refused":
        return "was read"
    with Image.open(result) as stored:
        stored.load()
        if (
            stored.mode != "RGB"
            or dict(stored.getexif())
            or stored.info.keys() & {"exif", "icc_profile", "xmp", "Comment"}
        ):
            return f"stored as {stored.mode} with {sorted(stored.info)}"
    content = result.read_bytes()
    if left := [mark for mark in METADATA_MARKS if mark in content]:
        return f"left {left}"
    if not result.name.isascii() or set(result.name) & set("<>&\"'/\\% \n") or result.name.startswith((".", "-")):
        return f"stored under {result.name!r}"
    return ""


def reset_peak() -> int | None:
    """Forget the process's highest memory so far (Linux), and return what it holds now in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """Return the process's highest memory since `reset_peak`, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_photos_are_stored_upright_and_without_exif_or_gps(tmp_path: Path) -> None:
    """S2: orientations 1 to 8 x JPEG, PNG, WebP, the letter F: 24 of 24 upright, no byte of EXIF or GPS stored."""
    upright = 0
    for case in oriented():
        assert b"CANARY" in case.content
        stored = taken_in(case, tmp_path / case.name)
        assert isinstance(stored, Path), stored
        assert is_upright_letter(read_photo(stored).image), case.name
        assert not [mark for mark in METADATA_MARKS if mark in stored.read_bytes()], case.name
        upright += 1
    assert upright == 24


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_photos_are_stored_upright_and_without_gps(tmp_path: Path, orientation: int) -> None:
    """S2, phones: the same of HEIC, whose decoder may have turned the picture already."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    content = encoded(turned(orientation), "HEIF", exif=exif_with_gps(orientation), quality=95)
    stored = taken_in(Case("heic", "phone.heic", content, "read"), tmp_path / "set")
    assert isinstance(stored, Path), stored
    assert is_upright_letter(read_photo(stored).image)
    assert not [mark for mark in METADATA_MARKS if mark in stored.read_bytes()]


@pytest.mark.parametrize(("kind", "suffix"), LARGE)
def test_the_largest_photo_allowed_is_read_within_the_memory_promised(tmp_path: Path, kind: str, suffix: str) -> None:
    """S1: 49 megapixels, a phone's most, cost no more than 400 MB over idle."""
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    path = tmp_path / f"large.{suffix}"
    Image.new("RGB", (7000, 7000), (90, 120, 30)).save(path, kind)
    idle_bytes = reset_peak()
    began_s = time.process_time()
    assert read_photo(path).image.size == (7000, 7000)
    growth_mb = (peak_bytes() - (idle_bytes or 0)) / 1024**2
    print(f"{kind}: {time.process_time() - began_s:.1f} s, {growth_mb:.0f} MB over idle")
    if idle_bytes is None:
        pytest.skip("the highest memory is only told on Linux")
    assert peak_bytes() - idle_bytes <= MAX_GROWTH_BYTES + 16 * 1024**2


def test_a_message_names_a_hostile_file_in_printable_words(tmp_path: Path) -> None:
    """S1: line breaks, terminal codes and undecodable bytes in a name do not reach the log."""
    for name in (b"a\nb.jpg", b"a\x1b[31mb.jpg", b"\xff\xfe.jpg", "\u202egpj.jpg".encode()):
        path = tmp_path / os.fsdecode(name)
        path.write_bytes(b"no photo")
        with pytest.raises(PhotoError) as told:
            read_photo(path)
        assert str(told.value).isprintable()
        str(told.value).encode("utf-8")


def test_a_photo_of_thirty_one_megabytes_is_refused_by_its_limit(tmp_path: Path) -> None:
    """S12: 31 MB: one message naming the limit, nothing stored."""
    path = tmp_path / "large.jpg"
    path.write_bytes(encoded(textured(), "JPEG"))
    with path.open("r+b") as file:
        file.truncate(31 * 1024**2)
    with pytest.raises(PhotoError, match="at most 30 MB"):
        ingest(path, tmp_path / "stored")
    assert not (tmp_path / "stored").exists()


@pytest.mark.parametrize("content", [b"x " * 50_000, b"\xff\xfe\x00", b"a" * 2001])
def test_a_caption_that_cannot_be_one_is_refused(tmp_path: Path, content: bytes) -> None:
    """S12: a caption has a prompt's limit, and a file of any size is read no further."""
    (tmp_path / "photos").mkdir()
    textured().save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "a.txt").write_bytes(content)
    concept = Concept("photo of zwx dog", str(tmp_path / "photos"))
    with pytest.raises(PhotoError, match="too long|Save it as UTF-8"):
        load_concept(concept, read_prompts_from_txts=True, num_class_images=0, report=lambda text: None)


def test_a_folder_of_odd_names_is_loaded_and_logged(tmp_path: Path) -> None:
    """S1, S10: names that no encoding knows are told in the log of the run, and the photos are used."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in (b"\xff\xfe.jpg", b"a\nb.jpg", b"$(touch canary).jpg"):
        (folder / os.fsdecode(name)).write_bytes(encoded(turned(6), "JPEG", exif=exif_with_gps(6)))
    (folder / os.fsdecode(b"\x80.mov")).touch()
    log = RunLog(RunFolder(tmp_path / "run"), 1)
    loaded = load_concept(
        Concept("photo of zwx dog", str(folder)), read_prompts_from_txts=False, num_class_images=0,
        report=lambda text: log(Notice(text, "warning")),
    )  # fmt: skip
    log(Notice(f"undecodable all the same: {os.fsdecode(bytes([0xFF]))}"))
    assert len(loaded.instance) == 3
    assert len((tmp_path / "run" / ".run" / "log.txt").read_text("utf-8").splitlines()) == 5
    assert len(read_events(tmp_path / "run" / ".run" / "events.jsonl")) == 5
