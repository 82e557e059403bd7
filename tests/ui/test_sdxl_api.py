"""A base of SDXL's kind through the page's API with both methods, from photos to a repository on the Hub."""

from pathlib import Path

import pytest
from gradio_client import Client, handle_file

from dreambooth.data.samples import sample_folder
from dreambooth.formats.layout import family_of
from dreambooth.models.lora_file import read_lora
from tests.harness.hub_stand_in import hub_stand_in
from tests.harness.open_page import SHORT, finished, open_page
from tests.harness.tiny import tiny_sdxl_base

QUICK_RUN = {name: value for name, value in SHORT.items() if name != "use_8bit_adam"} | {
    "max_train_steps": 2, "save_sample_prompt": "photo of zwx dog", "num_probe_images": 1,
}  # fmt: skip
ONE_PICTURE = ("photo of zwx dog", "", 1, 1, 3.0, "32", "32", "11")


def test_sdxl_is_planned_trained_shown_scored_converted_and_pushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_page(tmp_path, token="hf_of_ann_and_may_write") as page:
        base = str(tiny_sdxl_base(page.workspace.models_dir / "sdxl"))
        client = Client(page.url, verbose=False)
        files = [handle_file(str(path)) for path in sorted(sample_folder().glob("*.png"))]
        photo_set = client.predict(files, api_name="/upload_photos")[0]
        runs, steps = {}, {}
        for method, rate in (("full", 2e-6), ("lora", 1e-4)):
            asked = (photo_set, base, "recommended", QUICK_RUN, method)
            settings = client.predict(*asked, api_name="/plan_training")["settings"]
            # SDXL's: text encoders stay as they are, whole captions are padded, and sizes are the base's own.
            assert (settings["train_text_encoder"], settings["resolution"]) == (False, 32)
            assert settings["learning_rate"] == rate
            runs[method] = client.predict(*asked, api_name="/start_training")
            status = finished(client, runs[method])
            assert status["status"] == "done", status["error"]
            steps[method] = status["models"][-1]
            pictures, sentence = client.predict(steps[method], *ONE_PICTURE, api_name="/generate")
            assert len(pictures) == 1, sentence
        compared, _ = client.predict(runs["lora"], [0, 2], *ONE_PICTURE, api_name="/compare")
        assert len(compared) == 3
        assert client.predict(runs["lora"], api_name="/score_run")["run"] == runs["lora"]
        whole, _ = client.predict(steps["full"], ".safetensors", True, api_name="/convert")
        assert family_of(Path(whole)) == "sdxl"
        file, _ = client.predict(steps["lora"], ".safetensors", True, api_name="/convert")
        assert read_lora(Path(file)).family == "SDXL"
        labels = {one["model"]: one["label"] for one in client.predict(api_name="/list_models")}
        assert labels[steps["lora"]].endswith("(LoRA, SDXL)")
        assert labels[steps["full"]].endswith("(full model, SDXL)")
        with hub_stand_in() as hub:
            for name, value in {"ENDPOINT": hub.address, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
                monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
            client.predict(steps["lora"], "ann/dog", False, False, api_name="/push_to_hub")
            names = hub.repositories["ann/dog"].files
        assert {"README.md", "dog.safetensors"} <= names.keys()
        assert b"stable-diffusion-xl" in names["README.md"]
