"""The house's rules, read from the code itself: what may import what, and what is done in one place only."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import dreambooth

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "bitsandbytes", "xformers")

# From the ground up. A folder, or a module beside the folders, may import from itself and from the layers below its
# own, never sideways or up.
LAYERS: list[str] = [
    "errors hints rng durable device",
    "events entry_point formats",
    "config",
    "environment records",
    "models",
    "forecast export pictures",
    "data",
    "scoring",
    "training",
    "runs starter",
    "__init__ commands ui",
    "__main__ app",
]
LAYER_OF = {room: number for number, layer in enumerate(LAYERS) for room in layer.split()}


def sources() -> list[Path]:
    """Return the project's code, tests aside."""
    return [*sorted(ROOT.glob("dreambooth/**/*.py")), *sorted(ROOT.glob("ui/**/*.py")), *ROOT.glob("app.py")]


def module_name(path: Path) -> str:
    """Return the dotted name that this file is imported by; the engine's own front is `dreambooth.__init__`."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] == "__init__" and parts != ["dreambooth", "__init__"]:
        parts.pop()
    return ".".join(parts)


def room_of(module: str) -> str:
    """Return the room of a module: the second part of `dreambooth.training.trainer`, `ui`, or `app`."""
    parts = module.split(".")
    return parts[1] if parts[0] == "dreambooth" else parts[0]


@cache
def tree_of(path: Path) -> ast.Module:
    """Return the file's syntax tree."""
    return ast.parse(path.read_text("utf-8"), str(path))


@cache
def modules() -> frozenset[str]:
    """Return the names of all modules of the project."""
    return frozenset(map(module_name, sources()))


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and module of every import, those inside functions and under TYPE_CHECKING included."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                whole = "dreambooth.__init__" if node.module == "dreambooth" else str(node.module)
                yield node.lineno, name if name in modules() else whole


def where(path: Path, node: ast.AST) -> str:
    """Return the place of a node as an editor takes it."""
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def test_every_folder_has_its_place_and_every_place_its_folder() -> None:
    assert set(LAYER_OF) == {room_of(module) for module in modules()}
    assert len(LAYERS) <= 12
    assert sum(map(len, map(str.split, LAYERS))) == len(LAYER_OF), "a folder has one place"


def test_the_engines_folder_fits_a_screen() -> None:
    entries = [entry for entry in (ROOT / "dreambooth").iterdir() if entry.name != "__pycache__"]
    assert len(entries) <= 24


def test_arrows_go_down_only() -> None:
    wrong = []
    for path in sources():
        own = room_of(module_name(path))
        for line, target in imports_of(path):
            if target.split(".")[0] not in ("dreambooth", "ui", "app"):
                continue
            other = room_of(target)
            if other != own and LAYER_OF[other] >= LAYER_OF[own]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {target}")
    assert wrong == []


def test_the_engine_never_imports_the_page() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sources()
        for line, target in imports_of(path)
        if path.is_relative_to(ROOT / "dreambooth") and target.split(".")[0] in ("gradio", "gradio_client", "ui", "app")
    ]
    assert found == []
    assert not any(target.startswith("gradio") for _, target in imports_of(ROOT / "ui" / "render.py"))


@pytest.mark.parametrize(
    ("prefix", "forbidden"), [("dreambooth", (*HEAVY, "gradio")), ("ui", HEAVY)], ids=["engine", "page"]
)
def test_importing_loads_nothing_heavy(prefix: str, forbidden: tuple[str, ...]) -> None:
    names = sorted(name for name in modules() if name.split(".")[0] == prefix and "__" not in name)
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
    code += f"print(*[name for name in {forbidden} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_one_module_reads_the_environment() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in sources()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv")
    }
    assert found == {"dreambooth/environment.py"}


def test_everything_is_caught_at_the_tops_only() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in sources()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler) and _catches_everything(node)
    }
    # The tops of a run, of the threads that train and make pictures, and of the page: they tell the user, and log the
    # traceback. That of a program raises again what is no consequence of a Ctrl-C.
    assert found <= {
        "dreambooth/entry_point.py",
        "dreambooth/runs/run.py",
        "dreambooth/runs/jobs.py",
        "dreambooth/pictures/queue.py",
        "ui/boundary.py",
    }


def _catches_everything(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException") for kind in kinds)


def calls(dotted: str) -> list[tuple[Path, ast.Call]]:
    """Return every call written like this, such as `torch.load`."""
    return [
        (path, node)
        for path in sources()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == dotted
    ]


def test_untrusted_weights_are_read_in_one_place_without_running_code() -> None:
    loads = calls("torch.load")
    assert len(loads) <= 1, [where(path, node) for path, node in loads]
    for path, node in loads:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert given.get("weights_only") == "True", where(path, node)
    assert calls("pickle.load") + calls("pickle.loads") == []


FAMILIES_AND_METHODS = {"sd1", "sd2", "sdxl", "full", "lora"}
OF_FAMILIES_AND_METHODS = ("StableDiffusion", "StableDiffusionXL", "FullFineTuning", "LoRA", "Lora")
# Where a family or a method is what the module is about: its data, its behaviour, the settings that belong to it; and
# what converts, where `lora` is the kind of file that was asked for, of a model of any method.
THEIR_MODULES = re.compile(
    r"dreambooth/(formats/layout|models/(family|sd\w*|adapter|card)|training/(method|full|lora)|commands/files|export/weights_file)\.py|dreambooth/config/.*"
)


def test_nothing_asks_which_family_or_method_it_has() -> None:
    """Two axes, one module per value: what differs between them is asked of them."""
    found = [
        where(path, node)
        for path in sources()
        if not THEIR_MODULES.fullmatch(str(path.relative_to(ROOT)))
        for node in ast.walk(tree_of(path))
        if _asks_for(node)
    ]
    assert found == []


def _asks_for(node: ast.AST) -> bool:
    """Return whether a node compares with the name of a family or method, is keyed by one, or looks at its class."""
    asked: list[ast.AST | None] = []
    if isinstance(node, ast.Compare):
        asked = [node.left, *node.comparators]
    elif isinstance(node, ast.MatchValue):
        asked = [node.value]
    elif isinstance(node, ast.Dict):
        asked = [*node.keys]
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
        asked = [*node.args[1:]]
    elif isinstance(node, ast.MatchClass):
        asked = [node.cls]
    return any(_names_one(part) for one in asked if one is not None for part in ast.walk(one))


def _names_one(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and node.value in FAMILIES_AND_METHODS
    return isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node).split(".")[-1] in OF_FAMILIES_AND_METHODS


@pytest.mark.parametrize(
    ("code", "asks"),
    [
        ("base.family.layout.family == 'sd2'", True),
        ("method in ('full', 'lora')", True),
        ("'sdxl' != name", True),
        ("match name:\n    case 'sd1' | 'sd2': pass", True),
        ("{'full': 1, 'other': 2}[name]", True),
        ("isinstance(method, FullFineTuning)", True),
        ("isinstance(base.family, sd.StableDiffusion | other)", True),
        ("type(method) is FullFineTuning", True),
        ("match method:\n    case FullFineTuning(): pass", True),
        ("family: Family = StableDiffusion(SD2)", False),
        ("print('full')", False),
        ("name == 'fuller'", False),
    ],
)
def test_a_question_for_a_family_or_method_is_seen(code: str, asks: bool) -> None:
    assert any(map(_asks_for, ast.walk(ast.parse(code)))) == asks


def test_autocast_and_bars_are_made_in_one_place_each() -> None:
    assert {str(path.relative_to(ROOT)) for path, _ in calls("torch.autocast")} == {"dreambooth/device/precision.py"}
    with_bars = {path for path in sources() for _, target in imports_of(path) if target.split(".")[0] == "tqdm"}
    assert {str(path.relative_to(ROOT)) for path in with_bars} == {"dreambooth/commands/bars.py"}


def test_no_command_goes_through_a_shell() -> None:
    found = [
        where(path, node)
        for path in sources()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.keyword) and node.arg == "shell"
    ]
    assert found + [where(path, node) for path, node in calls("os.system")] == []


def test_nothing_draws_from_the_global_generators() -> None:
    banned = ("torch.seed", "random.seed", "random.random", "random.choice", "random.shuffle")
    assert [where(path, node) for dotted in banned for path, node in calls(dotted)] == []
    # New layers take no generator: the starter's first weights are drawn inside `fork_rng`, which puts things back.
    seeded = {str(path.relative_to(ROOT)) for path, _ in calls("torch.manual_seed")}
    assert seeded <= {"dreambooth/starter/build.py", "dreambooth/starter/judging.py"}
    assert len(calls("torch.manual_seed")) == len(calls("torch.random.fork_rng"))
    assert [where(path, node) for dotted in ("torch.randn", "torch.rand") for path, node in calls(dotted)
            if "generator" not in [keyword.arg for keyword in node.keywords]] == []  # fmt: skip


def test_every_public_name_says_what_it_is() -> None:
    silent = [
        f"{where(path, node)} {node.name}"
        for path in sources()
        for node in tree_of(path).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert silent + [str(path) for path in sources() if not ast.get_docstring(tree_of(path))] == []


def test_the_exported_names_are_those_there() -> None:
    assert sorted(dreambooth.__all__) == dreambooth.__all__
    for name in dreambooth.__all__:
        assert getattr(dreambooth, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = dreambooth.absent


def test_files_and_functions_stay_readable() -> None:
    long_files = [str(path) for path in sources() if len(path.read_text("utf-8").splitlines()) > 400]
    long_functions = [
        f"{where(path, node)} {node.name}"
        for path in sources()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef) and (own_lines(node) > 70 or lines_after_first(node) > 118)
    ]
    assert long_files + long_functions == []


def lines_after_first(function: ast.FunctionDef) -> int:
    """Return how many lines follow the line with the function's name."""
    return (function.end_lineno or 0) - function.lineno


def own_lines(function: ast.FunctionDef) -> int:
    """Return the lines of a function without those of the functions inside it, which are read by themselves."""
    inner = [node for node in ast.walk(function) if isinstance(node, ast.FunctionDef) and node is not function]
    covered = {line for node in inner for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    return lines_after_first(function) - len(covered)


def test_what_test_files_share_is_in_the_harness() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} imports {node.module}"
        for path in sorted(ROOT.glob("tests/**/*.py"))
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom) and "test_" in (node.module or "")
    ]
    assert found == []


def test_no_path_of_a_developers_machine_is_in_the_files() -> None:
    private = ("/wo" + "rk/main", "/wo" + "rk/shared", "/wo" + "rk/venv", "/ro" + "ot/")
    kinds = (".py", ".md", ".toml", ".txt", ".json", ".ipynb")
    files = [path for path in ROOT.rglob("*") if path.suffix in kinds and not _is_generated(path)]
    assert [str(path) for path in files for text in private if text in path.read_text("utf-8")] == []


def _is_generated(path: Path) -> bool:
    first = path.relative_to(ROOT).parts[0]
    return (first.startswith(".") and first != ".ci") or first == "outputs"


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ids=["lint", "format", "types"],
)
def test_the_checkers_are_content(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
