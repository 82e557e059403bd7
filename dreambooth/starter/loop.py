"""The training loop of the starter's stages: VAE, text encoder, UNet with text encoder, judge.

Every step is a function of (seed, step). An interrupted stage continues from its last saved weights with a fresh
optimizer: the rate warms up at each start and cools down before each end, so that the last saved weights are good.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.durable import new_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Stage, percent done, and a note such as the loss.
Report = Callable[[str, int, str], None]
WARM_UP_STEPS = 100
COOL_DOWN_SHARE = 0.25
# What a report is named that says how good the weights are that were just kept.
KEPT = "kept"
OPTIMIZER_FILE = "optimizer.safetensors"


@dataclass(frozen=True)
class Stage:
    """What is trained together, the name it is saved under, its loss, its length and its rate."""

    name: str
    modules: list[Any]
    loss_of: "Callable[[int], Tensor]"
    num_steps: int
    rate: float
    save_every: int = 500
    # With the optimizer's state kept and rates by steps alone, an interrupted stage ends as if it had never been.
    is_exact: bool = False
    check: Callable[[], str] | None = None


def run_stage(stage: Stage, work_dir: Path, deadline_s: float, on_progress: Report) -> bool:
    """Train from the saved weights to the last step or the deadline; return whether the stage is complete.

    `deadline_s` is on the clock of `time.monotonic`.
    """
    import torch

    parameters = [parameter for module in stage.modules for parameter in module.parameters()]
    folder = work_dir / stage.name
    first = step = _load_kept(folder, stage.modules)
    optimizer = torch.optim.AdamW(parameters, lr=stage.rate, weight_decay=1e-3, fused=True)
    if stage.is_exact and step:
        first = 0
        _load_moments(optimizer, folder / f"{step:07d}" / OPTIMIZER_FILE)
    started_s, recent = time.monotonic(), 0.0
    allowed_s = max(deadline_s - started_s, 1e-9)
    for module in stage.modules:
        module.train()
    while step < stage.num_steps and time.monotonic() < deadline_s:
        done = (step - first) / (stage.num_steps - first)
        if not stage.is_exact:
            done = max(done, (time.monotonic() - started_s) / allowed_s)
        for group in optimizer.param_groups:
            group["lr"] = stage.rate * min((step - first + 1) / WARM_UP_STEPS, (1 - done) / COOL_DOWN_SHARE, 1.0)
        loss = stage.loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        recent = 0.98 * recent + 0.02 * loss.item() if recent else loss.item()
        if step % 20 == 0:
            on_progress(stage.name, round(100 * done), f"step {step}, loss {recent:.5f}")
        if step % stage.save_every == 0:
            _keep(folder, stage, step, optimizer)
            note = stage.check() if stage.check else f"loss {recent:.5f}"
            on_progress(KEPT, round(100 * done), f"{stage.name}, step {step}: {note}")
    _keep(folder, stage, step, optimizer)
    for module in stage.modules:
        module.eval()
    return step >= stage.num_steps


def logged(on_progress: Report, path: Path) -> Report:
    """Return a report that also writes messages on saved weights, and each stage's start, to a log file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    begun: set[str] = set()

    def report(stage: str, percent: int, note: str) -> None:
        if stage == KEPT or stage not in begun:
            begun.add(stage)
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {stage} {note}\n")
        if stage != KEPT:
            on_progress(stage, percent, note)

    return report


def _named(modules: list[Any]) -> "Iterator[tuple[str, Tensor]]":
    for number, module in enumerate(modules):
        for name, value in module.state_dict().items():
            yield f"{number}.{name}", value


def _keep(folder: Path, stage: Stage, step: int, optimizer: "torch.optim.Optimizer") -> None:
    from safetensors.torch import save_file

    target = folder / f"{step:07d}"
    if target.exists():
        return
    with new_folder(target) as temporary:
        weights = {name: value.contiguous() for name, value in _named(stage.modules)}
        save_file(weights, temporary / "weights.safetensors")
        if stage.is_exact:
            moments = optimizer.state_dict()["state"]
            named = {f"{place}.{name}": value for place, part in moments.items() for name, value in part.items()}
            save_file({name: value.contiguous() for name, value in named.items()}, temporary / OPTIMIZER_FILE)
    for older in sorted(folder.glob("[0-9]*"))[:-2]:
        shutil.rmtree(older)


def _load_kept(folder: Path, modules: list[Any]) -> int:
    """Load the newest saved weights into the modules; return their step, 0 if there are none."""
    import torch
    from safetensors.torch import load_file

    kept = sorted(folder.glob("[0-9]*"))
    if not kept:
        return 0
    weights = load_file(kept[-1] / "weights.safetensors")
    with torch.no_grad():
        for name, value in _named(modules):
            value.copy_(weights[name])
    return int(kept[-1].name)


def _load_moments(optimizer: "torch.optim.Optimizer", file: Path) -> None:
    """Load the saved moments into the optimizer, in its weights' memory format, which its fused kernel expects."""
    import torch
    from safetensors.torch import load_file

    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in load_file(file).items():
        place, key = name.split(".")
        is_moment = value.shape == weights[int(place)].shape and key != "step"
        kept = torch.empty_like(weights[int(place)], requires_grad=False).copy_(value) if is_moment else value
        state.setdefault(int(place), {})[key] = kept
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
