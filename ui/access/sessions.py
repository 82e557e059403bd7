"""What Gradio stores for each visit, and its removal.

It copies the settings of every component for each session, about 0.75 MB, and treats a call without a session as one of
its own: a script that asks for a run's status every five seconds would cost half a gigabyte an hour.
"""

from collections import OrderedDict
from typing import Any

from gradio import Blocks

# Tabs and clients whose state is kept; beyond this, the one silent for longest starts anew.
MAX_SESSIONS = 100
# Sessions whose answers are kept until they are read.
MAX_UNREAD = 500


class RecentlyUsed(OrderedDict[str, Any]):
    """The unread answers of each session; if there are too many, those least recently asked for are dropped."""

    def __setitem__(self, session: str, answers: Any) -> None:
        super().__setitem__(session, answers)
        self.move_to_end(session)
        if len(self) > MAX_UNREAD:
            self.popitem(last=False)

    def __getitem__(self, session: str) -> Any:
        answers = super().__getitem__(session)
        self.move_to_end(session)
        return answers

    def get(self, session: str, default: Any = None) -> Any:
        """Return a session's answers, which counts as asking for them."""
        try:
            return self[session]
        except KeyError:
            return default


def bound_answers(page: Blocks) -> None:
    """Limit unread answers; call it before the page is opened."""
    page._queue.pending_messages_per_session = RecentlyUsed()  # type: ignore[assignment]


def forget_state(page: Blocks, session: str) -> None:
    """Drop the components' state of a call without a session; its answer stays until it is read."""
    page.state_holder.session_data.pop(session, None)
    page.state_holder.time_last_used.pop(session, None)


def bound_numbers(page: Blocks) -> None:
    """Drop the numbers of calls whose answers are gone, which Gradio keeps for every session."""
    unread, pending = page._queue.pending_messages_per_session, page._queue.pending_event_ids_session
    if len(pending) > 2 * MAX_UNREAD:
        for gone in [one for one in pending if one not in unread]:
            del pending[gone]


def forget_answer(page: Blocks, event: str) -> None:
    """Drop what is left of a call without a session, once its last answer was read."""
    if page._queue.pending_event_ids_session.get(event):
        return
    page._queue.pending_messages_per_session.pop(event, None)
    page._queue.pending_event_ids_session.pop(event, None)
    forget_state(page, event)
