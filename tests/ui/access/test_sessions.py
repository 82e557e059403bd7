"""What stays of visits: a soak of calls that each are a session of their own, counted in objects that live."""

import gc
import json
from collections.abc import Iterator

import httpx
import pytest
from gradio.queueing import Event
from gradio.state_holder import SessionState

from tests.harness.open_page import OpenPage, open_page
from ui.access.sessions import MAX_SESSIONS, MAX_UNREAD, RecentlyUsed

AS_JSON = {"content-type": "application/json"}
DATA = {"training_status": [""], "check_identifier": ["zwx", "dog", "starter"]}


@pytest.fixture
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """Open a page for one test, whose sessions are then its own."""
    with open_page(tmp_path_factory.mktemp("page")) as page:
        yield page


def asked(visitor: httpx.Client, endpoint: str, *, session: str | None = None, read: bool = True) -> str:
    """Call an endpoint as a script does that knows nothing of sessions, and return what it reads of the answer."""
    body = json.dumps({"data": DATA[endpoint], **({"session_hash": session} if session else {})})
    event = visitor.post(f"/gradio_api/call/{endpoint}", content=body, headers=AS_JSON).json()["event_id"]
    return visitor.get(f"/gradio_api/call/{endpoint}/{event}").text if read else ""


def kept(page: OpenPage) -> dict[str, int]:
    """Return how much of earlier calls lives on: sessions, answers, and the objects of both in the whole process."""
    gc.collect()
    queue, states = page.blocks._queue, page.blocks.state_holder
    living = [type(one) for one in gc.get_objects()]
    return {
        "states": len(states.session_data),
        "times": len(states.time_last_used),
        "answers": len(queue.pending_messages_per_session),
        "numbers": len(queue.pending_event_ids_session),
        "events": len(queue.event_ids_to_events),
        "iterators": len(page.blocks.app.iterators),
        "SessionState": living.count(SessionState),
        "Event": living.count(Event),
    }


def test_a_script_that_asks_again_and_again_leaves_nothing(opened: OpenPage) -> None:
    with httpx.Client(base_url=opened.url, timeout=60) as visitor:
        assert "event: error" in asked(visitor, "training_status"), "there is no run"
        assert "event: complete" in asked(visitor, "check_identifier")
        before = kept(opened)
        for _ in range(60):
            asked(visitor, "training_status")
            asked(visitor, "check_identifier")
        after = kept(opened)
    assert {name: after[name] - before[name] for name in after if after[name] > before[name]} == {}


def test_what_nobody_reads_is_bounded(opened: OpenPage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ui.access.sessions.MAX_UNREAD", 20)
    with httpx.Client(base_url=opened.url, timeout=60) as visitor:
        for _ in range(70):
            asked(visitor, "check_identifier", read=False)
        asked(visitor, "check_identifier")
    found = kept(opened)
    assert found["states"] == 0
    assert found["answers"] <= 20
    assert found["numbers"] <= 2 * 20 + 1


def test_sessions_of_many_tabs_are_bounded_and_the_busy_one_stays(
    opened: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new session hash each time, as a client that is made anew for each question has."""
    monkeypatch.setattr("ui.access.sessions.MAX_UNREAD", 5)
    assert opened.blocks.state_holder.capacity == MAX_SESSIONS
    opened.blocks.state_holder.capacity = 5
    with httpx.Client(base_url=opened.url, timeout=60) as visitor:
        for number in range(12):
            asked(visitor, "check_identifier", session=f"tab {number}")
            asked(visitor, "check_identifier", session="busy")
        assert len(opened.blocks.state_holder.session_data) <= 5
        assert "busy" in opened.blocks.state_holder
    assert len(opened.blocks._queue.pending_event_ids_session) <= 2 * 5 + 1


def test_answers_that_are_asked_for_stay() -> None:
    answers = RecentlyUsed()
    for number in range(MAX_UNREAD):
        answers[str(number)] = number
    assert (answers["0"], answers.get("1"), answers.get("none")) == (0, 1, None)
    answers["new"], answers["newer"], answers["newest"] = 1, 2, 3
    assert len(answers) == MAX_UNREAD
    assert {"0", "1", "newest"} <= set(answers)
    assert not {"2", "3", "4"} & set(answers)


@pytest.mark.reliability
def test_three_times_as_many_sessions_leave_no_more(opened: OpenPage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and unread answers, with and without a session of their own: growth is counted in living objects."""
    monkeypatch.setattr("ui.access.sessions.MAX_UNREAD", 100)
    grown = []
    with httpx.Client(base_url=opened.url, timeout=60) as visitor:
        for part in range(3):
            for number in range(400):
                session = f"{part} {number}" if number % 2 else None
                asked(visitor, "check_identifier", session=session, read=number % 4 < 2)
            grown.append(kept(opened))
    print(f"living after 400, 800 and 1,200 sessions: {grown}")
    assert grown[0]["states"] <= MAX_SESSIONS
    assert grown[0]["answers"] <= 100
    for name in grown[0]:
        assert grown[2][name] <= grown[0][name] + 100, name
