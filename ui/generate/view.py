"""What the Generate tab says about a request: its progress and its end; which steps are compared. No Gradio."""

from collections.abc import Sequence
from html import escape

from dreambooth.pictures.queue import Order
from dreambooth.records.eta import in_words
from ui.render import error_panel, panel

# As many as can be compared at a glance.
MAX_FIRST_ROWS = 6
EMPTY = "Your pictures appear here. Each file stores its settings: select one to see them and use them again."


def request_status(
    order: Order | None, num_waiting: int, pausing: str = "", training_left: str = "", *, has_paused: bool = True
) -> str:
    """Return the status of a request.

    `pausing` is the run that lends the device for it, between two steps, so that at first it may not have paused yet;
    `training_left` is the time left of the run it waits for.
    """
    if order is None:
        return f"<div class='db-status'><span class='db-quiet'>{EMPTY}</span></div>"
    behind = f" {num_waiting} more {'is' if num_waiting == 1 else 'are'} queued." if num_waiting else ""
    if order.state == "failed":
        assert order.error is not None
        return error_panel(order.error)
    if order.state in ("done", "cancelled"):
        texts = [*order.notices, behind.strip()]
        return _end(order) + "".join(f"<p class='db-hint'>{escape(text)}</p>" for text in texts if text)
    if order.state == "waiting" and order.after:
        left = f" ({escape(training_left)})" if training_left else ""
        return panel(
            f"{_pictures(order.num_pictures)} will be made when {order.after} has ended{left}.",
            "They start by themselves; you can close this page." + behind, tone="note",
        )  # fmt: skip
    return _progress(order, behind, pausing, has_paused)


def _progress(order: Order, behind: str, pausing: str, has_paused: bool) -> str:
    percent = round(order.share * 100)
    if order.share == 0:
        doing, left = "Loading the model" if has_paused or not pausing else "Waiting for the device", ""
    else:
        doing = f"Picture {min(len(order.files) + 1, order.num_pictures)} of {order.num_pictures}"
        left = "" if order.seconds_left is None else f"{in_words(order.seconds_left)} left"
    paused = f"{pausing} is paused and continues by itself." if pausing else ""
    if pausing and not has_paused:
        paused = f"{pausing} pauses after its current step, or after the preparation it is at."
    texts = [*order.notices, " ".join(filter(None, (paused, behind)))]
    notes = "".join(f"<p class='db-hint'>{escape(text)}</p>" for text in texts if text)
    return (
        f"<div class='db-status'><div class='db-row'><span class='db-chip db-chip-running'>{escape(order.title)}</span>"
        f"<b class='db-phase'>{escape(doing)}</b><span class='db-quiet'>{escape(left)}</span></div>"
        f"<div class='db-bar' role='progressbar' aria-label='Pictures' aria-valuemin='0' aria-valuemax='100' "
        f"aria-valuenow='{percent}'><i style='width:{percent}%'></i></div>{notes}</div>"
    )


def _end(order: Order) -> str:
    made = sum(not path.stem.endswith("grid") for path in order.files)
    if order.state == "cancelled":
        return panel(f"Cancelled: {made} of {_pictures(order.num_pictures)} were made.", tone="note")
    took = in_words(order.ended_s - order.began_s)
    return panel(f"Done: {_pictures(made)} in {took}.", f"Saved to {order.files[0].parent}.", tone="good")


def compared_at_first(steps: Sequence[int], best: int | None) -> list[int]:
    """Return the initial selection of a comparison: the base, and of many steps a few up to the last, with the best."""
    num = MAX_FIRST_ROWS - 1
    if len(steps) <= num:
        return [0, *steps] if steps else []
    spread = [steps[round(place * (len(steps) - 1) / (num - 1))] for place in range(num)]
    if best is not None and best not in spread:
        # The last one stays: all others are compared with it.
        nearest = min(spread[:-1], key=lambda step: abs(step - best))
        spread[spread.index(nearest)] = best
    return [0, *sorted(spread)]


def _pictures(number: int) -> str:
    return f"{number} picture{'' if number == 1 else 's'}"
