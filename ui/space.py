"""Whether this Space is open to everybody, and what is refused there without a login."""

from dreambooth.errors import DreamBoothError

HUB = "https://huggingface.co"


def training_refusal(space_id: str, *, has_login: bool, hub: str = HUB) -> DreamBoothError | None:
    """Return why nobody may train here, or None: on a public Space it takes a login."""
    if not space_id or has_login or not is_public(space_id, hub):
        return None
    return DreamBoothError(
        "Training is off: everybody can open this Space.",
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
