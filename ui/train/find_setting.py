"""The search in the settings: hides, in the browser alone, the fields and groups without the typed word."""

from typing import Any

import gradio as gr

from ui.boundary import QUIET

# A field is found by its label, its hint or its technical name; a group with the word in its title is shown whole.
FIND = """text => {
  const words = (text ?? '').toLowerCase().split(/\\s+/).filter(Boolean);
  const has = where => words.every(word => (where ?? '').toLowerCase().includes(word));
  for (const group of document.querySelectorAll('#advanced .db-group')) {
    const whole = has(group.querySelector('h4')?.textContent);
    let shown = 0;
    for (const field of group.querySelectorAll('[id^="field-"]')) {
      const found = whole || has(`${field.textContent} ${field.id}`);
      field.classList.toggle('db-not-found', !found);
      shown += found;
    }
    group.classList.toggle('db-not-found', !shown);
  }
}"""


def build() -> Any:
    """Lay out the search field of the settings."""
    find = gr.Textbox(
        "", label="Find a setting", placeholder="memory, learning rate, seed ...", max_lines=1, elem_id="find-setting",
    )  # fmt: skip
    # `input` would be called with the text before the last letter.
    find.change(None, find, None, js=FIND, **QUIET)
    return find
