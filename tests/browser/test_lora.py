"""A LoRA as a person makes one: chosen first, trained, listed, used for pictures, and converted both ways."""

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from dreambooth.data.samples import sample_folder
from dreambooth.models.lora_file import read_lora
from tests.harness.open_page import OpenPage, open_page
from tests.harness.visit import Visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser
# A run of seconds on the tiny base; what is in a folded part is typed last.
FEW = {
    "field-max_train_steps": "2", "field-save_interval": "2", "field-num_class_images": "2", "field-lora_rank": "4",
    "field-n_save_sample": "1", "field-num_probe_images": "0", "field-save_infer_steps": "1",
}  # fmt: skip


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """Open a page that really trains."""
    with open_page(tmp_path_factory.mktemp("page")) as page:
        yield page


@pytest.fixture
def visit(browser: "Browser", opened: OpenPage) -> Iterator[Visit]:
    visit = Visit(browser, opened.url)
    yield visit
    visit.close()


def choose(visit: Visit, field: str, option: str) -> None:
    """Choose an option of a dropdown by its label."""
    visit.page.locator(f"#{field} input").click()
    visit.page.get_by_role("option", name=option).first.click()


def with_photos(visit: Visit) -> None:
    photos = sorted(sample_folder().glob("*.png"))
    visit.page.locator("#photos input[type=file]").first.set_input_files([str(path) for path in photos])
    visit.until("report", "^5 photos")


def test_the_method_comes_first_and_the_form_follows_it(visit: Visit) -> None:
    page = visit.page
    with_photos(visit)
    visit.new_training()
    choose(visit, "base", "tiny")
    visit.until(
        "field-method",
        r"(?s)A whole model, [\d.]+ [kM]B.*A LoRA, [\d.]+ [kM]B, that adds to any Stable Diffusion 1.x check",
    )
    page.wait_for_function("document.querySelector('#field-learning_rate input').value == '0.000001'")
    assert not page.locator("#field-lora_rank").is_visible()
    visit.fill("field-seed", "99")
    page.locator("#field-method").get_by_text("A LoRA").click()
    page.locator("#field-lora_rank").wait_for()
    page.wait_for_function("document.querySelector('#field-learning_rate input').value == '0.0001'")
    assert visit.value("field-seed") == "99", "what was typed stays"
    visit.unfold("advanced")
    assert not page.locator("#field-use_8bit_adam").is_visible()
    before = page.locator("#field-method").inner_text()
    visit.fill("field-lora_rank", "320")
    page.wait_for_function("before => document.querySelector('#field-method').innerText != before", arg=before)
    page.locator("#field-method").get_by_text("A whole model").click()
    page.locator("#field-use_8bit_adam").wait_for()
    assert not page.locator("#field-lora_rank").is_visible()
    visit.until("plan", r"writes up to \d+")


def test_from_the_choice_to_a_file(visit: Visit, opened: OpenPage) -> None:
    page = visit.page
    with_photos(visit)
    visit.new_training()
    choose(visit, "base", "tiny")
    page.locator("#field-method").get_by_text("A LoRA").click()
    page.locator("#field-lora_rank").wait_for()
    page.wait_for_function("document.querySelector('#field-learning_rate input').value == '0.0001'")
    visit.unfold("advanced")
    for field, value in FEW.items():
        visit.fill(field, value)
    page.locator("#start").click()
    visit.until("run-status", "Finished after 2 steps")
    visit.run()
    visit.until("runs-list", "LoRA")
    page.locator("#make-pictures").click()
    page.wait_for_function("document.querySelector('#generate-model input')?.value.includes('step 2 (LoRA, SD 1.x)')")
    visit.fill("generate-num_images_per_prompt", "1")
    page.locator("#generate").click()
    visit.until("generate-message", "Done: 1 picture in")
    visit.tab("Convert")
    page.wait_for_function("document.querySelector('#convert-model input')?.value.includes('step 2 (LoRA, SD 1.x)')")
    visit.until("convert-kind", "The LoRA as it is")
    page.locator("#prepare").click()
    visit.until("convert-message", "is ready")
    (file,) = opened.workspace.exports_dir.glob("*.safetensors")
    assert read_lora(file).rank == 4
    visit.until("exports", r"\.json")
    page.locator("#convert-kind").get_by_text("merged into a base model").click()
    page.locator("#convert-base").wait_for()
    page.locator("#prepare").click()
    visit.until("convert-message", "-fp16.safetensors is ready")
    assert len([*opened.workspace.exports_dir.glob("*.safetensors")]) == 2
    page.locator("#opens-in button").first.click()
    visit.until("opens-in", "ComfyUI.*models/loras")

    # As a file beside its own base, and again from the picture's settings.
    shutil.copy(file, opened.workspace.loras_dir / "cat.safetensors")
    visit.reload()
    visit.tab("Generate")
    choose(visit, "generate-model", "tiny")
    visit.fill("prompt", "photo of zwx toy")
    visit.fill("generate-num_images_per_prompt", "1")
    visit.unfold("generate-loras")
    choose(visit, "generate-lora_1", "cat.safetensors")
    visit.fill("generate-lora_1-strength", "0.6")
    page.locator("#generate").click()
    visit.until("generate-message", "Done: 1 picture in")
    page.wait_for_function("document.querySelector('#recipe textarea').value.includes('cat: 0.6')")
    visit.fill("generate-lora_1-strength", "1")
    page.locator("#use-settings").click()
    page.wait_for_function("document.querySelector('#generate-lora_1-strength input').value == '0.6'")
    assert page.locator("#generate-lora_1 input").input_value() == "cat.safetensors"
