"""Handlers of the Convert tab, as functions of values: sizes, files for other tools, uploads."""

import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

import gradio as gr

from dreambooth.config.generation import GenerationConfig
from dreambooth.config.limits import as_written
from dreambooth.config.training import TrainingConfig
from dreambooth.durable import free_bytes
from dreambooth.errors import ConfigError, ExportError, FieldProblem, quoted
from dreambooth.export.merged import folder_at_strength
from dreambooth.export.sizes import folder_bytes, lora_file_bytes, samples_bytes, single_file_bytes
from dreambooth.export.weights_file import (
    LoraSize,
    file_kind,
    is_lora_file,
    write_weights_file,
)
from dreambooth.export.weights_file import lora_targets as targets_named
from dreambooth.forecast.disk import saved_step_bytes
from dreambooth.models.base import STARTER, local_base, read_card
from dreambooth.models.origin import missing_base
from dreambooth.models.saved_step import model_name
from dreambooth.models.sd_file import starter_folder
from dreambooth.models.strength import WHOLE, Strength
from dreambooth.records.drive import keep_file, lost_drive
from dreambooth.records.workspace import RunFolder
from ui.bases import lora_bases, offered_base
from ui.boundary import QUICK, Services, shown
from ui.events import Answer, on
from ui.render import panel, size_in_words

FORMATS = {
    ".safetensors": "One .safetensors file: A1111, ComfyUI and most others",
    ".ckpt": "One .ckpt file: older tools",
    ".zip": "The folder of the step, as .zip",
    "-samples.zip": "The run's sample pictures, as .zip",
}
SINGLE_FILES = (".safetensors", ".ckpt")
# The kinds of files besides the step's own, for a step with a whole model and for one with a LoRA.
OTHER_KINDS = {False: "lora", True: "checkpoint"}
KIND_LABELS = {
    (False, False): "A whole model (checkpoint)",
    (False, True): "A LoRA: a small file that adds what was learned to other models",
    (True, False): "The LoRA as it is",
    (True, True): "A whole model (checkpoint): the LoRA merged into a base model",
}
OWN = "own"
BASE_INFO = "Choose another one if it has moved, or to merge the LoRA into a different model."


def convertible(services: Services) -> list[tuple[str, str]]:
    """Return the models on this machine."""
    return [(label, value) for label, value in services.jobs.models() if value == STARTER or Path(value).is_dir()]


class Handlers:
    """The tab's handlers, as functions of values."""

    def __init__(self, services: Services) -> None:
        self._services = services

        def list_sizes(model: str) -> dict[str, int]:
            """Return the bytes that each kind of file of a model takes, by suffix; single files in fp16."""
            return {suffix: size for suffix, size in self._bytes(model, True).items() if size is not None}

        self.list_sizes = shown(list_sizes)

    def _folder_and_stem(self, model: str) -> tuple[Path, str]:
        """Return a listed model's folder and a name for its files; raises ExportError for what is not in the list."""
        if model not in dict((value, label) for label, value in convertible(self._services)):
            raise ExportError(f"{model!r} cannot be converted.", "It is not in the list.", "Choose one from the list.")
        if model == STARTER:
            return starter_folder(), "starter-toy"
        # `dog-3/800` becomes dog-3-step-800.
        return Path(model), _plain(model_name(model).replace("/", "-step-"))

    # Sizes -----------------------------------------------------------------------------------------------------------

    def _bytes(
        self, model: str, half: bool, kind: str = OWN, rank: str = "", targets: str = "linear", base: str = ""
    ) -> dict[str, int | None]:
        """Return the size of each kind of file, None if it does not exist or is unknown."""
        folder, _ = self._folder_and_stem(model)
        single = self._single_file_bytes(folder, half, kind, rank, targets, base)
        samples = samples_bytes(RunFolder(folder.parent)) if model != STARTER else None
        pickled = None if _is_lora(folder, kind) else single
        return {".safetensors": single, ".ckpt": pickled, ".zip": folder_bytes(folder), "-samples.zip": samples}

    def _single_file_bytes(self, folder: Path, half: bool, kind: str, rank: str, targets: str, base: str) -> int | None:
        """Return the size of a file of the weights, None if it is unknown before it is written."""
        bytes_per_float, about = 2 if half else 4, read_card(str(folder)).lora
        if not is_lora_file(folder, file_kind(kind)):
            name = base or (about.base if about else "")
            place = local_base(name, self._services.workspace.models_dir) if name else folder
            return None if place is None or place.is_file() else single_file_bytes(place, bytes_per_float)
        if about is not None:
            return lora_file_bytes(folder, bytes_per_float)
        if rank and not rank.strip().isdecimal():
            return None
        config = TrainingConfig(
            pretrained_model_name_or_path=str(folder), method="lora", lora_rank=int(rank or 16),
            lora_targets=targets_named(targets), train_text_encoder=True, save_precision="fp16" if half else "fp32",
        )  # fmt: skip
        return saved_step_bytes(config)

    @on(
        "model.change half.change suffix.change kind.change lora_size.change targets.change base.change "
        "newest_photos.then",
        "model suffix half kind lora_size targets base", "suffix half weaker room prepare kind lora_part base",
        api_name="export_sizes", **QUICK,
    )  # fmt: skip
    def sizes(
        self, model: str, suffix: str, half: bool, kind: str, rank: str, max_mb: str, max_error: str, targets: str,
        base: str,
    ) -> Answer:  # fmt: skip
        """Show the size of each kind of file, and whether there is room for the selected one."""
        if model not in dict((value, label) for label, value in convertible(self._services)):
            return {"room": "", "prepare": gr.Button(interactive=False)}
        folder, _ = self._folder_and_stem(model)
        is_lora = read_card(str(folder)).lora is not None
        kinds = [kind for kind in (OWN, OTHER_KINDS[is_lora]) if suffix != ".ckpt" or not _is_lora(folder, kind)]
        kind = kind if kind in kinds else kinds[0]
        sized_otherwise = bool(max_mb or max_error) and not rank
        sizes = self._bytes(model, half, kind, rank, targets, offered_base(self._services, base))
        if kind != OWN and sized_otherwise:
            sizes |= dict.fromkeys(SINGLE_FILES, int(1e6 * float(max_mb)) if _is_number(max_mb) else None)
        choices = [
            (f"{label} · {size_in_words(size)}" if (size := sizes[value]) is not None else label, value)
            for value, label in FORMATS.items()
            if value != "-samples.zip" or sizes[value] is not None
        ]
        suffix = suffix if suffix in [value for _, value in choices] else ".safetensors"
        free = free_bytes(self._services.workspace.exports_dir)
        needed = sizes[suffix]
        fits = needed is None or needed < free
        room = f"{size_in_words(free)} free on the disk{'' if fits else ': not enough for this file'}."
        label = "Prepare the file" + (f" ({size_in_words(needed)})" if needed else "")
        return {
            "suffix": gr.Radio(choices=choices, value=suffix),
            "half": gr.Checkbox(visible=suffix in SINGLE_FILES),
            **self._kinds(folder, kinds, kind, is_single=suffix in SINGLE_FILES and model != STARTER),
            "weaker": gr.Accordion(visible=suffix != "-samples.zip" and model != STARTER),
            "room": f"<p class='db-hint'>{room}</p>",
            "prepare": gr.Button(label, interactive=fits),
        }

    def _kinds(self, folder: Path, kinds: Sequence[str], kind: str, *, is_single: bool) -> Answer:
        """Return the choices for the kind of file, and the fields that each choice needs."""
        is_lora = read_card(str(folder)).lora is not None
        labels = [(KIND_LABELS[is_lora, one != OWN], one) for one in kinds]
        missing = missing_base(str(folder), self._services.workspace.models_dir)
        is_asked = bool(missing) or (is_single and kind != OWN)
        about = f"It was trained on {missing}, which is not on this machine; choose that model." if missing else ""
        return {
            "kind": gr.Radio(labels, value=kind, visible=is_single),
            "lora_part": gr.Column(visible=is_single and not is_lora and kind != OWN),
            "base": gr.Dropdown(
                lora_bases(self._services),
                visible=is_asked,
                info=about or BASE_INFO,
                # A selection for another model must not be applied unseen.
                **({} if is_asked else {"value": ""}),
            ),
        }  # fmt: skip

    @on("newest_photos.then", "", "exports", api_name="exports", **QUICK)
    def exports(self) -> str:
        """List the files of the exports folder with their sizes and downloads."""
        folder = self._services.workspace.exports_dir
        files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
        return export_list([(path, path.stat().st_size) for path in sorted(files, key=_newest_first)])

    # Writing ---------------------------------------------------------------------------------------------------------

    @on(
        "prepare.click", "model suffix half strengths kind lora_size targets base", "download message",
        api_name="convert", concurrency_limit=1, show_progress_on="message",
    )  # fmt: skip
    def convert(
        self,
        model: str,
        suffix: str = ".safetensors",
        half: bool = True,
        unet_strength: float = 1.0,
        text_encoder_strength: float = 1.0,
        kind: str = OWN,
        rank: str = "",
        max_mb: str = "",
        max_error: str = "",
        lora_targets: str = "linear",
        base: str = "",
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Answer:
        """Write one file for other tools into the exports folder, compare it with the model, and return it.

        `suffix` is .safetensors, .ckpt, .zip (the folder) or -samples.zip; `half` stores fp16, otherwise fp32. With
        strengths other than 1 a model is base + strength x its change. Also returned is a sentence with its size.

        `kind` is own (what the step is), checkpoint or lora. A LoRA of a whole model has a `rank`, or is the best of
        `max_mb` megabytes, or the smallest that lacks at most `max_error` of the change; `lora_targets` are attention,
        linear or all. `base` is another model than the one that the step was trained from.
        """
        folder, stem = self._folder_and_stem(model)
        if suffix not in FORMATS:
            raise ExportError(
                f"{as_written(suffix)} is not a kind of file here.", "", f"Choose one of {', '.join(FORMATS)}."
            )
        strength = _strength(unet_strength, text_encoder_strength) if suffix != "-samples.zip" else WHOLE
        stem += "" if strength.is_whole else f"-unet{strength.unet:g}-text{strength.text_encoder:g}"
        exports = self._services.workspace.exports_dir
        if suffix in SINGLE_FILES:
            size = _lora_size({"rank": rank, "max_mb": max_mb, "max_error": max_error})
            path, verdict = self._weights_file(
                folder, exports / f"{stem}{suffix}", progress, strength, half=half, kind=kind, size=size,
                targets=lora_targets, base=base,
            )  # fmt: skip
        else:
            path, verdict = self._archive(folder, exports / f"{stem}{suffix}", progress, strength), ""
        kept = self._kept_on_drive(path)
        size = size_in_words(path.stat().st_size)
        sentences = " ".join(part for part in (verdict, f"Saved to {path.parent}.", kept) if part)
        return {"download": str(path), "message": panel(f"{path.name} is ready: {size}.", sentences, tone="good")}

    @on("convert.success", "download", "ready download exports", **QUICK)
    def written(self, file: str | None) -> Answer:
        """Offer the written file, with its actual size, and list it with the others."""
        size = f" ({size_in_words(Path(file).stat().st_size)})" if file else ""
        button = gr.DownloadButton(f"Download {Path(file or '').name}{size}")
        return {"ready": gr.Column(visible=True), "download": button, "exports": self.exports()}

    def _weights_file(
        self, folder: Path, target: Path, progress: gr.Progress, strength: Strength = WHOLE, *, half: bool = True,
        kind: str = OWN, size: LoraSize | None = None, targets: str = "linear", base: str = "",
    ) -> tuple[Path, str]:  # fmt: skip
        """Write a weights file with this name and a distinguishing suffix; return it and the verification's result."""
        wanted, precision = file_kind(kind), "fp16" if half else "fp32"
        base, token = offered_base(self._services, base), self._services.settings.token
        if base:
            target = target.with_name(f"{target.stem}-on-{_plain(model_name(base))}{target.suffix}")
        stem = f"{target.stem}-{precision}"
        if is_lora_file(folder, wanted):
            # Its name is a word in prompts.
            stem = target.stem.replace(".", "_") + ("" if kind == OWN else "-lora") + ("" if half else "-fp32")
        written = write_weights_file(
            folder, target.with_name(stem + target.suffix), kind=wanted, size=size, targets=targets_named(targets),
            precision="fp16" if half else "fp32", strength=strength, base=base or None,
            models_dir=self._services.workspace.models_dir, token=token.reveal() if token else None,
            on_progress=lambda done, total: progress((done, total), "Converting"),
        )  # fmt: skip
        return written.path, written.verdict

    def _archive(self, folder: Path, target: Path, progress: gr.Progress, strength: Strength) -> Path:
        from dreambooth.export.archive import zip_model, zip_samples

        def on_progress(done: int, total: int) -> None:
            progress((done, total), "Packing")

        if target.name.endswith("-samples.zip"):
            return zip_samples(RunFolder(folder.parent), target, on_progress)
        token, models_dir = self._services.settings.token, self._services.workspace.models_dir
        options = {"token": token.reveal() if token else None, "models_dir": models_dir}
        with folder_at_strength(folder, strength, target, **options) as mixed:
            return zip_model(mixed, target, on_progress)

    def _kept_on_drive(self, path: Path) -> str:
        drive = self._services.workspace.drive_dir
        if drive is None:
            return ""
        if lost := lost_drive(drive):
            return f"No copy was made: {lost}"
        try:
            return f"A copy was saved to {keep_file(path, drive / 'exports')}."
        except OSError as error:
            return f"It could not be copied to Google Drive: {quoted(error)}"

    @on(
        "push.click", "model repo_id private single_file base", "pushed", api_name="push_to_hub", concurrency_limit=1,
        show_progress_on="pushed",
    )  # fmt: skip
    def push(
        self,
        model: str,
        repo_id: str,
        private: bool = True,
        single_file: bool = True,
        base: str = "",
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> str:
        """Upload a model to the Hub with the app's own token; return a sentence with the address.

        `base` is what a LoRA is added to for the card's images, if its own base is not on this machine.
        """
        from dreambooth.export.hub import push, refuse_push

        # Whoever may not train here may not upload with the owner's token either.
        self._services.check_training()
        folder, stem = self._folder_and_stem(model)
        token = self._services.settings.hub_token
        refuse_push(repo_id.strip(), token)
        file: Path | None = None
        if single_file and read_card(str(folder)).lora is None:  # a LoRA is one file for web UIs already
            target = self._services.workspace.exports_dir / f"{stem}.safetensors"
            file, _ = self._weights_file(folder, target, progress)
        self._services.jobs.report_for_card(
            folder, lambda done, total: progress((done, total), "Pictures of other prompts, for the model card"),
            offered_base(self._services, base) or None,
        )  # fmt: skip
        progress(None, desc="Uploading")
        result = push(folder, repo_id.strip(), token=token, private=private, single_file=file)
        return panel(str(result), "", tone="good")


def _strength(unet: float, text_encoder: float) -> Strength:
    """Return the requested strength; raises ConfigError if it is out of range."""
    GenerationConfig(prompt="any", unet_strength=unet, text_encoder_strength=text_encoder).checked()
    return Strength(unet, text_encoder)


def _lora_size(given: dict[str, str]) -> LoraSize | None:
    """Return the requested size; raises ConfigError if it is not a number, and for more than one."""
    asked = {name: str(text).strip() for name, text in given.items() if str(text or "").strip()}
    problems = [FieldProblem(name, f"is {as_written(text)}: it must be a number.") for name, text in asked.items()
                if not _is_number(text)]  # fmt: skip
    if len(asked) > 1:
        problems.append(
            FieldProblem(list(asked)[1], f"cannot be combined with {next(iter(asked))}: only one can set the size.")
        )
    if problems:
        raise ConfigError(problems)
    return LoraSize(**{name: float(text) for name, text in asked.items()}).checked() if asked else None


def _plain(name: str) -> str:
    """Return a name without characters that some tools reject in file names."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")


def _is_lora(folder: Path, kind: str) -> bool:
    return is_lora_file(folder, file_kind(kind))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _newest_first(path: Path) -> float:
    return -path.stat().st_mtime


def export_list(files: list[tuple[Path, int]]) -> str:
    """Return files as links with their sizes; only files in the exports folder have an address."""
    if not files:
        return ""
    items = "".join(
        f"<li><a href='gradio_api/file={quote(str(path))}' download='{escape(path.name, quote=True)}'>"
        f"{escape(path.name)}</a> <span class='db-quiet'>{size_in_words(size)}</span></li>"
        for path, size in files
    )
    return f"<div class='db-report'><strong>Ready to download</strong><ul>{items}</ul></div>"
