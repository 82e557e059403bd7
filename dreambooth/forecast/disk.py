"""The disk space of a run, computed before it starts: models, exact states, samples, and a reserve."""

from dataclasses import dataclass
from pathlib import Path

from dreambooth.config.counts import num_saves_left
from dreambooth.config.training import TrainingConfig
from dreambooth.durable import free_bytes
from dreambooth.errors import TrainingError
from dreambooth.forecast.counts import Counts, counts_of_shape, model_bytes, state_bytes
from dreambooth.forecast.shape import read_shape
from dreambooth.records.workspace import RunFolder

RESERVE_BYTES = 1 << 30
GIB = 1 << 30


@dataclass(frozen=True)
class DiskNeed:
    """What a run will have on disk at its peak, in bytes."""

    num_models: int
    num_saves: int
    model_bytes: int
    num_states: int
    state_bytes: int
    picture_bytes: int

    @property
    def kept_bytes(self) -> int:
        """Bytes copied to a Drive: every saved model, and the images."""
        return self.num_saves * self.model_bytes + self.picture_bytes

    @property
    def written_bytes(self) -> int:
        """Bytes on disk at the peak."""
        return self.num_models * self.model_bytes + self.num_states * self.state_bytes + self.picture_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes on disk at the peak, and the reserve."""
        return self.written_bytes + RESERVE_BYTES


def disk_need(config: TrainingConfig, counts: Counts, num_steps: int) -> DiskNeed:
    """Return what the run will write, from the numbers of weights alone; nothing is loaded."""
    num_saves = num_saves_left(config, 0, num_steps)
    # A new one exists beside the old ones until these are removed.
    num_models = num_saves if config.save_total_limit is None else min(num_saves, config.save_total_limit + 1)
    has_states = config.checkpointing_steps != 0 or num_saves > 1
    pictures = config.num_sample_pictures + config.num_probe_pictures
    return DiskNeed(
        num_models=num_models,
        num_saves=num_saves,
        model_bytes=model_bytes(config, counts),
        num_states=(config.checkpoints_total_limit or 1) + 1 if has_states else 1,
        state_bytes=state_bytes(config, counts),
        # A PNG of a photo takes about two bytes per pixel.
        picture_bytes=(num_saves + 1) * pictures * 2 * config.resolution**2,
    )


def saved_step_bytes(config: TrainingConfig, models_dir: Path | None = None) -> int:
    """Return the bytes of one saved step of a run, without images."""
    shape = read_shape(config.pretrained_model_name_or_path, models_dir)
    return disk_need(config, counts_of_shape(shape), num_steps=1).model_bytes


def bytes_there(run: RunFolder, need: DiskNeed) -> int:
    """Return the bytes a run needs that are already on disk: models and images in its step folders, and exact states.

    A new state is written before an old one is deleted: one of those needed is always still to be written.
    """
    folders = [run.step_folder(step) for step in run.steps()]
    newest_first = run.checkpoint_steps()[::-1]
    folders += [run.checkpoints / str(step) for step in newest_first[: need.num_states - 1]]
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def refuse_short_disk(need: DiskNeed, folder: Path, *, is_resumed: bool = False) -> None:
    """Raise TrainingError with the numbers if the disk of the run's folder has less free than the run will still take.

    A resumed run keeps its settings, so only more room helps.
    """
    free, there = free_bytes(folder), bytes_there(RunFolder(folder), need)
    missing = max(need.written_bytes - there, 0) + RESERVE_BYTES
    if free >= missing:
        return
    if is_resumed:
        raise TrainingError(
            f"To continue, the run needs {missing / GIB:.1f} GiB more disk space; {free / GIB:.1f} GiB are free.",
            f"{there / GIB:.1f} of its {need.written_bytes / GIB:.1f} GiB are written; 1 GiB is kept in reserve.",
            "Free some space, then resume it: `python -m dreambooth clean` lists what can be deleted.",
        )
    raise TrainingError(
        f"The run needs {need.total_bytes / GIB:.1f} GiB of disk, and {free / GIB:.1f} GiB are free.",
        f"{need.num_models} saved steps of {need.model_bytes / GIB:.2f} GiB, {need.num_states} exact states of "
        f"{need.state_bytes / GIB:.2f} GiB, samples, and 1 GiB in reserve.",
        "Free some space, raise --save_interval, or write no exact states between saves (--checkpointing_steps 0).",
    )
