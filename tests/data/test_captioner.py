"""Automatic captions: a tiny model of the real one's kind in its place, and what is told where it cannot be had."""

from pathlib import Path

import pytest
from PIL import Image

from dreambooth.data.captioner import load_captioner, write_captions
from dreambooth.data.captions import caption_beside, write_caption
from dreambooth.errors import BaseModelError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "a", "dog", "cat", "on", "grass"]


def tiny_captioner(folder: Path) -> str:
    """Save a captioner with random weights and twelve words, and return its folder."""
    from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor
    from transformers import BlipProcessor as Processor

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(WORDS), "encoder_hidden_size": 16, "projection_dim": 16, "bos_token_id": 5,
            "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}  # fmt: skip
    config = BlipConfig(
        text_config=small | text, vision_config=small | {"image_size": 32, "patch_size": 16}, projection_dim=16
    )
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BlipForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = BertTokenizerFast(vocab_file=str(folder / "vocab.txt"))
    Processor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return str(folder)


def test_photos_without_a_caption_get_one_and_others_keep_theirs(photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.glob("*.png"))
    write_caption(files[1], "my own words")
    captioner = load_captioner(None, tiny_captioner(tmp_path / "captioner"))
    assert {*captioner(Image.new("RGB", (50, 40))).split()} <= {*WORDS}
    written = list(write_captions(files, "photo of zwx dog", lambda image: "a dog\n on grass"))
    assert written == [files[0], files[2]]
    assert [caption_beside(file) for file in files] == [
        "photo of zwx dog, a dog on grass", "my own words", "photo of zwx dog, a dog on grass"
    ]  # fmt: skip


def test_a_captioner_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="HF_HUB_OFFLINE"):
        load_captioner(None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_captioner(None, str(tmp_path))
