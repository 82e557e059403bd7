"""The page of a model on the Hub: what it is, what it may be used for, what to type, and how it was made."""

import json
import re
from pathlib import Path
from typing import Any

from dreambooth.config import SD15, TrainingConfig
from dreambooth.export.recipe import public_settings

# Of bases that were loaded without their page.
KNOWN_LICENCES = {
    SD15: "creativeml-openrail-m",
    "CompVis/stable-diffusion-v1-4": "creativeml-openrail-m",
    "stabilityai/stable-diffusion-2": "openrail++",
    "stabilityai/stable-diffusion-2-base": "openrail++",
    "stabilityai/stable-diffusion-2-1": "openrail++",
    "stabilityai/stable-diffusion-2-1-base": "openrail++",
}
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
LICENCE = re.compile(r"[A-Za-z0-9.+_-]+")
PROMPT_WITHOUT_ONE = "a photo"


def model_card(model_dir: Path, repo_id: str, single_file: Path | None) -> str:
    """Return the README of a model's repository, as Markdown with the Hub's front matter."""
    settings = public_settings(model_dir)
    prompts = [str(concept.get("instance_prompt", "")) for concept in settings.get("concepts", [])]
    base, licence = base_and_licence(model_dir)
    parts = [
        _front_matter(base, licence, prompts),
        f"# {_plain(repo_id.rpartition('/')[2])}\n",
        _about(base, licence, prompts, settings),
        _samples(model_dir),
        _usage(repo_id, prompts, has_single_file=single_file is not None),
        _how_it_was_made(settings),
    ]
    return "\n".join(part for part in parts if part)


def settings_json(model_dir: Path) -> str:
    """Return the settings of the training as JSON, without places on anybody's machine."""
    return json.dumps(public_settings(model_dir), indent=2, sort_keys=True) + "\n"


def base_and_licence(model_dir: Path) -> tuple[str, str]:
    """Return the Hub id (or `starter`) that the model comes from and its licence; empty where they are not known."""
    try:
        card = dict(json.loads((model_dir / "card.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        card = {}
    base, licence = (card.get(name) if isinstance(card.get(name), str) else "" for name in ("source", "licence"))
    licence = licence or KNOWN_LICENCES.get(str(base), "")
    return str(base), licence if LICENCE.fullmatch(licence) else ""


def _front_matter(base: str, licence: str, prompts: list[str]) -> str:
    # JSON strings are YAML strings, whatever is in them.
    lines = ["---", f"license: {json.dumps(licence or 'other')}"]
    if HUB_ID.fullmatch(base):
        lines.append(f"base_model: {json.dumps(base)}")
    lines += ["library_name: diffusers", "pipeline_tag: text-to-image", "tags:"]
    lines += [f"- {tag}" for tag in ("stable-diffusion", "stable-diffusion-diffusers", "text-to-image", "dreambooth")]
    if prompts:
        lines.append(f"instance_prompt: {json.dumps(prompts[0])}")
    return "\n".join([*lines, "---", ""])


def _about(base: str, licence: str, prompts: list[str], settings: dict[str, Any]) -> str:
    linked = f"[{base}](https://huggingface.co/{base})" if HUB_ID.fullmatch(base) else base or "a local model"
    lines = [f"A DreamBooth model, taught from {linked}.", ""]
    if prompts:
        lines += ["What to write in a prompt:", "", *(f"- {_code(prompt)}" for prompt in prompts), ""]
    if licence:
        lines.append(f"The base's licence, {licence}, holds for this model too.")
    else:
        lines.append("The licence of its base is not known here; it holds for this model too.")
    return "\n".join([*lines, ""])


def _samples(model_dir: Path) -> str:
    names = sorted(file.name for file in (model_dir / "samples").glob("*.png") if re.fullmatch(r"\d+\.png", file.name))
    if not names:
        return ""
    pictures = [f"![A sample picture](samples/{name})" for name in names[:8]]
    return "\n".join(["## Samples", "", *pictures, ""])


def _usage(repo_id: str, prompts: list[str], *, has_single_file: bool) -> str:
    prompt = prompts[0] if prompts else PROMPT_WITHOUT_ONE
    lines = [
        "## Use", "", "With diffusers:", "", "```python", "import torch",
        "from diffusers import StableDiffusionPipeline", "",
        'device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)',
        f"pipe = StableDiffusionPipeline.from_pretrained({json.dumps(repo_id)}, torch_dtype=dtype).to(device)",
        f"pipe({json.dumps(prompt)}, num_inference_steps=24).images[0].save(\"picture.png\")", "```", "",
    ]  # fmt: skip
    if has_single_file:
        name = f"{repo_id.rpartition('/')[2]}.safetensors"
        lines += [
            f"In web UIs, download `{name}` and put it into", "",
            "- AUTOMATIC1111 and Forge: `models/Stable-diffusion/`",
            "- ComfyUI: `models/checkpoints/`",
            "- InvokeAI: *Models*, *Add Models*, from the file", "",
        ]  # fmt: skip
    else:
        lines += [
            "For web UIs, convert the folder to one file: `python -m dreambooth convert FOLDER model.safetensors`.",
            "",
        ]
    return "\n".join(lines)


def _how_it_was_made(settings: dict[str, Any]) -> str:
    if not settings:
        return ""
    defaults = TrainingConfig().to_json()
    changed = {name: value for name, value in settings.items() if name in defaults and value != defaults[name]}
    rows = [f"| {name} | {_code(value)} |" for name, value in sorted(changed.items()) if name != "concepts"]
    head = [
        "## How it was made",
        "",
        "Taught with DreamBooth Studio; settings that are not listed are its defaults.",
        "",
    ]
    return "\n".join([*head, "| setting | value |", "|---|---|", *rows, "", "All settings: `dreambooth.json`.", ""])


def _code(value: object) -> str:
    """Return a value as code in Markdown, on one line and in one cell, whatever characters it has."""
    text = " ".join(str(value).split()).replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9 ._-]", "", text)
