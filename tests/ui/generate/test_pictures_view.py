"""What the Generate tab says of a request, from its asking to its end."""

from pathlib import Path
from typing import Any

from dreambooth.errors import DreamBoothError
from dreambooth.pictures.queue import Order
from ui.boundary import Shown
from ui.generate.view import MAX_FIRST_ROWS, compared_at_first, request_status


def order(**values: Any) -> Order:
    """Return a request for four pictures of a run's step that stands like this."""
    return Order(1, "<dog>/400", 4, lambda *_: iter(()), **values)


def test_every_state_has_its_sentence() -> None:
    waiting = request_status(order(after="busy"), 1, training_left="6 min left")
    assert "4 pictures will be made when busy has ended (6 min left)." in waiting
    assert "you can close this page. 1 more is queued." in waiting
    assert "Loading the model" in request_status(order(state="making"), 0)
    making = order(state="making", share=0.4, files=[Path("a.png")])
    assert "Picture 2 of 4" in request_status(making, 0)
    assert "aria-valuenow='40'" in request_status(making, 0)
    assert "&lt;dog&gt;/400" in request_status(making, 0)
    assert "dog-1 is paused and continues by itself" in request_status(making, 0, "dog-1")
    done = order(state="done", files=[Path("x/1.png"), Path("x/1-grid.png")], began_s=1.0, ended_s=9.0)
    assert "Done: 1 picture in 8 s." in request_status(done, 0)
    noticed = order(state="making", notices=["<b> is cut"])
    assert "&lt;b&gt; is cut" in request_status(noticed, 0)
    noticed.state, noticed.files = "done", [Path("x/1.png")]
    assert "&lt;b&gt; is cut" in request_status(noticed, 0)
    cancelled = order(state="cancelled", files=[Path("x/1.png")])
    assert "Cancelled: 1 of 4 pictures were made." in request_status(cancelled, 0)
    failed = order(state="failed", error=DreamBoothError("No <base>.", "", ""))
    assert "No &lt;base&gt;." in request_status(failed, 0)
    assert "Your pictures appear here" in request_status(None, 0)


def test_a_training_that_has_not_paused_yet_is_not_said_to_have() -> None:
    """It pauses between two steps; class images before the first may take minutes."""
    told = request_status(order(state="making"), 0, "dog-1", has_paused=False)
    assert "Waiting for the device" in told
    assert "dog-1 pauses after its current step" in told
    assert "is paused" not in told


def test_a_comparison_begins_with_the_base_and_of_many_steps_with_a_few() -> None:
    assert compared_at_first([], None) == []
    assert compared_at_first([60], None) == [0, 60]
    assert compared_at_first([100, 200, 300, 400, 500], 300) == [0, 100, 200, 300, 400, 500]
    many = list(range(100, 2100, 100))
    for best in (None, *many):
        chosen = compared_at_first(many, best)
        assert len(set(chosen)) == MAX_FIRST_ROWS
        assert (chosen[0], chosen[-1]) == (0, 2000)
        assert best is None or best in chosen
        assert chosen == sorted(chosen)


def test_a_picture_that_has_just_gone_is_left_out(tmp_path: Path) -> None:
    shown, there = Shown(tmp_path / "page"), tmp_path / "there.png"
    there.write_bytes(b"x")
    copies = shown.copies([there, tmp_path / "gone.png"])
    assert list(copies) == [there]
    assert Path(copies[there]).read_bytes() == b"x"
