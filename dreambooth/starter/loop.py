"""The one loop of the starter's stages: VAE, reading, UNet and text encoder, judge.

Every step is a function of (seed, step). A stage that was interrupted goes on from the last weights it kept, with a
fresh optimizer: the rate warms up at each start and cools down before each end, so that what is kept last is good.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.durable import new_folder

if TYPE_CHECKING:
    from torch import Tensor

# Stage, percent done, and a note such as the loss.
Report = Callable[[str, int, str], None]
WARM_UP_STEPS = 100
COOL_DOWN_SHARE = 0.25


@dataclass(frozen=True)
class Stage:
    """What is trained together, under which name it is kept, on what loss, for how long and how fast."""

    name: str
    modules: list[Any]
    loss_of: "Callable[[int], Tensor]"
    num_steps: int
    rate: float
    save_every: int = 500


def run_stage(stage: Stage, work_dir: Path, deadline_s: float, on_progress: Report) -> bool:
    """Step from where the kept weights end to the last step or the deadline; returns whether the stage is complete.

    `deadline_s` is on the clock of `time.monotonic`.
    """
    import torch

    parameters = [parameter for module in stage.modules for parameter in module.parameters()]
    folder = work_dir / stage.name
    first = step = _load_kept(folder, stage.modules)
    optimizer = torch.optim.AdamW(parameters, lr=stage.rate, weight_decay=1e-3, fused=True)
    started_s, recent = time.monotonic(), 0.0
    allowed_s = max(deadline_s - started_s, 1e-9)
    for module in stage.modules:
        module.train()
    while step < stage.num_steps and time.monotonic() < deadline_s:
        done = max((step - first) / (stage.num_steps - first), (time.monotonic() - started_s) / allowed_s)
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
            _keep(folder, stage.modules, step)
    _keep(folder, stage.modules, step)
    for module in stage.modules:
        module.eval()
    return step >= stage.num_steps


def _named(modules: list[Any]) -> "Iterator[tuple[str, Tensor]]":
    for number, module in enumerate(modules):
        for name, value in module.state_dict().items():
            yield f"{number}.{name}", value


def _keep(folder: Path, modules: list[Any], step: int) -> None:
    from safetensors.torch import save_file

    target = folder / f"{step:07d}"
    if target.exists():
        return
    with new_folder(target) as temporary:
        save_file({name: value.contiguous() for name, value in _named(modules)}, temporary / "weights.safetensors")
    for older in sorted(folder.glob("[0-9]*"))[:-2]:
        shutil.rmtree(older)


def _load_kept(folder: Path, modules: list[Any]) -> int:
    """Put the newest kept weights into the modules; returns their step, 0 when there are none."""
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
