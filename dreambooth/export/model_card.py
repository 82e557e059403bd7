"""The model card for the Hub: what the model is, what it may be used for, its prompts, and how it was made."""

import json
import re
from pathlib import Path
from typing import Any

from dreambooth.config.training import SD15, SDXL_BASE, TrainingConfig
from dreambooth.export.recipe import public_settings
from dreambooth.formats.layout import CARD, Layout, layout_of, lora_file
from dreambooth.formats.natural_order import in_natural_order
from dreambooth.models.download import SUCCESSORS
from dreambooth.records.workspace import RunFolder

OPENRAIL, OPENRAIL_OF_SD2 = "creativeml-openrail-m", "openrail++"
# For bases loaded without their model card; SDXL 1.0 has the licence of SD 2.x. The SD 2.x repositories moved to
# sd2-community in November 2025.
KNOWN_LICENCES = {SD15: OPENRAIL, SDXL_BASE: OPENRAIL_OF_SD2} | {
    **{f"CompVis/stable-diffusion-v1-{number}": OPENRAIL for number in range(1, 5)},
    **{
        f"{owner}/stable-diffusion-{name}": OPENRAIL_OF_SD2
        for owner in ("stabilityai", "sd2-community")
        for name in ("2", "2-base", "2-1", "2-1-base")
    },
}
# The Hub refuses a card with any other (huggingface_hub, issue 4218); `other` and `unknown` say nothing.
HUB_LICENCES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license
"""
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
STARTER = "starter"
NO_REVISION = {"revision": None, "variant": None}
PROMPT_WITHOUT_ONE = "a photo"
MAX_SAMPLES = 8
# What `dreambooth.scoring.bleed` writes into the run's folder for a step.
BLEED_PICTURE, BLEED_REPORT = "bleed.png", "bleed.json"
MAX_BLED = 6


def model_card(model_dir: Path, repo_id: str, single_file: Path | None) -> str:
    """Return the README of a model's repository, as Markdown with the Hub's front matter."""
    settings = _settings(model_dir)
    concepts = [concept for concept in settings.get("concepts", []) if str(concept.get("instance_prompt", "")).strip()]
    prompts = [str(concept["instance_prompt"]) for concept in concepts]
    base, licence = base_and_licence(model_dir)
    is_lora, layout = lora_file(model_dir) is not None, layout_of(model_dir)
    has_file = single_file is not None
    usage = _lora_usage(repo_id, base, prompts, layout) if is_lora else _usage(repo_id, prompts, has_file, layout)
    parts = [
        _front_matter(base, licence, prompts, _widget(model_dir, settings), layout, is_lora=is_lora),
        f"# {_plain(repo_id.rpartition('/')[2])}\n",
        _about(base, licence, concepts, is_lora=is_lora),
        _samples(model_dir),
        _bleed(model_dir),
        usage,
        _how_it_was_made(settings, _object(model_dir / "card.json").get("extensions")),
    ]
    return "\n".join(part for part in parts if part)


def settings_json(model_dir: Path) -> str:
    """Return the settings of the training as JSON, without paths of this machine."""
    return json.dumps(_settings(model_dir), indent=2, sort_keys=True) + "\n"


def card_json(model_dir: Path) -> str:
    """Return the model's card.json without paths of this machine.

    A LoRA's base is then the Hub id it comes from, or empty: users name their copy with --base.
    """
    card = _object(model_dir / CARD)
    if isinstance(about := card.get("lora"), dict):
        source = base_and_licence(model_dir)[0]
        public = {name: value for name, value in about.items() if name not in ("vae", "tokenizer")}
        # The Hub's branch and variant.
        card["lora"] = public | {"base": source} | ({} if about.get("base") == source else NO_REVISION)
    return json.dumps(card, indent=2) + "\n"


def base_and_licence(model_dir: Path) -> tuple[str, str]:
    """Return the Hub id (or `starter`) of the model's base and its licence; empty if unknown."""
    card, base_name = (
        _object(model_dir / "card.json"),
        _object(model_dir / "args.json").get("pretrained_model_name_or_path"),
    )
    base, licence = (card[name] if isinstance(card.get(name), str) else "" for name in ("source", "licence"))
    named = SUCCESSORS.get(str(base_name), str(base_name))
    if not base and named in KNOWN_LICENCES:
        # Models of the seed script, and ours from before cards recorded it; any other name may be a local folder.
        base = named
    if base != STARTER and not HUB_ID.fullmatch(base):
        base = ""
    licence = licence if licence.strip().lower() not in ("", "other", "unknown") else KNOWN_LICENCES.get(base, "")
    return base, licence.strip()


def _settings(model_dir: Path) -> dict[str, Any]:
    settings = public_settings(model_dir)
    if "pretrained_model_name_or_path" in settings:
        settings["pretrained_model_name_or_path"] = base_and_licence(model_dir)[0] or "a local model"
    return settings


def _object(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


# Its parts ----------------------------------------------------------------------------------------------------------


def _front_matter(
    base: str, licence: str, prompts: list[str], widget: list[dict[str, Any]], layout: Layout, *, is_lora: bool
) -> str:
    from huggingface_hub import ModelCardData

    # The library's own writer, which accepts YAML options and is not exported.
    from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]

    has_base = bool(base) and base != STARTER
    own: dict[str, Any] = {"base_model_relation": "adapter"} if is_lora and has_base else {}
    own |= {"widget": widget} if is_lora and widget else {}
    tags = [*layout.hub_tags, "text-to-image", "dreambooth"]
    data: Any = ModelCardData(
        license=licence.lower() if licence.lower() in HUB_LICENCES.split() else "other",
        base_model=base if has_base else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[*tags, "lora"] if is_lora else tags,
        instance_prompt=prompts[0] if prompts else None,
        **own,
    )
    # Escaped, because characters that change the text direction would otherwise be kept.
    text: str = yaml_dump(data.to_dict(), sort_keys=False, allow_unicode=False)
    return f"---\n{text}---\n"


def _widget(model_dir: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the sample images with their prompts, for the Hub's widget."""
    prompts = [line for line in str(settings.get("save_sample_prompt") or "").splitlines() if line.strip()]
    return [
        {"text": prompt, "output": {"url": f"samples/{name}"}}
        for prompt, name in zip(_prompt_of_each(prompts, settings), _sample_names(model_dir), strict=False)
    ]


def _prompt_of_each(prompts: list[str], settings: dict[str, Any]) -> list[str]:
    """Return the prompt of each sample image: images of one prompt are consecutive."""
    number = settings.get("n_save_sample", TrainingConfig().n_save_sample)
    return [prompt for prompt in prompts for _ in range(number if isinstance(number, int) else 1)]


def _about(base: str, licence: str, concepts: list[dict[str, Any]], *, is_lora: bool) -> str:
    linked = f"[{base}](https://huggingface.co/{base})" if base else "a local model"
    if base == STARTER:
        linked = "the starter of DreamBooth Studio, a toy model"
    lines = [f"A DreamBooth {'LoRA' if is_lora else 'model'}, fine-tuned from {linked}.", ""]
    if concepts:
        lines += ["What to write in a prompt:", "", *map(_concept, concepts), ""]
    if licence:
        lines.append(f"The base's licence, {_code(licence)}, holds for this model too.")
    else:
        lines.append("The licence of its base is not known here; it holds for this model too.")
    return "\n".join([*lines, ""])


def _concept(concept: dict[str, Any]) -> str:
    of_class = f", of the class {_code(concept['class_prompt'])}" if concept.get("class_prompt") else ""
    return f"- {_code(concept['instance_prompt'])}{of_class}"


def _samples(model_dir: Path) -> str:
    pictures = [f"![A sample picture](samples/{name})" for name in _sample_names(model_dir)]
    return "\n".join(["## Samples", "", *pictures, ""]) if pictures else ""


def _sample_names(model_dir: Path) -> list[str]:
    names = [file.name for file in (model_dir / "samples").glob("*.png") if re.fullmatch(r"[0-9]+\.png", file.name)]
    return in_natural_order(names)[:MAX_SAMPLES]


def bleed_dir(model_dir: Path) -> Path:
    """Return the folder of the report on what a run's step changed besides its subject."""
    return RunFolder(model_dir.absolute().parent).bleed / model_dir.name


def _bleed(model_dir: Path) -> str:
    """Return the card's section on side effects, or that they were not measured."""
    rows = [row for row in _object(bleed_dir(model_dir) / BLEED_REPORT).get("prompts", []) if _is_bled(row)]
    if not rows:
        return "## What else it changed\n\nNot measured yet: run `python -m dreambooth bleed RUN`.\n"
    lines = [
        "## What else it changed", "",
        "Prompts without the identifier, the same seeds with the base and with this model; the most changed first.", "",
        "| prompt | change | became the subject |", "|---|---|---|",
    ]  # fmt: skip
    for row in rows[:MAX_BLED]:
        became = "" if row["became_subject"] is None else f"{row['became_subject']:.2f}"
        lines.append(f"| {_cell(row['prompt'] or '(no words)')} | {row['change']:.2f} | {became} |")
    if (bleed_dir(model_dir) / BLEED_PICTURE).is_file():
        lines += ["", f"![The base and this model side by side]({BLEED_PICTURE})"]
    return "\n".join([*lines, ""])


def _is_bled(row: object) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        return False
    became = row.get("became_subject")
    return all(isinstance(value, int | float) for value in (row.get("change"), 0 if became is None else became))


def _diffusers_lines(model: str, prompts: list[str], layout: Layout, *more: str) -> list[str]:
    """Return the lines that generate an image with a pipeline of this model, after the given ones."""
    prompt = prompts[0] if prompts else PROMPT_WITHOUT_ONE
    return [
        "```python",
        "import torch", f"from diffusers import {layout.pipeline}", "",
        'device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)',
        f"pipe = {layout.pipeline}.from_pretrained({_quoted(model)}, torch_dtype=dtype).to(device)",
        *more,
        f'pipe({_quoted(prompt)}, num_inference_steps=24).images[0].save("picture.png")', "```", "",
    ]  # fmt: skip


def _lora_usage(repo_id: str, base: str, prompts: list[str], layout: Layout) -> str:
    name = lora_name(repo_id)
    base = base if base and base != STARTER else "path/to/the/base"
    line = f"pipe.load_lora_weights({_quoted(repo_id)}, weight_name={_quoted(f'{name}.safetensors')})"
    return "\n".join([
        "## Use", "", "With diffusers and peft (`pip install diffusers transformers peft`; while the repository is "
        "private, after `hf auth login`):", "", *_diffusers_lines(base, prompts, layout, line),
        f"In web UIs it adds to any checkpoint of the base's family. Download `{name}.safetensors` and put it into", "",
        f"- AUTOMATIC1111, Forge and SD.Next: `models/Lora/`, with `<lora:{name}:1>` in the prompt",
        "- ComfyUI: `models/loras/`, with the node *Load LoRA*",
        "- InvokeAI: *Models*, *Add Models*, from the file", "",
    ])  # fmt: skip


def lora_name(repo_id: str) -> str:
    """Return a LoRA's name in a repository and in prompts: always the same, so that a push replaces it."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", repo_id.rpartition("/")[2]).strip("-") or "lora"


def _usage(repo_id: str, prompts: list[str], has_single_file: bool, layout: Layout) -> str:
    lines = [
        "## Use", "", "With diffusers (while the repository is private, after `hf auth login`):", "",
        *_diffusers_lines(repo_id, prompts, layout),
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


def _how_it_was_made(settings: dict[str, Any], extensions: object) -> str:
    if not settings:
        return ""
    defaults = TrainingConfig().to_json()
    changed = {name: value for name, value in settings.items() if name in defaults and value != defaults[name]}
    rows = [f"| {name} | {_cell(value)} |" for name, value in sorted(changed.items()) if name != "concepts"]
    head = [
        "## How it was made",
        "",
        "Trained with DreamBooth Studio. Settings that are not listed have their default values.",
        "",
    ]
    if isinstance(extensions, list) and extensions:
        head += [f"The training was {'; then '.join(_plain(str(one)) for one in extensions)}.", ""]
    return "\n".join([*head, "| setting | value |", "|---|---|", *rows, "", "All settings: `dreambooth.json`.", ""])


# Words of others ----------------------------------------------------------------------------------------------------


def _quoted(text: str) -> str:
    """Return a text quoted so that both YAML and Python read it, whatever its characters."""
    # JSON's escapes are valid in both, except for characters beyond 16 bits, which it writes as two.
    return "".join(
        char if char.isprintable() else f"\\u{ord(char):04x}" if ord(char) < 2**16 else f"\\U{ord(char):08x}"
        for char in json.dumps(text, ensure_ascii=False)
    )


def _code(value: object) -> str:
    """Return a value as inline code in Markdown, whatever its characters."""
    # Unprintable characters may change the text direction, or cannot be encoded.
    text = " ".join("".join(char if char.isprintable() else " " for char in str(value)).split())
    fence = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}" if text else "nothing"


def _cell(value: object) -> str:
    return _code(value).replace("|", "\\|")


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9 ._-]", "", text)
