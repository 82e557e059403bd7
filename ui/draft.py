"""Keeps the edits of a form in the browser, across reloads and Back.

The settings are restored together with what the page had proposed, so that typed values still count as typed.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from ui.boundary import QUIET

KEEP = """(...now) => {
  const draft = Object.fromEntries(NAMES.map((name, place) => [name, now[place]]));
  try { sessionStorage.setItem(PLACE, JSON.stringify(draft)); } catch (full) { console.warn(full); }
}"""
# Gradio ignores undefined values: settings that the draft of an earlier version did not have.
RESTORE = """() => {
  let draft = {};
  try { draft = JSON.parse(sessionStorage.getItem(PLACE) ?? '{}'); } catch (damaged) { draft = {}; }
  return NAMES.map(name => draft[name] ?? undefined);
}"""


def keep_in_browser(page: gr.Blocks, place: str, edited: Sequence[Any], fields: Mapping[str, Any]) -> None:
    """Store the values of these fields at each of the `edited` events, and restore them when the window reloads the
    page.

    `place` is the storage key.
    """
    shown = list(fields.values())
    keep, restore = (
        script.replace("NAMES", json.dumps(list(fields))).replace("PLACE", json.dumps(place))
        for script in (KEEP, RESTORE)
    )
    page.load(None, None, shown, js=restore, **QUIET)
    gr.on(edited, None, shown, None, js=keep, **QUIET)
