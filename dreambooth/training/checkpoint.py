"""The exact state of a run, from which it resumes as if it had not been interrupted.

A state is `.run/state/<step>/`: the trained weights in fp32, the optimizer's moments, the moving average, the loss
scale, and a manifest, written last, with the SHA-256 of each file. It holds no random state, since all randomness is a
function of (seed, stream, step), and no pickle. A state exists completely or not at all; one that fails verification is
renamed to begin with `.bad-`.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.durable import free_bytes, new_folder, remove_folder
from dreambooth.errors import RunFolderError, TrainingError
from dreambooth.formats.json_file import read_object
from dreambooth.formats.safetensors_file import write_safetensors, written_order
from dreambooth.models.saved_hashes import file_hash
from dreambooth.records.workspace import RunFolder
from dreambooth.training.method import LearningWeights, parameters_of
from dreambooth.training.run_identity import VERSION, RunIdentity, value_hash
from dreambooth.training.sharding import Shards, gathered, own_part

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MANIFEST = "manifest.json"
ROOM_BYTES = 4 << 30


@dataclass(frozen=True)
class Learner:
    """What changes from step to step: the trained weights, and everything that belongs to their updates."""

    weights: LearningWeights
    optimizer: "torch.optim.Optimizer"
    scaler: "torch.amp.GradScaler"
    ema: Any | None = None
    shards: Shards | None = None

    @cached_property
    def parameters(self) -> "list[nn.Parameter]":
        """The optimizer's parameters, numbered by position; with sharded weights, this process's shards."""
        return parameters_of(self.weights if self.shards is None else self.shards.own)


@dataclass(frozen=True)
class Checkpoint:
    """A verified state on disk."""

    folder: Path
    step: int
    identity: RunIdentity


# Writing -------------------------------------------------------------------------------------------------------------


def write_checkpoint(run: RunFolder, step: int, learner: Learner, identity: RunIdentity, keep: int | None) -> None:
    """Write the state of a step, then remove all but the newest `keep`: by default two if there is room, else one."""
    with new_folder(run.checkpoints / str(step)) as folder:
        groups, values = _gathered(learner)
        for name, tensors in groups.items():
            # Shards are gathered one tensor at a time.
            fetch = None if learner.shards is None else gathered
            write_safetensors(folder / f"{name}.safetensors", tensors, {}, fetch=fetch)
        (folder / "values.json").write_text(json.dumps(values), "utf-8")
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": file_hash(file)} for file in sorted(folder.iterdir())
        }
        manifest = {"step": step, **identity.to_json(), "files": files}
        (folder / MANIFEST).write_text(json.dumps(manifest | {"digest": value_hash(manifest)}, indent=1), "utf-8")
    if keep is None:
        num_bytes = sum(file.stat().st_size for file in (run.checkpoints / str(step)).iterdir())
        keep = 2 if has_room_for_state(run.path, num_bytes) else 1
    prune(run, keep)


def has_room_for_state(folder: Path, num_bytes: int) -> bool:
    """Return whether a state of this size leaves as much free again, and room for a run's models."""
    return free_bytes(folder) > 2 * num_bytes + ROOM_BYTES


def state_bytes(learner: Learner) -> int:
    """Return the approximate size of this learner's state on disk."""
    groups, _ = _gathered(learner)
    return sum(tensor.numel() * tensor.element_size() for tensors in groups.values() for tensor in tensors.values())


def join_gather(learner: Learner) -> None:
    """Take part in gathering the learner's shards for the first process, which writes the state."""
    for tensors in _gathered(learner)[0].values():
        for name in written_order(tensors):
            gathered(tensors[name])


def prune(run: RunFolder, keep: int) -> int:
    """Remove all but the newest `keep` states, and return how many were removed."""
    older = _states(run)[keep:]
    for folder in older:
        remove_folder(folder)
    return len(older)


def _gathered(learner: Learner) -> "tuple[dict[str, dict[str, Tensor]], dict[str, Any]]":
    """Return all tensors by file, and the scalars beside them."""
    import torch

    groups: dict[str, dict[str, Tensor]] = {
        model: {name: parameter.detach() for name, parameter in named.items()}
        for model, named in learner.weights.items()
    }
    moments: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for number, parameter in enumerate(learner.parameters):
        for key, value in learner.optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                part = value.detach()
                moments[f"{number}.{key}"] = learner.shards.as_whole(number, part) if learner.shards else part
            else:
                plain[f"{number}.{key}"] = value
    groups["optimizer"] = moments
    values: dict[str, Any] = {"optimizer": plain, "scaler": learner.scaler.state_dict()}
    if learner.ema is not None:
        groups["ema"] = {str(number): shadow for number, shadow in enumerate(learner.ema.shadow_params)}
        values["ema"] = {"optimization_step": learner.ema.optimization_step}
    return groups, values


# Reading -------------------------------------------------------------------------------------------------------------


def newest_checkpoint(run: RunFolder, set_aside: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest state that verifies; others are renamed and reported through `set_aside`."""
    for folder in _states(run):
        try:
            return verified(folder)
        except TrainingError as error:
            bad = folder.with_name(f".bad-{folder.name}")
            number = 2
            while bad.exists():
                bad = folder.with_name(f".bad-{folder.name}-{number}")
                number += 1
            folder.rename(bad)
            set_aside(f"The state of step {folder.name} is damaged and was set aside as {bad.name}: {error.why}")
    return None


def _states(run: RunFolder) -> list[Path]:
    """Return the folders of states, the newest first."""
    return [run.checkpoints / str(step) for step in reversed(run.checkpoint_steps())]


def verified(folder: Path) -> Checkpoint:
    """Return the state in this folder; raises TrainingError if it is not exactly what was written."""
    try:
        manifest = read_object(folder / MANIFEST)
        digest, step, version = manifest.pop("digest"), manifest["step"], manifest.get("version", 1)
        if digest == value_hash(manifest) and type(version) is int and version > VERSION:
            raise _of_later_version(folder, version)
        identity = RunIdentity.from_json(manifest)
        files = {str(name): (int(about["bytes"]), str(about["sha256"])) for name, about in manifest["files"].items()}
        present = {entry.name for entry in folder.iterdir()} - {MANIFEST}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"its manifest cannot be read ({type(error).__name__})") from None
    if digest != value_hash(manifest):
        raise _damaged(folder, "its manifest differs from what was written")
    if str(step) != folder.name:
        raise _damaged(folder, f"its manifest is that of step {step}")
    if present != set(files):
        raise _damaged(folder, f"missing or unexpected files: {', '.join(sorted(present ^ set(files)))}")
    for name, (num_bytes, sha256) in files.items():
        try:
            if (folder / name).stat().st_size != num_bytes:
                raise _damaged(folder, f"{name} has a different size than was written")
            if file_hash(folder / name) != sha256:
                raise _damaged(folder, f"{name} differs from what was written")
        except OSError as error:
            raise _damaged(folder, f"{name} cannot be read ({error.strerror})") from None
    return Checkpoint(folder, int(step), identity)


def _of_later_version(folder: Path, version: int) -> RunFolderError:
    """Return the error for a state of a later version, which must not be renamed as damaged."""
    return RunFolderError(
        f"The state in {folder} was written by a later version of this program.",
        f"Its manifest has version {version}, and this program reads up to {VERSION}.",
        "Update the program, then resume.",
    )


def _damaged(folder: Path, why: str) -> TrainingError:
    return TrainingError(f"The state in {folder} is damaged.", f"{why}.", "Resume from another one.")


def restore(checkpoint: Checkpoint, learner: Learner) -> None:
    """Restore a state into weights, optimizer, scale and average, on their devices."""
    from safetensors.torch import load_file

    def group(name: str) -> "dict[str, Tensor]":
        tensors: dict[str, Tensor] = load_file(checkpoint.folder / f"{name}.safetensors")
        return tensors

    values = json.loads((checkpoint.folder / "values.json").read_text("utf-8"))
    for model, named in learner.weights.items():
        _fill(named, group(model))
    numbers = _numbers_in(checkpoint, learner)
    states: dict[int, dict[str, Any]] = {}
    for key, value in [*group("optimizer").items(), *values["optimizer"].items()]:
        written, _, field = key.partition(".")
        if (number := numbers.get(int(written))) is not None:
            states.setdefault(number, {})[field] = learner.shards.part(number, value) if learner.shards else value
    for number, state in states.items():
        parameter = learner.parameters[number]
        # torch's AdamW keeps its count on the CPU on purpose: reading it there waits for no GPU.
        counts_there = any(group.get("fused") or group.get("capturable") for group in learner.optimizer.param_groups)
        learner.optimizer.state[parameter] = {
            field: value if field == "step" and not counts_there else _beside(parameter, value)
            for field, value in state.items()
        }
    learner.scaler.load_state_dict(values["scaler"])
    if learner.ema is not None:
        shadows = group("ema")
        written_as = {number: str(written) for written, number in numbers.items()}
        learner.ema.shadow_params = [
            shadows[written_as[number]].to(shadow.device) for number, shadow in enumerate(learner.ema.shadow_params)
        ]
        learner.ema.optimization_step = values["ema"]["optimization_step"]


def _numbers_in(checkpoint: Checkpoint, learner: Learner) -> dict[int, int]:
    """Return the number of each parameter by its number in this state.

    They are the same, except for SDXL's text encoders in earlier versions: the last layer of the first one, or factors
    for it, were numbered too, although it affects no image, so that they never got a gradient.
    """
    from safetensors import safe_open

    numbers: dict[int, int] = {}
    written, number = itertools.count(), itertools.count()
    for model, named in learner.weights.items():
        with safe_open(checkpoint.folder / f"{model}.safetensors", "pt") as state:
            names = set(state.keys())
        # Factors are numbered by their names, other weights in the order of their modules, where that layer is last.
        by_name = list(named) == sorted(named)
        for name in sorted(names) if by_name else [*named, *sorted(names - named.keys())]:
            place = next(written)
            if name in named:
                numbers[place] = next(number)
    return numbers


def _fill(named: "dict[str, nn.Parameter]", values: "dict[str, Tensor]") -> None:
    """Load a state's numbers into a model's weights; if these are sharded, this process's shard."""
    import torch
    from torch.distributed.tensor import DTensor

    with torch.no_grad():
        for name, parameter in named.items():
            part = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            part.copy_(own_part(parameter, values[name]))


def _beside(parameter: "nn.Parameter", value: Any) -> Any:
    """Return a value of the state on its parameter's device, and in its memory format if it has its shape."""
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value).detach()
