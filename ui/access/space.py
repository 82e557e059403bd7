"""What is different on a Space: who may train there, on which hardware, and what it costs."""

from html import escape
from urllib.parse import quote

from dreambooth.environment import Settings
from dreambooth.errors import DreamBoothError

HUB = "https://huggingface.co"
PRICES = "https://huggingface.co/pricing#spaces"
# From the table in docs/space.md, with its date.
CHEAPEST = "T4 small, about $0.40 an hour in mid-2026"


def training_refusal(
    space_id: str, *, has_login: bool, zero_gpu: bool = False, hub: str = HUB
) -> DreamBoothError | None:
    """Return why nobody may train here, or None: a public Space needs a login, ZeroGPU cannot train at all."""
    if space_id and zero_gpu:
        return DreamBoothError(
            "Training is off: this Space runs on ZeroGPU.",
            "ZeroGPU lends a GPU for a minute or so at a time, to a copy of the program that ends with it; a training "
            "needs one for many minutes on end.",
            "Duplicate the Space and give it a GPU of its own, such as a T4 small; docs/space.md says how.",
        )
    if not space_id or has_login or not is_public(space_id, hub):
        return None
    return DreamBoothError(
        "Training is off: anyone can open this Space.",
        "Without a login anyone could use its hardware and see the photos.",
        "In the Space's settings add a secret DREAMBOOTH_AUTH with user:password, or make the Space private.",
    )


def is_public(space_id: str, hub: str = HUB) -> bool:
    """Return whether the Hub shows this Space to somebody without a token; an unanswered question counts as yes."""
    import httpx

    try:
        status = httpx.get(f"{hub}/api/spaces/{space_id}", timeout=10).status_code
    except httpx.HTTPError:
        return True
    return status not in (401, 403, 404)


def space_notice(settings: Settings) -> str:
    """Return what visitors should know of this Space's hardware and its price, as HTML; empty elsewhere."""
    if not settings.space_id:
        return ""
    space = f"{HUB}/spaces/{quote(settings.space_id)}"
    duplicate, own = _link(f"{space}?duplicate=true", "duplicate it"), _link(f"{space}/settings", "settings")
    prices = _link(PRICES, "prices")
    if settings.zero_gpu:
        text = f"ZeroGPU: nothing can be trained here. To train, {duplicate} and choose a GPU ({CHEAPEST}; {prices})."
    elif settings.accelerator in ("", "none", "cpu"):
        text = (
            f"This Space has no GPU: the starter trains here, Stable Diffusion does not. For that {duplicate} and "
            f"choose a GPU ({CHEAPEST}; {prices})."
        )
    else:
        text = (
            f"This Space costs money for every minute it is up, used or not ({prices}): pause it, or give it a sleep "
            f"time, in its {own}."
        )
    return f"<p class='db-hint' id='space-notice'>{text}</p>"


def _link(address: str, text: str) -> str:
    return f"<a href='{escape(address, quote=True)}' target='_blank' rel='noopener'>{escape(text)}</a>"
