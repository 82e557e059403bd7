"""What the browser computes itself: prompts, as `prompts_for` makes them, and the name of a new photo set.

A server's answer might arrive when somebody has typed more, or dropped more files.
"""

import json

from dreambooth.data.photo_sets import SAMPLE_SET
from dreambooth.data.words import DEFAULT_CLASS_WORDS, PROMPT_PATTERNS, USUAL_PATTERN

_MAKE = r"""(kind, identifier, class_word) => {
  const words = {identifier: (identifier ?? '').trim(), class_word: (class_word ?? '').trim()};
  const patterns = PATTERNS[kind] ?? USUAL;
  const made = patterns.map(pattern => pattern.replace(/{(\w+)}/g, (_, name) => words[name]));
  const [instance, of_class] = made.map(text => text.replace(/\s+/g, ' ').trim());
  return [instance, words.class_word ? of_class : ''];
}"""
_KIND_CHOSEN = """(kind, identifier) => {
  const class_word = CLASS_WORDS[kind] ?? '';
  return [class_word, ...(MAKE)(kind, identifier, class_word)];
}"""
_WORDS_LEFT = """(kind, identifier, class_word, instance_prompt) => {
  const kept = [identifier, class_word].every(word => word?.trim() && (instance_prompt ?? '').includes(word));
  return kept ? [undefined, undefined] : (MAKE)(kind, identifier, class_word);
}"""

MAKE_PROMPTS = _MAKE.replace("PATTERNS", json.dumps(PROMPT_PATTERNS)).replace("USUAL", json.dumps(USUAL_PATTERN))
KIND_CHOSEN = _KIND_CHOSEN.replace("CLASS_WORDS", json.dumps(DEFAULT_CLASS_WORDS)).replace("MAKE", MAKE_PROMPTS)
# Gradio reports no `input` for a paste with the mouse. Prompts that were edited by hand and contain the words stay.
WORDS_LEFT = _WORDS_LEFT.replace("MAKE", MAKE_PROMPTS)

# Several drops before the first answer go into one set: each must know its name.
_NAME_NEW_SET = """(from, set, ...rest) => {
  const isNew = !set || set === SAMPLE;
  const made = () => 'photos-' + new Date().toISOString().slice(0, 19).replace(/[-:]/g, '').replace('T', '-') + '-'
    + Math.random().toString(16).slice(2, 8).padEnd(6, '0');
  const name = isNew ? (window.dbNewSet ??= made()) : '';
  return [from, set, ...rest.slice(0, -1), name];
}"""
NAME_NEW_SET = _NAME_NEW_SET.replace("SAMPLE", json.dumps(SAMPLE_SET))
# A photo without its own caption shows the prompt that it is trained with.
SHOW_USUAL_CAPTION = """(prompt) => {
  document.querySelectorAll('.db-caption').forEach(field => { field.placeholder = prompt ?? ''; });
}"""
FORGET_NEW_SET = "(set) => { if (!set || set === SAMPLE) window.dbNewSet = undefined; }".replace(
    "SAMPLE", json.dumps(SAMPLE_SET)
)
