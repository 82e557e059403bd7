"""Events by name: a handler says beside its code what triggers it, what it is given, and what it answers to.

    class Handlers:
        @on("delete.click", "run", "message run", api_name="delete_shown_run", **QUIET)
        def delete(self, run: str) -> Answer:
            return {"message": f"{run} was deleted."}

`connect(Handlers(), {"delete": button, "run": dropdown, "message": html})` joins it to the page. Names stand for
components, or for several: those of a mapping, in its order. What an answer leaves out stays as it is on the page.
A handler with one output returns the value itself, as Gradio has it.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import gradio as gr

from ui.boundary import shown

Answer = Mapping[str, Any]
# A component, or several by their own names.
Named = Mapping[str, Any]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Event:
    """The declaration of a handler by `on`; several names in one text are separated by spaces."""

    triggers: str
    inputs: str
    outputs: str
    options: Mapping[str, Any]
    fills: str
    asks: bool


def on(
    triggers: str, inputs: str = "", outputs: str = "", *, fills: str = "", asks: bool = False, **options: Any
) -> Callable[[F], F]:
    """Declare the event that a method handles; repeat it for further events, which are connected from the top down.

    A trigger is `component.event`, or `event.then` (`success`, `failure`) for one that follows the event of that
    `api_name`. `options` are those of `gr.on`. `fills` names the `Fillable` through which the answer is filled into the
    page; with `asks` the event requests new contents for it.
    """

    def declare(handler: F) -> F:
        event = Event(triggers, inputs, outputs, options, fills, asks)
        handler.__dict__["events"] = (event, *handler.__dict__.get("events", ()))
        return handler

    return declare


def connect(handlers: object, named: Named, events: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Connect the object's handlers with the components of these names; return their events by `api_name`.

    `events` are those of other objects that some follow. Raises KeyError for an unknown name.
    """
    made: dict[str, Any] = {}
    for name, declared in vars(type(handlers)).items():
        for event in getattr(declared, "events", ()):
            before = {**(events or {}), **made}
            made[event.options.get("api_name", name)] = _joined(getattr(handlers, name), event, named, before)
    return made


def _joined(handler: Callable[..., Any], event: Event, named: Named, events: Mapping[str, Any]) -> Any:
    """Return the event of one declaration, or the one that fills in its answer."""
    triggers = [one for trigger in event.triggers.split() for one in _triggers(trigger, named, events)]
    outputs = components(event.outputs, named)
    options = dict(event.options)
    if place := options.get("show_progress_on"):
        options["show_progress_on"] = named[place]
    if event.asks:
        (trigger,) = triggers
        triggers = [named[event.fills].asked_by(trigger).then]
    answer = shown(answered(handler, outputs) if len(outputs) > 1 else handler)
    arguments: dict[str, Any] = {
        "inputs": [*components(event.inputs, named).values()] or None, "outputs": [*outputs.values()] or None,
    }  # fmt: skip
    made = [_begun(group, answer, arguments | options) for group in _groups(triggers)]
    if event.fills:
        made = [named[event.fills].after(happened) for happened in made]
    return made[0]


def _groups(triggers: list[Any]) -> list[list[Any]]:
    """Return the triggers that are joined to one event, and separately each that follows another event."""
    of_components = [one for one in triggers if not isinstance(one, functools.partial)]
    following = [[one] for one in triggers if isinstance(one, functools.partial)]
    return [of_components, *following] if of_components else following


def _begun(triggers: list[Any], answer: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    return triggers[0](answer, **arguments) if len(triggers) == 1 else gr.on(triggers, answer, **arguments)


def _triggers(name: str, named: Named, events: Mapping[str, Any]) -> list[Any]:
    source, _, happening = name.rpartition(".")
    if happening in ("then", "success", "failure"):
        return [getattr(events[source], happening)]
    return [getattr(one, happening) for one in components(source, named).values()]


def components(names: str, named: Named) -> dict[str, Any]:
    """Return the components of these names by name, those of a mapping by their own."""
    found: dict[str, Any] = {}
    for name in names.split():
        one = named[name]
        found |= one if isinstance(one, Mapping) else {name: one}
    return found


def answered(handler: Callable[..., Any], outputs: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the handler with its answers by component instead of by name, as Gradio takes them."""

    def by_component(answer: Answer) -> Any:
        # An empty dict would be taken for a value.
        return {outputs[name]: value for name, value in answer.items()} or gr.skip()

    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
            for answer in handler(*args, **kwargs):
                yield by_component(answer)

        return stream

    @functools.wraps(handler)
    def once(*args: Any, **kwargs: Any) -> Any:
        return by_component(handler(*args, **kwargs))

    return once


def updates_of_unseen(
    updates: Mapping[str, Callable[[Any], Answer]], values: Mapping[str, Any], seen: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the updates of the values that the page has not seen yet."""
    answer: dict[str, Any] = {}
    for name, update in updates.items():
        if name not in seen or seen[name] != values[name]:
            answer |= update(values[name])
    return answer
