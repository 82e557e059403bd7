"""Keeps Start disabled until the plan on the page belongs to the settings on the page.

A plan takes the server a moment. The browser sends a ticket with each request, the form's contents at that time, and
the answer returns it: while that is not what the form shows now, or proposals are on their way, nothing can be started.
"""

from typing import Any

import gradio as gr

from ui.boundary import QUIET
from ui.events import components

# The inputs of a plan, in the handler's order; the ticket comes first.
ASKED = "preset kind proposed photo_set prompts base fields"
TICKET = "(_, ...now) => [JSON.stringify(now), ...now]"
# If proposals never arrive, because the network was gone, Start is disabled for this long.
_SHOW = """(planned, ...now) => {
  const proposing = Date.now() - (window.dbProposing ?? 0) < 20000;
  const isStale = proposing || planned !== JSON.stringify(now);
  document.documentElement.toggleAttribute('data-stale-plan', isStale);
  document.getElementById('start')?.toggleAttribute('inert', isStale);
}"""
_BEGIN = "(...now) => { window.dbProposing = Date.now(); (SHOW)(...now); }".replace("SHOW", _SHOW)
_END = "(...now) => { window.dbProposing = 0; (SHOW)(...now); }".replace("SHOW", _SHOW)


def close_start_while_stale(form: dict[str, Any]) -> None:
    """Disable Start as soon as the form changes; connect it before the events that react to the same changes."""
    shown = _shown(form)
    asking = [form[name].change for name in ("base", "kind", "photo_set", "masked")] + [form["preset"].input]
    gr.on([*asking, form["method"].input], None, shown, None, js=_BEGIN, **QUIET)
    fields = components("planned preset proposed prompts fields", form).values()
    gr.on([one.change for one in fields], None, shown, None, js=_SHOW, **QUIET)


def open_start_after(proposed: Any, form: dict[str, Any]) -> None:
    """Enable Start again once the proposals of this event are in the form, and the plan belongs to them."""
    proposed.then(None, _shown(form), None, js=_END, **QUIET)


def _shown(form: dict[str, Any]) -> list[Any]:
    return list(components(f"planned {ASKED}", form).values())
