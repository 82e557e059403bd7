"""Answers that arrive after the user went on: a field that was changed meanwhile keeps its value.

A handler answers when the machine gets to it, and Gradio puts the answer into the page unconditionally. So a handler's
values for fields that people type in go into a hidden component, and the browser fills in, all at once, those fields
that still show what the page filled in before.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ui.boundary import QUIET

# Gradio ignores undefined values.
FILL = """(answer, filled, ...now) => {
  const same = (one, other) => JSON.stringify(one ?? null) === JSON.stringify(other ?? null);
  const names = NAMES, values = answer?.values ?? {}, sent = answer?.sent ?? {};
  const untouched = names.map((name, place) => same(now[place], filled?.[name]) || same(now[place], values[name])
    || (name in sent && same(now[place], sent[name])));
  const all = untouched.every(Boolean);
  const taken = names.map((name, place) => name in values && (TOGETHER ? all : untouched[place]));
  const next = {...filled};
  names.forEach((name, place) => { if (taken[place]) next[name] = values[name]; });
  return [next, ...names.map((name, place) => taken[place] ? values[name] : undefined)];
}"""
REMEMBER = "(...now) => [Object.fromEntries(NAMES.map((name, place) => [name, now[place]]))]"

# The first answers fill the whole page, so nothing can be clicked before the last of them has arrived.
OPENING, OPENED = "db-opening", "db-opened"
BEGIN = "() => { window.dbAwaited = NUMBER; document.getElementById('tabs')?.toggleAttribute('inert', true); }"
ARRIVED = f"""() => {{
  if (--window.dbAwaited > 0) return NOTHING_YET;
  const tabs = document.getElementById('tabs');
  tabs?.toggleAttribute('inert', false);
  tabs?.classList.remove('{OPENING}');
  performance.mark('{OPENED}');
  return SHOWN;
}}"""


@dataclass(frozen=True)
class Fillable:
    """Fields that both people and handlers fill in, by name; if `together`, either all of them are filled in or none.

    A handler answers with `answer_of` into `answer`; `filled` is what the page filled in last, as far as known.
    """

    fields: Mapping[str, Any]
    answer: gr.JSON
    filled: gr.JSON
    together: bool = False

    def after(self, event: Any) -> Any:
        """Fill the fields in from the event's answer; return the event that does so."""
        script = FILL.replace("NAMES", json.dumps(list(self.fields))).replace("TOGETHER", json.dumps(self.together))
        shown = [self.filled, *self.fields.values()]
        return event.success(None, [self.answer, *shown], shown, js=script, **QUIET)

    def asked_by(self, trigger: Any) -> Any:
        """Treat the fields' values as the page's own, because the trigger requests new contents; return its event."""
        remember = REMEMBER.replace("NAMES", json.dumps(list(self.fields)))
        return trigger(None, list(self.fields.values()), self.filled, js=remember, **QUIET)


def fillable(fields: Mapping[str, Any], filled: Mapping[str, Any], *, together: bool = False) -> Fillable:
    """Return the fields with the hidden components through which they are filled in."""
    answer = gr.JSON({}, visible=False, label="Answer")
    return Fillable(fields, answer, gr.JSON(dict(filled), visible=False, label="Filled in"), together)


def answer_of(values: Mapping[str, Any], sent: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a handler's answer: values by field; a field is also filled in if it still shows its value in `sent`."""
    return {"values": dict(values), "sent": dict(sent or {})}


def closed_until(page: gr.Blocks, events: list[Any], or_failed: list[Any], large: list[Any]) -> None:
    """Let nothing be clicked on a new page until these loading events have ended, or those before them failed.

    `or_failed` are the events that others of them only follow after an answer. The `large` components are hidden until
    then: a browser fetches their scripts, half of all, once the page can be used.
    """
    script = ARRIVED.replace("NOTHING_YET", json.dumps([{"__type__": "update"}] * len(large)))
    script = script.replace("SHOWN", json.dumps([{"__type__": "update", "visible": True}] * len(large)))
    page.load(None, js=BEGIN.replace("NUMBER", str(len(events))), **QUIET)
    for event in events:
        event.then(None, None, large, js=script, **QUIET)
    for event in or_failed:
        event.failure(None, None, large, js=script, **QUIET)
