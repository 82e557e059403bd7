"""The words of a concept: typed, derived from its prompts, and the check of its identifier."""

from html import escape
from typing import Any

from dreambooth.config.concepts import Concept
from dreambooth.data.identifiers import Verdict
from dreambooth.data.samples import sample_concept
from dreambooth.data.words import KINDS, Words, prompts_for
from dreambooth.pictures.prompts import EXAMPLES, KIND_WORDS, subject_of


def kind_named(kind: str) -> Any:
    """Return the kind of this name, the first of all for any other."""
    return next((one for one in KINDS if one == kind), KINDS[0])


def words_from(kind: str, identifier: str, class_word: str, instance_prompt: str, class_prompt: str) -> Words:
    """Return the words in a page's fields, whatever they contain."""
    texts = [str(text or "").strip() for text in (identifier, class_word, instance_prompt, class_prompt)]
    return Words(kind_named(kind), *texts)


def words_of(concept: Concept, kind: str = "") -> Words:
    """Return the words from which a concept's prompts were made, as far as they tell."""
    class_prompt = concept.class_prompt or ""
    identifier, class_word = _identifier_and_class(concept.instance_prompt, class_prompt)
    guessed = next((name for name, known in KIND_WORDS.items() if class_word.lower() in known), "object")
    return Words(kind_named(kind or guessed), identifier, class_word, concept.instance_prompt, class_prompt)


def sample_words() -> Words:
    """Return the words of the bundled sample subject."""
    return words_of(sample_concept(), "object")


def _identifier_and_class(instance_prompt: str, class_prompt: str) -> tuple[str, str]:
    """Return the word that only the instance prompt has, and the class prompt's last word."""
    known = class_prompt.split()
    own = [word for word in instance_prompt.split() if word not in known]
    return (own[-1] if own else ""), (known[-1] if known else "")


def verdict_html(verdict: Verdict, kind: str, identifier: str, class_word: str) -> str:
    """Return how the base tokenizes the identifier, and prompts to try with it later."""
    tone = "db-ok" if verdict.fine else "db-warn"
    verdict_list = f"<ul><li class='{tone}'>{escape(verdict.sentence)}</li></ul>"
    if not identifier.strip() or not class_word.strip():
        return f"<div class='db-report'>{verdict_list}</div>"
    subject = subject_of(prompts_for(kind, identifier, class_word)[0])
    examples = [text.format(subject=subject) for text in EXAMPLES[kind_named(kind)][:3]]
    shown_examples = " · ".join(f"<i>{escape(text)}</i>" for text in examples)
    return f"<div class='db-report'>{verdict_list}<p class='db-hint'>Prompts for later: {shown_examples}</p></div>"
