"""Sixty-seven hostile or broken zip files, made by code: slip, links, duplicates, bombs, lies, damage, passwords."""

import io
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.harness.corpus_photos import encoded, textured, with_flips

GIB = 1024**3


@dataclass(frozen=True)
class Archive:
    """One zip file, and a word that the reason for its refusal has to hold."""

    name: str
    content: bytes
    reason: str


def photo(seed: int = 1) -> bytes:
    """Return a small good photo."""
    return encoded(textured(48, 32, seed), "JPEG")


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip of these entries, names unchecked."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def special(name: str, mode: int) -> zipfile.ZipInfo:
    """Return an entry of another kind than a file, such as a link, as Unix writes it."""
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info


def renamed(content: bytes, old: str, new: str) -> bytes:
    """Return the zip with a name of the same length in place of another, in both places where it stands."""
    assert len(old) == len(new)
    return content.replace(old.encode(), new.encode())


def archives() -> Iterator[Archive]:
    """Yield the sixty-seven."""
    yield from hostile_names()
    yield from special_kinds()
    yield from twice()
    yield from too_much()
    yield from lies()
    yield from damaged()


def hostile_names() -> Iterator[Archive]:
    """Yield names that lead out, are absolute, belong to another system, or are none."""
    for name, reason in (
        ("../out.jpg", "leads out"), ("../../../../tmp/out.jpg", "leads out"), ("a/../../out.jpg", "leads out"),
        ("a/..", "leads out"), ("..", "leads out"), ("/etc/out.jpg", "absolute"), ("//server/out.jpg", "absolute"),
        ("C:/out.jpg", "absolute"), ("c:out.jpg", "absolute"), ("photo.jpg:stream", "is not a photo|holds no photos"),
        ("x" * 300 + ".jpg", "255 bytes"), ("\u732b" * 90 + ".jpg", "255 bytes"), ("a\x1b[31m.jpg", "control"),
        ("a\nb.jpg", "control"), ("~/out.jpg", ""), ("%2e%2e/out.jpg", ""),
    ):  # fmt: skip
        yield Archive(f"name {name[:20]!r}", zipped((name, photo())), reason)
    yield Archive(
        "backslash", renamed(zipped(("..!..!out.jpg", photo())), "..!..!out.jpg", "..\\..\\out.jpg"), "backslash"
    )
    yield Archive("nul", renamed(zipped(("out.jpg!.txt", photo())), "out.jpg!.txt", "out.jpg\0.txt"), "control|differ")
    yield Archive(
        "one bad of many", zipped(*((f"{n}.jpg", photo(n)) for n in range(5)), ("../x.jpg", b"")), "leads out"
    )


def special_kinds() -> Iterator[Archive]:
    """Yield links, devices, pipes and folders with a content."""
    for name, mode in (
        ("link", 0o120777),
        ("device", 0o060666),
        ("tty", 0o020666),
        ("pipe", 0o010666),
        ("sock", 0o140777),
    ):
        yield Archive(name, zipped((special("a.jpg", mode), b"/etc/passwd")), "link or a device")
    both = zipped((special("photos", 0o120777), b"/tmp"), ("photos/out.jpg", photo()))
    yield Archive("link, then through it", both, "link or a device")
    yield Archive("full folder", zipped((special("photos/", 0o040755), b"much" * 9)), "folder with a content")


def twice() -> Iterator[Archive]:
    """Yield names that are the same on some system."""
    for one, other in (
        ("a.jpg", "b.jpg"), ("a.jpg", "A.JPG"), ("stra\u00dfe.jpg", "STRASSE.jpg"), ("\u00e9.jpg", "e\u0301.jpg"),
        ("\ufb01.jpg", "fi.jpg"),
    ):  # fmt: skip
        content = zipped((one, photo(1)), (other, photo(2)))
        if other == "b.jpg":
            content = renamed(content, "b.jpg", "a.jpg")
        yield Archive(f"twice {other}", content, "in it twice")
    yield Archive("folder and file", zipped(("a.jpg/", b""), ("a.jpg", photo())), "in it twice")


def too_much() -> Iterator[Archive]:
    """Yield bombs: by ratio, by number, by size, nested, overlapping."""
    zeros = bytes(4 * 1024**2)
    yield Archive("ratio", zipped(("a.jpg", zeros)), "100 times")
    yield Archive("ratio of a caption", zipped(("a.jpg", photo()), ("a.txt", zeros)), "100 times")
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield Archive(f"ratio {method}", zipped(("a.jpg", zeros), method=method), "100 times")
    yield Archive("501 files", zipped(*((f"{n}.jpg", b"x") for n in range(501))), "501 entries")
    yield Archive("20,000 files", zipped(*((f"{n:05d}" + "x" * 60, b"") for n in range(20_000))), "directory|entries")
    yield Archive("2 GiB", with_sizes(zipped(("a.jpg", photo()), ("b.jpg", photo(2))), GIB, GIB // 90), "2.0 GiB")
    for suffix in ("zip", "tar.gz", "7z", "rar", "ZIP"):
        yield Archive(
            f"nested {suffix}", zipped((f"more.{suffix}", zipped(("a.jpg", photo())))), "archive in the archive"
        )
    yield Archive("overlapping", overlapping(), "overlap")
    yield Archive("31 MB", zipped(("a.jpg", random.Random(3).randbytes(31 * 1024**2)), method=0), "cannot be read")


def with_sizes(content: bytes, size: int, packed: int) -> bytes:
    """Return the zip whose directory declares these sizes for every entry."""
    changed = bytearray(content)
    start = 0
    while (start := changed.find(b"PK\x01\x02", start)) >= 0:
        changed[start + 20 : start + 28] = struct.pack("<II", packed, size)
        start += 4
    return bytes(changed)


def overlapping() -> bytes:
    """Return a zip whose second directory entry points at the first one's bytes, as bombs without nesting do."""
    content = bytearray(zipped(("a.jpg", photo(1)), ("b.jpg", photo(2))))
    second = content.rfind(b"PK\x01\x02")
    content[second + 42 : second + 46] = struct.pack("<I", 3)
    return bytes(content)


def lies() -> Iterator[Archive]:
    """Yield directories that say something else than is there, methods nobody has, passwords."""
    good = zipped(("a.jpg", photo()))
    central = good.rfind(b"PK\x01\x02")

    def changed(offset: int, value: bytes, *, local: int | None = None) -> bytes:
        content = bytearray(good)
        content[central + offset : central + offset + len(value)] = value
        if local is not None:
            content[local : local + len(value)] = value
        return bytes(content)

    yield Archive("declares less", changed(24, struct.pack("<I", 100)), "")
    yield Archive("declares nothing", changed(24, struct.pack("<I", 0)), "")
    yield Archive("packed to less", changed(20, struct.pack("<I", 50)), "")
    yield Archive("packed to 4 GiB", changed(20, struct.pack("<I", 2**32 - 2)), "")
    yield Archive("declares 4 GiB", changed(24, struct.pack("<I", 2**32 - 2)), "100 times")
    yield Archive("other checksum", changed(16, b"\1\2\3\4"), "")
    yield Archive("other name inside", changed(46, b"b.jpg"), "")
    yield Archive("encrypted", changed(8, b"\1\0", local=6), "encrypted")
    yield Archive("strongly encrypted", changed(8, b"\x41\0", local=6), "encrypted")
    yield Archive("unknown method", changed(10, b"\x63\0", local=8), "")
    yield Archive("header elsewhere", changed(42, struct.pack("<I", 10**6)), "")
    yield Archive("header at its directory", changed(42, struct.pack("<I", central)), "")


def damaged() -> Iterator[Archive]:
    """Yield files that are cut, flipped, empty or something else."""
    good = zipped(*((f"{n}.jpg", photo(n)) for n in range(2)))
    whole: dict[str, Callable[[], bytes]] = {
        "empty": lambda: b"",
        "no entries": lambda: zipped(),
        "text": lambda: b"not a zip\n" * 99,
        "a photo": photo,
        "cut": lambda: good[: len(good) // 2],
        "without its end": lambda: good[:-30],
        "no photos": lambda: zipped(("notes.pdf", b"%PDF-1.7")),
        "no readable photo": lambda: zipped(("a.jpg", b"not a photo")),
    }
    yield from (Archive(name, make(), "") for name, make in whole.items())
    alone = zipped(("0.jpg", photo(0)))
    yield Archive("flipped", with_flips(alone[:600], random.Random(5), 60) + alone[600:], "damaged")


def tree(folder: Path) -> dict[str, int]:
    """Return every file below the folder with its size."""
    return {str(path.relative_to(folder)): path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()}
