"""Prompts made in the browser, as `prompts_for` makes them: an answer from elsewhere comes when one has typed on."""

import json

from ui.photo_sets import DEFAULT_CLASS_WORDS, PROMPT_PATTERNS, USUAL_PATTERN

_MAKE = r"""(kind, identifier, class_word) => {
  const words = {identifier: (identifier ?? '').trim(), class_word: (class_word ?? '').trim()};
  const patterns = PATTERNS[kind] ?? USUAL;
  return patterns.map(pattern => pattern.replace(/{(\w+)}/g, (_, name) => words[name]));
}"""
_KIND_CHOSEN = """(kind, identifier) => {
  const class_word = CLASS_WORDS[kind] ?? '';
  return [class_word, ...(MAKE)(kind, identifier, class_word)];
}"""
_WORDS_LEFT = """(kind, identifier, class_word, instance_prompt) => {
  const kept = [identifier, class_word].every(word => (instance_prompt ?? '').includes(word));
  return kept ? [undefined, undefined] : (MAKE)(kind, identifier, class_word);
}"""

MAKE_PROMPTS = _MAKE.replace("PATTERNS", json.dumps(PROMPT_PATTERNS)).replace("USUAL", json.dumps(USUAL_PATTERN))
KIND_CHOSEN = _KIND_CHOSEN.replace("CLASS_WORDS", json.dumps(DEFAULT_CLASS_WORDS)).replace("MAKE", MAKE_PROMPTS)
# A paste with the mouse is no `input` to Gradio. Prompts that were edited by hand and have the words stay.
WORDS_LEFT = _WORDS_LEFT.replace("MAKE", MAKE_PROMPTS)
