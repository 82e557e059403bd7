"""The first visit: what the app does, with before and after images, and two ways to start."""

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image

from dreambooth.data.samples import sample_folder
from dreambooth.forecast.offers import forecast, proposed_config
from dreambooth.models.base import STARTER
from dreambooth.records.eta import in_words
from ui.boundary import Services

PURPOSE = "Teach an image model your pet, person, object or style from 3 to 5 photos, then make new pictures of it."
NUM_SAMPLES = 5
# A little larger than they are shown.
THUMBNAIL_PX = 128
# Samples of one prompt and seed before and after the sample subject's training with the starter's own recipe.
BEFORE, AFTER = (Path(__file__).parent / "before_after" / f"{name}.webp" for name in ("before", "after"))
TOY = "This uses a small built-in toy model (64 px), so that everything can be tried at once on any computer."

# The photo cards, and the list of several concepts, are shown once there is something to work with.
_BEGUN = "#upload-view:is(:has(.db-photo), :has(#concepts))"
_FIRST = "#upload-view:not(:has(.db-photo)):not(:has(#concepts))"
WELCOME_CSS = f"""
{_BEGUN} .db-first, {_FIRST} .db-later {{ display: none !important; }}
#intake {{ display: grid !important; gap: 1rem; align-items: start; grid-template-columns: 4fr 8fr;
  grid-template-areas: "own photos" "sample photos"; grid-template-rows: auto 1fr; }}
#intake > * {{ min-width: 0 !important; }}
#own-photos {{ grid-area: own; }} #sample-photos {{ grid-area: sample; }} #shown-photos {{ grid-area: photos; }}
{_FIRST} #intake {{ grid-template-columns: 1fr 1fr; grid-template-areas: "sample own"; grid-template-rows: auto;
  align-items: stretch; }}
{_FIRST} :is(#own-photos, #sample-photos) {{ border: 1px solid var(--border-color-primary); border-radius: 12px;
  padding: 1rem; background: var(--block-background-fill); }}
.gradio-container h2.db-purpose {{ font-size: 1.2rem; font-weight: 600; margin: .2rem 0 .8rem; }}
.db-strip {{ display: flex; flex-wrap: wrap; gap: .6rem 1.4rem; align-items: end; margin: 0 0 .4rem; }}
.db-strip figure {{ margin: 0; }} .db-strip figcaption {{ font-size: .85rem; margin-bottom: .25rem;
  color: var(--body-text-color-subdued); }}
.db-strip img {{ display: inline-block; height: 84px; width: auto; border-radius: 8px; margin: 0 .2rem 0 0; }}
.db-arrow {{ align-self: center; font-size: 1.4rem; color: var(--body-text-color-subdued); padding-top: 1.2rem; }}
.db-samples img {{ display: inline-block; width: calc(20% - .3rem); border-radius: 8px; margin: 0 .3rem 0 0; }}
.gradio-container .db-choice h3 {{ font-size: 1.05rem; margin: 0 0 .3rem; }}
@media (max-width: 640px) {{ #intake {{ grid-template-columns: minmax(0, 1fr);
  grid-template-areas: "own" "photos" "sample"; }}
  {_FIRST} #intake {{ grid-template-columns: minmax(0, 1fr); grid-template-areas: "sample" "own"; }}
  .db-arrow {{ display: none; }} .db-strip img {{ height: 60px; }} }}
"""


def welcome() -> str:
    """Return the sentence of purpose, and what a training made of the sample subject."""
    shown = "".join(_image(path, "") for path in sorted(sample_folder().glob("*.png"))[:3])
    prompt = "&ldquo;photo of zwx toy&rdquo;"
    return (
        f"<h2 class='db-purpose'>{escape(PURPOSE)}</h2><div class='db-strip'>"
        f"<figure><figcaption>Photos of one toy</figcaption>{shown}</figure><span class='db-arrow'>&rarr;</span>"
        f"<figure><figcaption>{prompt} before training</figcaption>"
        f"{_image(BEFORE, 'Three other things: the model does not know the word')}</figure>"
        f"<figure><figcaption>{prompt} after training</figcaption>"
        f"{_image(AFTER, 'The toy of the photos in three other places')}</figure></div>"
    )


def sample_card(time: str) -> str:
    """Return the text above the button that trains on the sample: its photos, its time, and that it is a toy."""
    shown = "".join(_image(path, "") for path in sorted(sample_folder().glob("*.png")))
    return (
        f"<div class='db-choice db-first'><h3>Try it with sample photos</h3><p class='db-samples'>{shown}</p>"
        f"<p class='db-hint'>{escape(TOY)} Training and its samples take {time}.</p></div>"
    )


def sample_time(services: Services) -> str:
    """Return the time of the sample's run as timed here, else as expected from other machines."""
    device = services.device()
    config = proposed_config(STARTER, "recommended", "object", NUM_SAMPLES, {}, device)
    seconds = forecast(services.workspace, config, NUM_SAMPLES, device).usual_seconds
    return f"about {in_words(max(seconds or 0.0, 60))} here"


def _image(path: Path, alt: str) -> str:
    """Return an image as a data URL: on a slow connection requesting each separately would take seconds."""
    return f"<img src='data:image/webp;base64,{_thumbnail(path)}' alt='{escape(alt)}'>"


def _thumbnail(path: Path) -> str:
    content = io.BytesIO(path.read_bytes())
    if path.suffix != ".webp":
        with Image.open(path) as photo:
            small = photo.convert("RGB")
        small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        small.save(content := io.BytesIO(), "WEBP", quality=70)
    return base64.b64encode(content.getvalue()).decode()
