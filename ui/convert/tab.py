"""The third tab: a saved step as files for other tools, their downloads, the Hub, and what takes the disk."""

import re
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

import gradio as gr

from dreambooth.config.generation import GenerationConfig
from dreambooth.durable import free_bytes
from dreambooth.errors import ExportError, quoted
from dreambooth.export.merged import folder_at_strength
from dreambooth.export.sizes import folder_bytes, samples_bytes, single_file_bytes
from dreambooth.models.base import STARTER
from dreambooth.models.saved_step import model_name
from dreambooth.models.sd_file import starter_folder
from dreambooth.models.strength import WHOLE, Strength
from dreambooth.records.drive import keep_file, lost_drive
from dreambooth.records.workspace import RunFolder
from ui.boundary import QUICK, Services, shown
from ui.convert import storage as storage_section
from ui.events import Answer, on
from ui.events import connect as connect_events
from ui.fields import strength_sliders
from ui.render import panel, size_in_words

FORMATS = {
    ".safetensors": "One .safetensors file: A1111, ComfyUI and most others",
    ".ckpt": "One .ckpt file: older tools",
    ".zip": "The diffusers folder, as .zip",
    "-samples.zip": "The run's sample pictures, as .zip",
}
BAKED_IN = (
    "The file is then base + strength x what was learned, which dials an overdone training back. "
    "A share on the Hub stays as it was taught."
)
SINGLE_FILES = (".safetensors", ".ckpt")


@dataclass(frozen=True)
class ConvertTab:
    """The tab's components that others read or that events fill."""

    model: gr.Dropdown
    advice: gr.HTML
    suffix: gr.Radio
    half: gr.Checkbox
    weaker: gr.Accordion
    strengths: dict[str, gr.Slider]
    prepare: gr.Button
    message: gr.HTML
    room: gr.HTML
    exports: gr.HTML
    ready: gr.Column
    download: gr.DownloadButton
    repo_id: gr.Textbox
    private: gr.Checkbox
    single_file: gr.Checkbox
    push: gr.Button
    pushed: gr.HTML
    storage: storage_section.StorageSection


def build(services: Services) -> ConvertTab:
    """Lay out the tab; `connect` gives it life."""
    choices = convertible(services)
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            model = gr.Dropdown(
                choices, value=choices[0][1], label="Model", allow_custom_value=True, elem_id="convert-model",
                info="A saved step of a run, or a model folder.",
            )  # fmt: skip
            advice = gr.HTML(elem_id="convert-advice")
            suffix = gr.Radio(
                [(label, value) for value, label in FORMATS.items()], value=".safetensors", label="What you get",
                elem_id="convert-format",
            )  # fmt: skip
            half = gr.Checkbox(
                True, label="Half precision (fp16)", elem_id="convert-half",
                info="What most tools compute in, at half the size of fp32.",
            )  # fmt: skip
            with gr.Accordion("Weaker or stronger than it was taught", open=False, elem_id="convert-weaker") as weaker:
                gr.HTML(f"<p class='db-hint'>{BAKED_IN}</p>")
                with gr.Row(equal_height=False):
                    strengths = strength_sliders("convert")
            room = gr.HTML(elem_id="convert-room")
            prepare = gr.Button("Prepare the file", variant="primary", elem_id="prepare")
        with gr.Column(scale=7, min_width=320):
            message = gr.HTML(
                "<div class='db-status'><span class='db-quiet'>The file is written, read again and compared with the "
                "model tensor by tensor. Only then is it offered.</span></div>",
                elem_id="convert-message",
            )  # fmt: skip
            with gr.Column(visible=False) as ready:
                download = gr.DownloadButton("Download the file", variant="primary", elem_id="download")
            exports = gr.HTML(elem_id="exports")
    gr.HTML(
        f"<p class='db-hint'>Files are kept in <code>{services.workspace.exports_dir}</code> "
        "and can be downloaded by everyone who can open this page.</p>"
    )
    with gr.Accordion("Share on the Hub", open=False, elem_id="share"):
        with gr.Row():
            repo_id = gr.Textbox(
                label="Repository", placeholder="owner/name, or a name of your own account", elem_id="repo-id",
                info="One that is there already is updated; its name and visibility stay.",
            )  # fmt: skip
            private = gr.Checkbox(True, label="Private", info="Only you see it.", elem_id="push-private")
            single_file = gr.Checkbox(True, label="With one .safetensors file for web UIs", elem_id="push-file")
        push = gr.Button("Upload", elem_id="push")
        pushed = gr.HTML(elem_id="push-message")
    storage = storage_section.build()
    return ConvertTab(
        model,
        advice,
        suffix,
        half,
        weaker,
        strengths,
        prepare,
        message,
        room,
        exports,
        ready,
        download,
        repo_id,
        private,
        single_file,
        push,
        pushed,
        storage,
    )


def convertible(services: Services) -> list[tuple[str, str]]:
    """Return the models that lie on this machine."""
    return [(label, value) for label, value in services.jobs.models() if value == STARTER or Path(value).is_dir()]


def connect(tab: ConvertTab, services: Services, page: gr.Blocks) -> None:
    """Join the tab's components to what they do."""
    handlers = Handlers(services)
    connect_events(handlers, vars(tab) | {"page": page})
    gr.api(handlers.list_sizes, api_name="list_sizes", concurrency_limit=1)
    storage_section.connect(tab.storage, services)


class Handlers:
    """What the tab does, as functions of values."""

    def __init__(self, services: Services) -> None:
        self._services = services

        def list_sizes(model: str) -> dict[str, int]:
            """Return the bytes that each kind of file of a model takes, by suffix; single files in fp16."""
            return {suffix: size for suffix, size in self._bytes(model, True).items() if size is not None}

        self.list_sizes = shown(list_sizes)

    def _folder_and_stem(self, model: str) -> tuple[Path, str]:
        """Return a listed model's folder and a name for its files; raises ExportError for what is not in the list."""
        if model not in dict((value, label) for label, value in convertible(self._services)):
            raise ExportError(f"{model!r} cannot be converted.", "It is not in the list.", "Choose one of the list.")
        if model == STARTER:
            return starter_folder(), "starter-toy"
        # `dog-3/800` becomes dog-3-step-800.
        name = model_name(model).replace("/", "-step-")
        return Path(model), re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")

    # Sizes -----------------------------------------------------------------------------------------------------------

    def _bytes(self, model: str, half: bool) -> dict[str, int | None]:
        """Return what each kind of file will take, None for what there is not or cannot be told."""
        folder, _ = self._folder_and_stem(model)
        single = single_file_bytes(folder, 2 if half else 4)
        samples = samples_bytes(RunFolder(folder.parent)) if model != STARTER else None
        return {".safetensors": single, ".ckpt": single, ".zip": folder_bytes(folder), "-samples.zip": samples}

    @on(
        "model.change half.change suffix.change page.load", "model suffix half", "suffix half weaker room prepare",
        api_name="export_sizes", **QUICK,
    )  # fmt: skip
    def sizes(self, model: str, suffix: str, half: bool) -> Answer:
        """Tell what each kind of file will take, and whether there is room for the chosen one."""
        if model not in dict((value, label) for label, value in convertible(self._services)):
            return {"room": "", "prepare": gr.Button(interactive=False)}
        sizes = self._bytes(model, half)
        choices = [
            (f"{label} · {size_in_words(size)}" if (size := sizes[value]) is not None else label, value)
            for value, label in FORMATS.items()
            if value != "-samples.zip" or sizes[value] is not None
        ]
        suffix = suffix if suffix in [value for _, value in choices] else ".safetensors"
        free = free_bytes(self._services.workspace.exports_dir)
        needed = sizes[suffix]
        fits = needed is None or needed < free
        told = f"{size_in_words(free)} are free on the disk{'' if fits else ': too little for it'}."
        label = "Prepare the file" + (f" ({size_in_words(needed)})" if needed else "")
        return {
            "suffix": gr.Radio(choices=choices, value=suffix),
            "half": gr.Checkbox(visible=suffix in SINGLE_FILES),
            "weaker": gr.Accordion(visible=suffix != "-samples.zip" and model != STARTER),
            "room": f"<p class='db-hint'>{told}</p>",
            "prepare": gr.Button(label, interactive=fits),
        }

    @on("page.load", "", "exports", api_name="exports", **QUICK)
    def exports(self) -> str:
        """List the files of the exports folder with their sizes, each to download."""
        folder = self._services.workspace.exports_dir
        files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
        return export_list([(path, path.stat().st_size) for path in sorted(files, key=_newest_first)])

    # Writing ---------------------------------------------------------------------------------------------------------

    @on(
        "prepare.click", "model suffix half strengths", "download message", api_name="convert", concurrency_limit=1,
        show_progress_on="message",
    )  # fmt: skip
    def convert(
        self,
        model: str,
        suffix: str = ".safetensors",
        half: bool = True,
        unet_strength: float = 1.0,
        text_encoder_strength: float = 1.0,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Answer:
        """Write one file for other tools into the exports folder, compare it with the model, and return it.

        `suffix` is .safetensors, .ckpt, .zip (the folder) or -samples.zip; `half` stores fp16, otherwise fp32. With
        other strengths than 1 a model is base + strength x what was learned. Also returned is a sentence with its size.
        """
        folder, stem = self._folder_and_stem(model)
        if suffix not in FORMATS:
            raise ExportError(f"{suffix!r} is no kind of file here.", "", f"Choose one of {', '.join(FORMATS)}.")
        strength = _strength(unet_strength, text_encoder_strength) if suffix != "-samples.zip" else WHOLE
        stem += "" if strength.is_whole else f"-unet{strength.unet:g}-text{strength.text_encoder:g}"
        exports = self._services.workspace.exports_dir
        if suffix in SINGLE_FILES:
            target = exports / f"{stem}-{'fp16' if half else 'fp32'}{suffix}"
            path, verdict = self._single_file(folder, target, progress, strength)
        else:
            path, verdict = self._archive(folder, exports / f"{stem}{suffix}", progress, strength), ""
        kept = self._kept_on_drive(path)
        size = size_in_words(path.stat().st_size)
        sentences = " ".join(part for part in (verdict, f"It lies in {path.parent}.", kept) if part)
        return {"download": str(path), "message": panel(f"{path.name} is ready: {size}.", sentences, tone="good")}

    @on("convert.success", "download", "ready download exports", **QUICK)
    def written(self, file: str | None) -> Answer:
        """Offer what was written, under its true size, and list it with the others."""
        size = f" ({size_in_words(Path(file).stat().st_size)})" if file else ""
        button = gr.DownloadButton(f"Download {Path(file or '').name}{size}")
        return {"ready": gr.Column(visible=True), "download": button, "exports": self.exports()}

    def _single_file(
        self, folder: Path, target: Path, progress: gr.Progress, strength: Strength = WHOLE
    ) -> tuple[Path, str]:
        from dreambooth.export.verify import convert_verified

        verdict = convert_verified(
            folder, target, precision="fp16" if "-fp16." in target.name else "fp32", strength=strength,
            models_dir=self._services.workspace.models_dir,
            on_progress=lambda done, total: progress((done, total), "Converting"),
        )  # fmt: skip
        return verdict.path, str(verdict)

    def _archive(self, folder: Path, target: Path, progress: gr.Progress, strength: Strength) -> Path:
        from dreambooth.export.archive import zip_model, zip_samples

        def on_progress(done: int, total: int) -> None:
            progress((done, total), "Packing")

        if target.name.endswith("-samples.zip"):
            return zip_samples(RunFolder(folder.parent), target, on_progress)
        token, models_dir = self._services.settings.token, self._services.workspace.models_dir
        told = {"token": token.reveal() if token else None, "models_dir": models_dir}
        with folder_at_strength(folder, strength, target, **told) as mixed:
            return zip_model(mixed, target, on_progress)

    def _kept_on_drive(self, path: Path) -> str:
        drive = self._services.workspace.drive_dir
        if drive is None:
            return ""
        if lost := lost_drive(drive):
            return f"No copy was made: {lost}"
        try:
            return f"A copy is at {keep_file(path, drive / 'exports')}."
        except OSError as error:
            return f"It could not be copied to Google Drive: {quoted(error)}"

    @on(
        "push.click", "model repo_id private single_file", "pushed", api_name="push_to_hub", concurrency_limit=1,
        show_progress_on="pushed",
    )  # fmt: skip
    def push(
        self,
        model: str,
        repo_id: str,
        private: bool = True,
        single_file: bool = True,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> str:
        """Upload a model to the Hub in the name of the app's own token; returns a sentence with the address."""
        from dreambooth.export.hub import push

        # Whoever may not train here may not upload in the owner's name either.
        self._services.check_training()
        folder, stem = self._folder_and_stem(model)
        file: Path | None = None
        if single_file:
            target = self._services.workspace.exports_dir / f"{stem}-fp16.safetensors"
            file, _ = self._single_file(folder, target, progress)
        self._services.jobs.report_for_card(
            folder, lambda done, total: progress((done, total), "Pictures of other things, for the card")
        )
        token = self._services.settings.token
        progress(None, desc="Uploading")
        result = push(
            folder, repo_id.strip(), token=token.reveal() if token else None, private=private, single_file=file
        )
        return panel(str(result), "", tone="good")


def _strength(unet: float, text_encoder: float) -> Strength:
    """Return the strength that was asked for; raises ConfigError for one beyond the range."""
    GenerationConfig(prompt="any", unet_strength=unet, text_encoder_strength=text_encoder).checked()
    return Strength(unet, text_encoder)


def _newest_first(path: Path) -> float:
    return -path.stat().st_mtime


def export_list(files: list[tuple[Path, int]]) -> str:
    """Return files as links with their sizes; the exports folder is the only one whose files have an address."""
    if not files:
        return ""
    items = "".join(
        f"<li><a href='gradio_api/file={quote(str(path))}' download='{escape(path.name, quote=True)}'>"
        f"{escape(path.name)}</a> <span class='db-quiet'>{size_in_words(size)}</span></li>"
        for path, size in files
    )
    return f"<div class='db-report'><strong>Ready to download</strong><ul>{items}</ul></div>"
