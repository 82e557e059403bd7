"""The table under the files: which tools open them, and where each tool expects them."""

# Tool and version, the folder of a whole model, the folder of a LoRA. docs/files.md says what was tested; a test
# compares the two.
TOOLS = (
    ("AUTOMATIC1111 1.10.1", "`models/Stable-diffusion`", "`models/Lora`"),
    ("Forge dfdcbab6", "`models/Stable-diffusion`", "`models/Lora`"),
    ("ComfyUI a125cd84", "`models/checkpoints`", "`models/loras`"),
    ("InvokeAI 8e71a8a5", "*Models*, *Add models*", "*Models*, *Add models*"),
    ("SD.Next 058a7f0c", "`models/Stable-diffusion`", "`models/Lora`"),
    ("diffusers 0.42.1", "`from_single_file`", "`load_lora_weights`, with peft installed"),
    ("sd-scripts 48d368fa", "`--pretrained_model_name_or_path`", "`--network_weights`"),
)


def opens_in() -> str:
    """Return the table as Markdown."""
    rows = "\n".join(f"| {tool} | {model} | {lora} |" for tool, model, lora in TOOLS)
    return (
        f"| tool | a whole model goes to | a LoRA goes to |\n|---|---|---|\n{rows}\n\n"
        "LoRA files were tried with the loading code of every tool here, whole models with that of AUTOMATIC1111, "
        "ComfyUI, InvokeAI, diffusers and sd-scripts, both for Stable Diffusion 1.x. "
        "SDXL files were tried with diffusers only."
    )
