"""Any run as a LoRA: the best low-rank factors of its change of the weights for a size, written and read back.

For each rank the best factors of a weight's change are its leading singular vectors. For a file size, ranks are chosen
to keep most of the change: each rank of each module is worth its squared singular value and costs (in + out) numbers,
and the best ratio is taken first, which is optimal because costs within a module are equal.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from dreambooth.durable import new_file, sweep_unfinished_beside
from dreambooth.errors import ConfigError, ExportError, FieldProblem
from dreambooth.events import OnProgress, unwatched
from dreambooth.export.archive import EXPORT_SUFFIXES
from dreambooth.export.disk_room import refuse_full_disk
from dreambooth.export.lora_file import (
    HEADER_BYTES_PER_MODULE,
    lora_bytes,
    refuse_name,
    refuse_wrong_file,
    write_lora,
    write_sidecars,
)
from dreambooth.export.lora_metadata import lora_metadata, trigger_words
from dreambooth.export.single_file import Precision
from dreambooth.formats.layout import lora_file
from dreambooth.formats.lora_keys import LoraModule, LoraTargets, kind_of_weight, lora_modules
from dreambooth.models.adapter import fitted
from dreambooth.models.base import Base
from dreambooth.models.family import PictureSize
from dreambooth.models.lora_file import read_lora
from dreambooth.models.low_rank import Factors, Spectrum, factors, spectrum
from dreambooth.models.saved_step import ModelSource, load_with_base
from dreambooth.models.strength import WHOLE, Strength
from dreambooth.rng import generator

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_RANK = 16
# One of these decides the size of an extracted LoRA.
SIZE_LIMITS = {"rank": (1, 320), "max_mb": (0.01, 10_000), "max_error": (0.001, 1)}
# The weight's part, and its name there.
Place = tuple[str, str]
# Noise levels and side, in latents, of the compared predictions: at 64 they would take longer than everything else.
TIMESTEPS = (100, 500, 900)
MOST_LATENTS = 32
# Smaller numbers are zero in fp16; a LoRA this small would have no effect.
LEAST_CHANGE = 1e-7


@dataclass(frozen=True)
class LoraSize:
    """What decides the ranks; one of: one rank for all modules, megabytes of the file, or the largest error."""

    rank: int | None = None
    max_mb: float | None = None
    max_error: float | None = None

    def checked(self) -> Self:
        """Return this size, or raise ConfigError if it is beyond its limits."""
        wrong = [
            FieldProblem(name, f"is {value:g}: it must be {low:g} to {high:g}.")
            for name, (low, high) in SIZE_LIMITS.items()
            if (value := getattr(self, name)) is not None and not low <= value <= high
        ]
        if self.rank is not None and self.rank != int(self.rank):
            wrong.append(FieldProblem("rank", f"is {self.rank:g}: it must be a whole number."))
        if wrong:
            raise ConfigError(wrong)
        rank = None if self.rank is None else int(self.rank)
        return dataclasses.replace(self, rank=rank)


@dataclass(frozen=True)
class LoraVerdict:
    """The result of writing a LoRA and reading it back, and how much of the run's change it lacks.

    error: of the change of all weights, as a share of its norm; prediction_error: of the change of the UNet's
    predictions; left_out: the share of the squared change that no module carries, by kind of weight; sidecars: the
    files beside it.
    """

    path: Path
    num_modules: int
    rank: int
    lowest_rank: int
    num_bytes: int
    parts: tuple[str, ...]
    error: float
    prediction_error: float
    left_out: Mapping[str, float]
    sidecars: tuple[Path, ...]

    def __str__(self) -> str:
        rank = f"rank {self.rank}" if self.rank == self.lowest_rank else f"ranks {self.lowest_rank} to {self.rank}"
        where = " and ".join(name.replace("unet", "UNet").replace("_", " ") for name in self.parts)
        lines = [
            f"Verified: a LoRA of {self.num_modules} modules in the {where}, {rank}, {self.num_bytes / 1e6:.1f} MB.",
            f"It lacks {self.error:.0%} of the change of the weights, and {self.prediction_error:.0%} of the change "
            "of the UNet's predictions.",
        ]
        if self.parts == ("unet",):
            lines.append("The text encoder was not changed, so that it is not in the file.")
        kinds = [f"{kind} ({share:.1%})" for kind, share in self.left_out.items() if share >= 0.001]
        if kinds:
            lines.append(f"Not in it, as a share of the squared change: {', '.join(kinds)}.")
        lines += [f"Also written: {file.name}" for file in self.sidecars]
        return "\n".join(lines)


def extract_lora(
    model_dir: Path,
    out_path: Path,
    *,
    size: LoraSize | None = None,
    targets: LoraTargets | None = None,
    precision: Precision | None = None,
    strength: Strength = WHOLE,
    base: str | None = None,
    models_dir: Path | None = None,
    token: str | None = None,
    on_progress: OnProgress = unwatched,
) -> LoraVerdict:
    """Write what a step learned as a LoRA, read it back, and return the result.

    size: rank 16 by default; targets: `linear`, or those of a LoRA step; base: the model it was trained from, by
    default the one the step names; precision: fp16 by default. Needs both models in memory, and minutes at full size.
    Raises ExportError for a name that no LoRA can have, a step without a change, an error these targets cannot reach,
    and a full disk; BaseModelError for a base that is missing or not the step's.
    """
    import torch

    refuse_name(out_path)
    sweep_unfinished_beside(out_path, EXPORT_SUFFIXES)
    source = ModelSource(str(model_dir), strength, base=base)
    trained, before = load_with_base(source, models_dir=models_dir, token=token)
    targets = targets or ("linear" if lora_file(model_dir) is None else "all")
    with torch.no_grad():
        changes, layout = _changes(model_dir, strength, trained, before), trained.family.layout
        modules = _changed_modules(changes, targets, model_dir)
        dtype = torch.float32 if precision == "fp32" else torch.float16
        found = _best_factors(changes, modules, size or LoraSize(DEFAULT_RANK), dtype.itemsize, on_progress)
        prediction = str(before.noise_scheduler_config.get("prediction_type", "epsilon"))
        metadata = lora_metadata(model_dir, out_path.stem, layout, found, prediction)
        refuse_full_disk(out_path, lora_bytes(found, dtype, layout))
        with new_file(out_path) as temporary:
            write_lora(temporary, found, metadata, dtype, layout)
            refuse_wrong_file(temporary, found, dtype, layout)
            written = read_lora(temporary).factors
            # The last one adds the LoRA to the base, with which the others compare.
            error, left_out = _error(changes, modules, written), _left_out(changes, modules)
            prediction_error = _prediction_error(trained, before, modules, written, trigger_words(model_dir))
            verdict = LoraVerdict(
                path=out_path,
                num_modules=len(written),
                rank=max(one.down.shape[0] for one in written.values()),
                lowest_rank=min(one.down.shape[0] for one in written.values()),
                num_bytes=temporary.stat().st_size,
                parts=tuple(dict.fromkeys(part for part, _ in changes if part in {module.part for module in modules})),
                error=error,
                prediction_error=prediction_error,
                left_out=left_out,
                sidecars=(),
            )
    return dataclasses.replace(verdict, sidecars=tuple(write_sidecars(out_path, model_dir)))


class _Changes(Mapping[Place, "Tensor"]):
    """The change of each weight, in fp32, computed on access: all at once would be 4 GB."""

    def __init__(self, made: "Mapping[Place, Callable[[], Tensor]]") -> None:
        self._made = made

    def __getitem__(self, place: Place) -> "Tensor":
        return self._made[place]()

    def __iter__(self) -> Iterator[Place]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def _changes(model_dir: Path, strength: Strength, trained: Base, before: Base) -> _Changes:
    """Return the change of the weights: for a LoRA from its factors, because merged weights are rounded."""
    if (file := lora_file(model_dir)) is not None:
        return _Changes({
            (one.place.part, one.place.weight): partial(_learned, one.factors, strength.of(one.place.part))
            for one in fitted(before, read_lora(file).factors).modules
        })  # fmt: skip
    return _Changes({
        (part, name): partial(_difference, weight, others[name])
        for part in trained.family.layout.learning_parts
        for others in (getattr(before, part).state_dict(),)
        for name, weight in getattr(trained, part).state_dict().items()
        if weight.is_floating_point()
    })  # fmt: skip


def _learned(factors: Factors, amount: float) -> "Tensor":
    return amount * factors.product()


def _difference(weight: "Tensor", before: "Tensor") -> "Tensor":
    change: Tensor = weight.float() - before.float()
    return change


def _changed_modules(changes: "Mapping[Place, Tensor]", targets: LoraTargets, model_dir: Path) -> list[LoraModule]:
    """Return the modules of a LoRA with these targets: those whose weight changed."""
    least = LEAST_CHANGE if lora_file(model_dir) is None else 0.0  # a LoRA's is known exactly
    names: dict[str, list[str]] = {}
    for part, name in changes:
        names.setdefault(part, []).append(name)
    modules = [
        module for module in lora_modules(names, targets)
        if changes[module.part, module.weight].abs().max() > least
    ]  # fmt: skip
    if not modules:
        raise ExportError(
            f'"{model_dir}" has learned nothing that a LoRA can hold.', "Its weights are those of its base.",
            "Choose a later step, or other targets.",
        )  # fmt: skip
    return modules


# Ranks ---------------------------------------------------------------------------------------------------------------


def _best_factors(
    changes: "Mapping[Place, Tensor]",
    modules: list[LoraModule],
    size: LoraSize,
    number_bytes: int,
    on_progress: OnProgress,
) -> dict[str, Factors]:
    """Return the factors, by module, that this size allows."""
    budget = None
    if size.max_mb is not None:
        budget = int((size.max_mb * 1e6 - HEADER_BYTES_PER_MODULE * len(modules)) / number_bytes)
    spectra: dict[str, Spectrum] = {}
    for done, module in enumerate(modules):
        change = changes[module.part, module.weight]
        most = size.rank or (max(budget, 0) // _cost(change) if budget is not None else change.numel())
        spectra[module.name] = spectrum(change, max(most, 1))
        on_progress(done + 1, len(modules))
    costs = {module.name: _cost(changes[module.part, module.weight]) for module in modules}
    if size.rank is not None:
        ranks = {name: min(size.rank, len(found.energies)) for name, found in spectra.items()}
    else:
        total = math.fsum(float(change.double().square().sum()) for change in changes.values())
        in_modules = math.fsum(float(found.energies.sum()) for found in spectra.values())
        ranks = _chosen_ranks(spectra, costs, budget, size.max_error, total, total - in_modules)
    return {
        module.name: factors(changes[module.part, module.weight], spectra[module.name], ranks[module.name])
        for module in modules
    }


def _cost(change: "Tensor") -> int:
    """Return how many numbers one rank of a module takes."""
    return int(change.shape[0] + change.numel() // change.shape[0])


def _chosen_ranks(
    spectra: Mapping[str, Spectrum],
    costs: Mapping[str, int],
    budget: int | None,
    max_error: float | None,
    total: float,
    outside: float,
) -> dict[str, int]:
    """Return the ranks that fit a budget of numbers, or that leave at most this share of the change; at least one."""
    ranks = dict.fromkeys(spectra, 1)
    spent = sum(costs.values())
    lacking = outside + math.fsum(float(found.energies[1:].sum()) for found in spectra.values())
    allowed = None if max_error is None else max_error**2 * total
    if budget is not None and spent > budget:
        raise ExportError(
            "No LoRA is that small.", f"Rank 1 in all of its {len(ranks)} modules takes {spent:,} numbers.",
            "Allow more megabytes, or choose --lora_targets attention.",
        )  # fmt: skip
    if allowed is not None and outside > allowed:
        raise ExportError(
            "No LoRA of these targets is that close.",
            f"What they leave out is {math.sqrt(outside / total):.0%} of the change by itself.",
            "Allow a larger --max_error, or choose --lora_targets all.",
        )
    pieces = sorted(
        ((energy / costs[name], energy, name) for name, found in spectra.items()
         for energy in found.energies[1 : found.vectors.shape[1]].tolist() if energy > 0),
        key=lambda piece: -piece[0],
    )  # fmt: skip
    full: set[str] = set()
    for _, energy, name in pieces:
        if allowed is not None and lacking <= allowed:
            break
        # A module that did not fit once is done: its ranks come in order of size.
        if name in full or (budget is not None and spent + costs[name] > budget):
            full.add(name)
            continue
        ranks[name], spent, lacking = ranks[name] + 1, spent + costs[name], lacking - energy
    return ranks


# What was written ----------------------------------------------------------------------------------------------------


def _error(changes: "Mapping[Place, Tensor]", modules: list[LoraModule], written: Mapping[str, Factors]) -> float:
    """Return the norm of what the file lacks of the change, as a share of the change's norm."""
    names = {(module.part, module.weight): module.name for module in modules}
    total = lacking = 0.0
    for place, change in changes.items():
        total += float(change.double().square().sum())
        rest = change - written[names[place]].product() if place in names else change
        lacking += float(rest.double().square().sum())
    return math.sqrt(lacking / total)


def _left_out(changes: "Mapping[Place, Tensor]", modules: list[LoraModule]) -> dict[str, float]:
    """Return the share of the squared change in weights without a module, by kind, the largest first."""
    inside = {(module.part, module.weight) for module in modules}
    total, outside = 0.0, dict[str, float]()
    for place, change in changes.items():
        energy = float(change.double().square().sum())
        total += energy
        if place not in inside:
            kind = kind_of_weight(place[1])
            outside[kind] = outside.get(kind, 0.0) + energy
    return {kind: energy / total for kind, energy in sorted(outside.items(), key=lambda one: -one[1])}


def _prediction_error(
    trained: Base, before: Base, modules: list[LoraModule], written: Mapping[str, Factors], prompt: str
) -> float:
    """Return how far base + LoRA predicts from the trained model, as a share of the training's change.

    At three noise levels, under the instance prompt. Changes the base in place to base + LoRA.
    """
    wanted, plain = _predictions(trained, prompt), _predictions(before, prompt)
    for module in modules:
        weight = getattr(before, module.part).state_dict()[module.weight]
        weight.add_(written[module.name].product().to(weight))
    change = (wanted - plain).norm()
    return float((_predictions(before, prompt) - wanted).norm() / change) if change else 0.0


def _predictions(base: Base, prompt: str) -> "Tensor":
    import torch

    config = base.unet.config
    side = min(config.sample_size, MOST_LATENTS)
    noise = torch.randn(1, config.in_channels, side, side, generator=generator(0, "probes"))
    condition = base.family.encode_text(base, base.family.text_inputs(base, [prompt], length=None))
    side_px = 2 ** (len(base.vae.config.block_out_channels) - 1) * side
    size_ids = base.family.size_ids([PictureSize((side_px, side_px), (0, 0), (side_px, side_px))])
    condition = dataclasses.replace(condition, size_ids=size_ids)
    found = [base.family.predict(base.unet, noise, torch.tensor([step]), condition) for step in TIMESTEPS]
    return torch.cat(found)
