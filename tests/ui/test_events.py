"""Events by name, on a small page of their own that a real client calls."""

from collections.abc import Iterator
from typing import Any

import gradio as gr
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from tests.harness.open_page import free_port
from tests.harness.raw_events import RawEvents
from ui.boundary import Page
from ui.events import Answer, connect, on


class Handlers:
    """Handlers of three texts, one of them in a group."""

    @on("button.click", "first texts", "first texts", api_name="second_alone")
    def second_alone(self, first: str, second: str = "b", third: str | None = None) -> Answer:
        return {"second": first + second + (third or "")}

    @on("button.click", "first", "first texts", api_name="nothing")
    def nothing(self, first: str) -> Answer:
        return {}

    @on("button.click", "first", "first texts", api_name="one_after_the_other")
    def stream(self, first: str) -> Iterator[Answer]:
        yield {"third": first + "1"}
        yield {"third": first + "2", "first": "end"}

    @on("button.click", "first", "third", api_name="value")
    @on("second_alone.success", "first", "first", api_name="value_after")
    def value(self, first: str) -> str:
        return first * 2

    @on("button.click", "first", "first texts", api_name="misnamed")
    def misnamed(self, first: str) -> Answer:
        return {"fourth": first}


def by_position(first: str) -> list[Any]:
    """Answer as `Handlers.second_alone` does, as Gradio has it."""
    return [gr.skip(), first + "bc", gr.skip()]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Open a page with these handlers."""
    with Page() as page:
        first, second, third, button = gr.Textbox(), gr.Textbox(), gr.Textbox(), gr.Button()
        named = {"button": button, "first": first, "third": third, "texts": {"second": second, "third": third}}
        events = connect(Handlers(), named)
        assert list(events)[0] == "second_alone"
        button.click(by_position, first, [first, second, third], api_name="by_position")
    _, url, _ = page.launch(
        prevent_thread_lock=True, quiet=True, show_error=True, server_port=free_port(), server_name="127.0.0.1"
    )
    yield url
    page.close(verbose=False)


def test_an_answer_by_name_is_what_one_by_position_was(url: str) -> None:
    """What is left out is told as `gr.skip()` tells it."""
    client = Client(url, verbose=False)
    assert client.predict("a", "b", "c", api_name="/second_alone") == client.predict("a", api_name="/by_position")
    events = RawEvents(url)
    (named,) = events.call("second_alone", ["a", "b", "c"])
    (positioned,) = events.call("by_position", ["a"])
    assert named.outputs == positioned.outputs
    assert [value for _, value in named.outputs] == ['{"__type__": "update"}', '"abc"', '{"__type__": "update"}']


def test_an_empty_answer_changes_nothing(url: str) -> None:
    (answer,) = RawEvents(url).call("nothing", ["a"])
    assert (answer.error, [value for _, value in answer.outputs]) == ("", ['{"__type__": "update"}'] * 3)


def test_a_stream_is_answered_by_name_too(url: str) -> None:
    job = Client(url, verbose=False).submit("a", api_name="/one_after_the_other")
    assert job.result(timeout=60)[::2] == ("end", "a2")
    assert [one[2] for one in job.outputs()] == ["a1", "a2"]


def test_a_handler_of_one_output_returns_its_value_and_can_have_several_events(url: str) -> None:
    client = Client(url, verbose=False)
    assert client.predict("ab", api_name="/value") == client.predict("ab", api_name="/value_after") == "abab"


def test_arguments_keep_their_names_and_defaults(url: str) -> None:
    api: Any = Client(url, verbose=False).view_api(return_format="dict", print_info=False)
    told = api["named_endpoints"]["/second_alone"]["parameters"]
    assert [one["parameter_name"] for one in told] == ["first", "second", "third"]
    assert [one["parameter_has_default"] for one in told] == [False, False, True]  # Gradio tells defaults of None alone


def test_a_name_that_is_not_there_is_a_bug(url: str) -> None:
    with pytest.raises(AppError, match="KeyError"):
        Client(url, verbose=False).predict("a", api_name="/misnamed")
    with Page(), pytest.raises(KeyError, match="button"):
        connect(Handlers(), {"first": gr.Textbox(), "texts": {}})
