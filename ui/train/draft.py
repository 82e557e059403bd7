"""Keeps the edits of the form for a new training in the browser's window, across reloads and Back.

The settings are put back together with what the page had proposed, so that those that were typed still count as typed.
"""

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr

from ui.boundary import QUIET

KEEP = """(...now) => {
  const draft = Object.fromEntries(NAMES.map((name, place) => [name, now[place]]));
  try { sessionStorage.setItem('dreambooth-form', JSON.stringify(draft)); } catch (full) { console.warn(full); }
}"""
# What is undefined is left alone by Gradio: settings that the draft of an earlier version did not have.
RESTORE = """() => {
  let draft = {};
  try { draft = JSON.parse(sessionStorage.getItem('dreambooth-form') ?? '{}'); } catch (damaged) { draft = {}; }
  return NAMES.map(name => draft[name] ?? undefined);
}"""


def keep_in_browser(page: gr.Blocks, planned: Any, fields: Mapping[str, Any]) -> None:
    """Keep what these fields show with each new plan, and put it back when the window loads the page again.

    A plan follows every change of theirs, once for many: to listen to each of sixty fields would busy the browser.
    """
    names, shown = json.dumps(list(fields)), list(fields.values())
    page.load(None, None, shown, js=RESTORE.replace("NAMES", names), **QUIET)
    planned.change(None, shown, None, js=KEEP.replace("NAMES", names), **QUIET)
