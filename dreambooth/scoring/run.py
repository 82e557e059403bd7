"""Scores a run on disk: missing probe images are made, every step is scored, the best one recommended."""

import dataclasses
import functools
from pathlib import Path

from dreambooth.config.training import TrainingConfig
from dreambooth.environment import Settings, load_settings
from dreambooth.errors import RunFolderError
from dreambooth.events import OnProgress, unwatched
from dreambooth.models.base import read_card
from dreambooth.models.manager import ModelManager
from dreambooth.models.saved_step import ModelSource, base_is_gone, resident
from dreambooth.records.runlog import read_config
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.scoring.encoders import Examiner, examiner_for
from dreambooth.scoring.probes import (
    WITHOUT_ENCODERS,
    make_probes,
    num_probes_made,
    probes_dir,
    probes_of,
    update_scores,
)
from dreambooth.scoring.recommendation import NOTHING_MEASURED
from dreambooth.scoring.records import RunScores, examiner_title

NUM_PROBES = 4


def score_run(
    run_path: Path,
    *,
    settings: Settings | None = None,
    num_probes: int | None = None,
    download: bool = True,
    manager: ModelManager | None = None,
    on_picture: OnProgress = unwatched,
    base: str | None = None,
) -> RunScores:
    """Score every saved step of a run and return its scores, which are then in its folder.

    Existing images are reused, unless another number of them is requested. base: what the run started from, if not
    where the run says. Raises RunFolderError for a folder without a saved step, BaseModelError for a missing base, and
    DeviceError while the device is in use.
    """
    settings = settings or load_settings()
    return score_here(
        RunFolder(run_path.absolute()), Workspace(settings.data_dir), manager or ModelManager(),
        settings.hub_token, num_probes=num_probes, download=download, on_picture=on_picture, base=base,
    )  # fmt: skip


def score_here(
    run: RunFolder,
    workspace: Workspace,
    manager: ModelManager,
    token: str | None,
    *,
    num_probes: int | None = None,
    download: bool = True,
    on_picture: OnProgress = unwatched,
    base: str | None = None,
) -> RunScores:
    """Do what `score_run` does with an app's own folders and device."""
    config = read_config(run)
    if config is None or not run.steps():
        raise RunFolderError(
            f"{run.path} has no saved step.", "There is nothing to score.", "Give the folder of a run."
        )
    config = on_base(config, base)
    num = num_probes or num_probes_made(run) or NUM_PROBES
    with manager.lease("generation", wait=False):
        _fill_up(run, config, num, manager, workspace, token, on_picture, base)
        examiner = examiner_of(config, workspace, download=download, token=token)
        scores = update_scores(run, config, examiner)
    assert scores is not None, "the base's pictures were just made"
    return scores


def examiner_of(
    config: TrainingConfig, workspace: Workspace, *, download: bool, token: str | None = None
) -> Examiner | None:
    """Return the examiner for images of models trained from this run's base."""
    card = read_card(config.pretrained_model_name_or_path, workspace.models_dir)
    return examiner_for(is_toy=card.is_toy, download=download, token=token)


def on_base(config: TrainingConfig, base: str | None) -> TrainingConfig:
    """Return a run's settings with its base at another place, if given."""
    if base is None:
        return config
    return dataclasses.replace(config, pretrained_model_name_or_path=base, revision=None, variant=None)


def source_of(run: RunFolder, step: int, config: TrainingConfig, base: str | None = None) -> ModelSource:
    """Return the source of a saved step's model; for step 0 what the run started from.

    base: what a LoRA is added to, if not what its step names. Raises BaseModelError if the run started from a file or
    folder of this machine that is gone.
    """
    if step:
        return ModelSource(str(run.step_folder(step)), base=base)
    place = config.pretrained_model_name_or_path
    if Path(place).is_absolute() and not Path(place).exists():
        raise base_is_gone(run.name, place)
    return ModelSource(
        place,
        vae=config.pretrained_vae_name_or_path,
        revision=config.revision,
        variant=config.variant,
        tokenizer=config.tokenizer_name,
    )


def _fill_up(
    run: RunFolder,
    config: TrainingConfig,
    num: int,
    manager: ModelManager,
    workspace: Workspace,
    token: str | None,
    on_picture: OnProgress,
    base: str | None,
) -> None:
    """Make the missing probe images, one model at a time."""
    probes = probes_of(config.concepts, num)
    missing = [
        step
        # The base last: a step reports if it is not the one it was trained from.
        for step in (*run.steps(), 0)
        if not all((probes_dir(run, step) / probe.file_name).exists() for probe in probes)
    ]
    total = len(missing) * len(probes)
    for number, step in enumerate(missing):
        # No reference is kept, so that it is freed when the next one is loaded.
        make_probes(
            dataclasses.replace(
                resident(manager, source_of(run, step, config, base), models_dir=workspace.models_dir, token=token),
                name=f"{run.name}/{step}",
            ),
            run, step, config, probes, autocast_dtype=None,
            on_picture=functools.partial(_from, number * len(probes), total, on_picture),
        )  # fmt: skip


def _from(first: int, total: int, on_picture: OnProgress, done: int, of: int) -> None:
    on_picture(first + done, total)


def score_lines(scores: RunScores, run: RunFolder) -> list[str]:
    """Return the scores as lines for a terminal: a table, and the recommendation."""
    names = list(dict.fromkeys(name for one in scores.steps for name in one.measures))
    columns = ["likeness", "prompts", "drift", *names]
    lines = [
        examiner_title(scores.examiner) or WITHOUT_ENCODERS,
        "step".rjust(8) + "".join(name.rjust(15) for name in columns),
    ]
    for one in scores.steps:
        values = [one.fidelity, one.prompt, one.drift, *(one.measures.get(name) for name in names)]
        cells = ("-" if value is None else f"{value:.3f}" for value in values)
        lines.append((str(one.step) if one.step else "base").rjust(8) + "".join(cell.rjust(15) for cell in cells))
    lines += [f"real photos among each other: {name} {value:.3f}" for name, value in scores.ceiling.items()]
    found = scores.recommended(run.steps())
    return [*lines, found.why if found else NOTHING_MEASURED]
