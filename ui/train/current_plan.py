"""Keeps Start disabled until the plan on the page is that of the settings on the page.

A plan takes the server a moment. The browser gives each question a ticket, which is what the form showed then, and the
answer brings it back: while that is not what the form shows now, or proposals are on their way, nothing can be started.
"""

from typing import Any

import gradio as gr

from ui.boundary import QUIET
from ui.events import components

# What a plan is made of, as the handler is given it; the ticket comes first.
ASKED = "preset kind proposed photo_set prompts base fields"
TICKET = "(_, ...now) => [JSON.stringify(now), ...now]"
# Proposals that never came, because the network was gone, close Start for so long.
_SHOW = """(planned, ...now) => {
  const proposing = Date.now() - (window.dbProposing ?? 0) < 20000;
  const isStale = proposing || planned !== JSON.stringify(now);
  document.documentElement.toggleAttribute('data-stale-plan', isStale);
  document.getElementById('start')?.toggleAttribute('inert', isStale);
}"""
_BEGIN = "(...now) => { window.dbProposing = Date.now(); (SHOW)(...now); }".replace("SHOW", _SHOW)
_END = "(...now) => { window.dbProposing = 0; (SHOW)(...now); }".replace("SHOW", _SHOW)


def close_start_while_stale(form: dict[str, Any]) -> None:
    """Close Start as soon as the form changes; to be joined before the events that answer to the same changes."""
    shown = _shown(form)
    asking = [form[name].change for name in ("base", "kind", "photo_set", "masked")] + [form["preset"].input]
    gr.on([*asking, form["method"].input], None, shown, None, js=_BEGIN, **QUIET)
    fields = components("planned preset proposed prompts fields", form).values()
    gr.on([one.change for one in fields], None, shown, None, js=_SHOW, **QUIET)


def open_start_after(proposed: Any, form: dict[str, Any]) -> None:
    """Open Start again once the proposals of this event are in the form, and the plan is theirs."""
    proposed.then(None, _shown(form), None, js=_END, **QUIET)


def _shown(form: dict[str, Any]) -> list[Any]:
    return list(components(f"planned {ASKED}", form).values())
