"""Hostile files of weights, made by code: pickles that would run something, in every wrapping, and broken safetensors.

What a gadget would do is make a file, the canary; nothing else happens where one is let run.
"""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class WeightsFile:
    """One file: its name, its bytes, and a word that its refusal has to hold."""

    name: str
    content: bytes
    reason: str


class Calls:
    """An object whose pickle says: call this with these arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments

    def __call__(self) -> None:
        """Stand for what this is replaced by when unpickled, which may itself be called."""


def gadgets(canary: Path) -> dict[str, Any]:
    """Return fourteen ways to make the canary when unpickled, by the name that a refusal may tell."""
    import functools
    import importlib
    import operator
    import os
    import pty
    import runpy
    import subprocess
    import timeit
    import webbrowser

    import numpy
    import torch

    folder = canary.parent
    (folder / "script.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    (folder / "hubconf.py").write_text(f"def make():\n    open({str(canary)!r}, 'w').close()\n")
    with (folder / "inner.npy").open("wb") as file:
        numpy.save(file, numpy.array([Calls(os.system, f"touch {canary}")], dtype=object), allow_pickle=True)
    inner = pickle.dumps(Calls(os.system, f"touch {canary}"))
    code = f"open({str(canary)!r}, 'w').close()"
    return {
        "system": Calls(os.system, f"touch {canary}"),
        "subprocess": Calls(subprocess.check_call, ["touch", str(canary)]),
        "eval": Calls(eval, f"__import__('pathlib').Path({str(canary)!r}).touch()"),
        "exec": Calls(exec, code),
        "runpy": Calls(runpy.run_path, str(folder / "script.py")),
        "getattr": Calls(Calls(getattr, Calls(importlib.import_module, "os"), "system"), f"touch {canary}"),
        "pty": Calls(pty.spawn, ["touch", str(canary)]),
        "torch.hub": Calls(functools.partial(torch.hub.load, str(folder), "make", source="local")),
        "partial": Calls(functools.partial(os.system, f"touch {canary}")),
        "methodcaller": Calls(operator.methodcaller("touch"), canary),
        "numpy": Calls(functools.partial(numpy.load, str(folder / "inner.npy"), allow_pickle=True)),
        "loads": Calls(pickle.loads, inner),
        "timeit": Calls(timeit.timeit, code, "pass", timeit.default_timer, 1),
        "webbrowser": Calls(Calls(getattr, Calls(webbrowser.GenericBrowser, ["touch", "%s"]), "open"), str(canary)),
    }


def malicious(canary: Path) -> Iterator[WeightsFile]:
    """Yield every gadget in protocols 0 to 5, in torch's two formats, and under another name."""
    for name, gadget in gadgets(canary).items():
        for protocol in range(6):
            content = pickle.dumps({"state_dict": {}, "callbacks": gadget}, protocol=protocol)
            yield WeightsFile(f"{name}-{protocol}.ckpt", content, "would run")
        plain = pickle.dumps({"state_dict": gadget}, protocol=2)
        yield WeightsFile(f"{name}-zip.ckpt", torch_zip(plain), "would run")
        yield WeightsFile(f"{name}-old.ckpt", torch_legacy(plain), "would run")
        yield WeightsFile(f"{name}-named.safetensors", plain, "would run")
    yield from tricks(canary)


def tricks(canary: Path) -> Iterator[WeightsFile]:
    """Yield pickles written by hand, and files that are two things at once."""
    command = f"touch {canary}".encode()
    called = b"(V" + command + b"\ntR."
    quoted = b"\x8c" + bytes([len(command)]) + command
    yield WeightsFile("inst.ckpt", b"(S'" + command + b"'\nios\nsystem\n.", r"os\.system")
    yield WeightsFile("obj.ckpt", b"(cos\nsystem\nV" + command + b"\no.", r"os\.system")
    yield WeightsFile("newobj.ckpt", b"\x80\x02cos\nsystem\n(V" + command + b"\nt\x81.", r"os\.system")
    yield WeightsFile("stack-global.ckpt", b"\x80\x04\x8c\x02os\x8c\x06system\x93" + quoted + b"\x85R.", r"os\.system")
    memo = b"\x80\x04\x8c\x06system\x94\x8c\x02os\x94h\x01h\x00\x93" + quoted + b"\x85R."
    yield WeightsFile("memo.ckpt", memo, "would run|cannot be read")
    yield WeightsFile("dotted.ckpt", b"\x80\x04\x8c\x07pathlib\x8c\x09os.system\x93" + quoted + b"\x85R.", "would run")
    yield WeightsFile("broken-tail.ckpt", b"cos\nsystem\n" + called[:-1] + b"\xff\xff\xff", r"os\.system")
    yield WeightsFile("no-end.ckpt", b"cos\nsystem\n" + called[:-1], r"os\.system")
    yield WeightsFile("build.ckpt", b"cos\nsystem\n" + called[:-1] + b"}b.", r"os\.system")
    yield WeightsFile("extension.ckpt", b"\x80\x02\x82\x07.", "extension 7")
    yield WeightsFile("persistent.ckpt", b"\x80\x02(cos\nsystem\nV" + command + b"\ntQ.", "would run|cannot be read")
    harmless = pickle.dumps({"state_dict": {}}, protocol=2)
    yield WeightsFile(
        "second.ckpt", harmless + b"cos\nsystem\n" + called, "would run|cannot be read|not a complete model"
    )
    payload = b"cos\nsystem\n" + called
    yield WeightsFile("tar.ckpt", as_tar({"sys_info": payload, "pickle": payload, "storages": payload}), "")
    yield WeightsFile("polyglot.safetensors", safetensors({}) + torch_zip(payload), r"os\.system")
    yield WeightsFile("polyglot.ckpt", safetensors({}) + torch_zip(payload), "would run|cannot be read")
    yield WeightsFile("zip-and-pickle.ckpt", payload + torch_zip(harmless), "would run|cannot be read|not a complete")
    yield WeightsFile("script.ckpt", torch_zip(payload, constants=payload), "would run")
    yield WeightsFile(
        "compressed.ckpt", torch_zip(harmless, data=bytes(10**7), method=zipfile.ZIP_DEFLATED), "compressed"
    )


def torch_zip(content: bytes, *, data: bytes = b"", constants: bytes = b"", method: int = zipfile.ZIP_STORED) -> bytes:
    """Return torch's format of today around this pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
        if data:
            archive.writestr("archive/data/0", data)
        if constants:
            archive.writestr("archive/constants.pkl", constants)
    return buffer.getvalue()


def torch_legacy(content: bytes) -> bytes:
    """Return torch's format before 1.6 around this pickle: magic number, version and machine come first."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
    return b"".join(parts) + content + pickle.dumps([], protocol=2)


def as_tar(files: dict[str, bytes]) -> bytes:
    """Return torch's oldest format, a tar of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


# safetensors ---------------------------------------------------------------------------------------------------------


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """Return a safetensors file of this header, whose length may be a lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start: int, end: int, shape: list[Any], kind: str = "F32") -> dict[str, Any]:
    """Return a header's entry of one tensor."""
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


def broken_safetensors() -> Iterator[WeightsFile]:
    """Yield headers that lie about lengths, places, shapes and kinds."""
    for name, content in {
        "empty": b"", "short": b"\x08\0\0", "length-2-63": safetensors({}, length=2**63),
        "length-max": safetensors({}, length=2**64 - 1), "length-100-mb": safetensors({}, length=10**8 + 1),
        "length-short": safetensors({"a": tensor(0, 4, [1])}, bytes(4), length=5), "no-json": safetensors(b"{not json"),
        "list": safetensors([1, 2]), "null": safetensors(None), "deep": safetensors(b"[" * 50_000),
        "overlap": safetensors({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, bytes(12)),
        "hole": safetensors({"a": tensor(0, 4, [1]), "b": tensor(8, 12, [1])}, bytes(12)),
        "behind-the-end": safetensors({"a": tensor(0, 400, [100])}, bytes(40)),
        "backwards": safetensors({"a": tensor(8, 4, [1])}, bytes(8)),
        "negative": safetensors({"a": tensor(-4, 0, [1])}, bytes(4)),
        "negative-shape": safetensors({"a": tensor(0, 4, [-1])}, bytes(4)),
        "too-large": safetensors({"a": tensor(0, 4, [2**62, 2**62])}, bytes(4)),
        "other-size": safetensors({"a": tensor(0, 4, [2])}, bytes(4)),
        "unknown-kind": safetensors({"a": tensor(0, 4, [1], "X99")}, bytes(4)),
        "text-shape": safetensors({"a": tensor(0, 4, ["1"])}, bytes(4)),
        "trailing": safetensors({"a": tensor(0, 4, [1])}, bytes(4) + b"PK\x03\x04more"),
        "not-utf8": safetensors(b'{"\xff": 1}'),
    }.items():  # fmt: skip
        yield WeightsFile(f"{name}.safetensors", content, "cannot be read")
