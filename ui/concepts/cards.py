"""Photo cards with their findings, and the editor of a photo's crop.

Plain HTML with its script. Names, findings and paths are escaped here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from dreambooth.data.findings import HARMLESS, Code, Finding
from dreambooth.data.focus import MAX_ZOOM, Focus

# The one-click fix for a finding, besides removing the photo.
FIXES: dict[Code, tuple[str, str]] = {
    "small": ("choose", "Adjust the crop"),
    "dark": ("brighten", "Brighten"),
    "aspect": ("choose", "Adjust the crop"),
    "bars": ("refocus", "Crop the bars off"),
}
# A card is about as wide: smaller squares are blurred in it.
CLEAR_PX = 160


@dataclass(frozen=True)
class PhotoCard:
    """One photo: its file, the name the user knows it by, the copy that is shown, its findings, and its mask."""

    file: str
    name: str
    view: str
    findings: Sequence[Finding]
    caption: str = ""
    mask: str = ""


def served(path: str) -> str:
    """Return the address of one of the page's own copies, relative to the page."""
    return escape(f"gradio_api/file={quote(path)}")


def cards(
    photos: Sequence[PhotoCard], chosen: str | None, prompt: str = "", removed: tuple[str, str] | None = None,
    side_px: int = CLEAR_PX,
) -> str:  # fmt: skip
    """Return the photos of a set as cards, each with its caption, or `prompt` if it has none of its own.

    `removed` is the file and the name of a photo that was just removed and can be restored. `side_px` is the size at
    which they are trained.
    """
    bar = "" if removed is None else _undo(*removed)
    if not photos:
        return f"{bar}<div class='db-none'>Your photos appear here, upright and cropped to a square.</div>"
    items = "".join(_card(number, photo, photo.file == chosen, prompt) for number, photo in enumerate(photos, 1))
    if side_px < CLEAR_PX:
        bar += (
            f"<p class='db-hint'>They look blurred because the chosen base model trains at {side_px} x {side_px} px. "
            "Your photos are kept as they are.</p>"
        )
    return f"{bar}<ol class='db-photos'>{items}</ol>"


def _undo(file: str, name: str) -> str:
    undo = _button("restore", file, "Undo", f"Bring {name} back")
    return f"<p class='db-undo' role='status'><span class='db-name'>{escape(name)} was removed.</span> {undo}</p>"


def _card(number: int, photo: PhotoCard, is_chosen: bool, prompt: str) -> str:
    file, name = escape(photo.file), escape(photo.name)
    warned = any(one.code not in HARMLESS for one in photo.findings)
    lines = "".join(_finding(photo.file, one) for one in photo.findings)
    if not lines:
        lines = "<li class='db-ok'>Looks good</li>"
    if photo.mask:
        lines += "<li class='db-ok' data-code='mask'>Mask painted: the red part is the subject</li>"
    caption = (
        f"<textarea class='db-caption' rows='2' data-photo='{file}' placeholder='{escape(prompt)}' "
        f"aria-label='Caption of photo {number}, {name}'>{escape(photo.caption)}</textarea>"
    )
    classes = "db-photo" + (" db-chosen" if is_chosen else "") + (" db-warned" if warned else "")
    return (
        f"<li class='{classes}'><button type='button' class='db-view' data-act='choose' data-photo='{file}' "
        f"aria-label='Photo {number}, {name}: choose its square and caption' aria-pressed='{str(is_chosen).lower()}'>"
        f"{_view(number, photo)}</button>"
        f"<div class='db-tell'><b>{number}</b> <span class='db-name' title='{name}'>{name}</span>"
        f"<ul>{lines}</ul>{caption}</div><div class='db-acts'>"
        f"{_button('choose', photo.file, 'Adjust', f'Adjust photo {number}')}"
        f"{_button('turn', photo.file, 'Turn', f'Turn photo {number} to the right')}"
        f"{_button('remove', photo.file, 'Remove', f'Remove photo {number}')}</div></li>"
    )


def _view(number: int, photo: PhotoCard) -> str:
    if not photo.view:
        return "<span class='db-none'>cannot be read</span>"
    mask = f"<img class='db-mask' src='{served(photo.mask)}' alt='' loading='lazy'>" if photo.mask else ""
    return f"<img src='{served(photo.view)}' alt='Photo {number} as it is trained' loading='lazy'>{mask}"


def _finding(file: str, one: Finding) -> str:
    act, label = FIXES.get(one.code, ("", ""))
    fix = f" {_button(act, file, label, label)}" if act else ""
    kind = "db-ok" if one.code in HARMLESS else "db-warn"
    return f"<li class='{kind}' data-code='{one.code}'>{escape(one.sentence)}{fix}</li>"


def _button(act: str, file: str, label: str, spoken: str) -> str:
    return (
        f"<button type='button' class='db-act' data-act='{act}' data-photo='{escape(file)}' "
        f"aria-label='{escape(spoken)}'>{escape(label)}</button>"
    )


def editor(file: str, preview: str, size: tuple[int, int], focus: Focus) -> str:
    """Return the whole photo with its crop on it, to be moved by mouse or keyboard."""
    left, top, right, bottom = focus.box(size)
    width, height = size
    place = (
        f"left:{100 * left / width:.3f}%;top:{100 * top / height:.3f}%;"
        f"width:{100 * (right - left) / width:.3f}%;height:{100 * (bottom - top) / height:.3f}%"
    )
    true = focus.inside(size)
    return (
        f"<div class='db-stage' data-photo='{escape(file)}' data-w='{width}' data-h='{height}' "
        f"data-x='{true.x:.5f}' data-y='{true.y:.5f}' data-zoom='{focus.zoom:.3f}' "
        f"style='aspect-ratio:{width}/{height};max-width:min(100%, {420 * width / height:.0f}px)'>"
        f"<img src='{served(preview)}' alt='The whole photo' draggable='false'>"
        f"<div class='db-square' tabindex='0' role='group' style='{place}' "
        "aria-label='The square that is trained. Arrow keys move it, plus and minus change its size.'></div></div>"
        "<label class='db-zoom'>Closer <input type='range' min='1' "
        f"max='{min(MAX_ZOOM, 4):g}' step='0.05' value='{focus.zoom:.2f}' aria-label='How close the square is'></label>"
    )


def cut_view(view: str, sentence: str) -> str:
    """Return the selected photo's crop as it is trained."""
    return (
        f"<figure class='db-cut'><img src='{served(view)}' alt='The chosen photo as it is trained'>"
        f"<figcaption>{escape(sentence)}</figcaption></figure>"
    )


def set_report(
    num_photos: int, lines: Sequence[tuple[bool, str]], found: Mapping[str, Sequence[Finding]], kind: str
) -> str:
    """Return the summary of all photos: how many, what to fix, what matters for this kind, what was just added."""
    head = f"{num_photos} photo{'' if num_photos == 1 else 's'}" if num_photos else "No photos yet"
    bad = sum(any(one.code not in HARMLESS for one in findings) for findings in found.values())
    parts = [_of_the_number(num_photos), _of_the_faults(num_photos, bad)]
    advice = " ".join(filter(None, parts))
    items = "".join(f"<li class='{'db-ok' if fine else 'db-warn'}'>{escape(sentence)}</li>" for fine, sentence in lines)
    return (
        f"<div class='db-report' role='status'><strong>{head}</strong>"
        f"{f' <span>{escape(advice)}</span>' if advice else ''}"
        f"{f'<ul>{items}</ul>' if items else ''}<p class='db-hint'>{escape(PRACTICES.get(kind, ''))}</p></div>"
    )


def _of_the_number(num_photos: int) -> str:
    if num_photos < 3:
        return "3 to 5 photos are recommended: one subject, several angles, lights and backgrounds."
    if num_photos > 20:
        return "More than 20 photos rarely help; choose the best ones."
    return ""


def _of_the_faults(num_photos: int, bad: int) -> str:
    if not num_photos:
        return ""
    if not bad:
        return "All usable."
    return f"{bad} {'needs' if bad == 1 else 'need'} attention."


# What matters for each kind, according to the well-known notebook and its users.
PRACTICES = {
    "person": "People: close-ups and half figures, nobody else in them, different clothes and light in each photo.",
    "pet": "Pets: the whole animal and its face, no other animal, a different place in each photo.",
    "object": "Objects: several sides, different backgrounds, no other object of its kind.",
    "style": "Styles: different subjects in the same style; ten or more photos work better than five.",
}

CARDS_CSS = """
.db-none { padding: 3.2rem 1rem; text-align: center; color: var(--body-text-color-subdued);
  border: 1px dashed var(--border-color-primary); border-radius: 12px; }
.db-photos { list-style: none; margin: 0; padding: 0; display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); }
.db-photo { display: flex; flex-direction: column; border: 1px solid var(--border-color-primary); border-radius: 12px;
  overflow: hidden; background: var(--block-background-fill); margin: 0; min-width: 0; }
.db-photo.db-warned { border-color: #c58a1f; }
.db-photo.db-chosen { outline: 3px solid var(--slider-color); outline-offset: -1px; }
.db-view { padding: 0; border: 0; background: var(--background-fill-secondary); cursor: pointer; display: block;
  position: relative; }
.db-view .db-mask { position: absolute; inset: 0; height: 100%; }
.db-view img { width: 100%; aspect-ratio: 1; object-fit: cover; display: block; margin: 0; }
.db-view:focus-visible, .db-act:focus-visible { outline: 3px solid var(--slider-color); outline-offset: -3px; }
.db-tell { padding: .5rem .7rem .2rem; font-size: .88rem; flex: 1; min-width: 0; }
.db-name { color: var(--body-text-color-subdued); overflow-wrap: anywhere; font-size: .82rem; }
.db-tell .db-name { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden; }
.db-undo { display: flex; gap: .7rem; align-items: center; margin: 0 0 .6rem; }
.db-tell ul { list-style: none; margin: .3rem 0 0; padding: 0; }
.db-tell li { padding-left: 1.15rem; position: relative; line-height: 1.35; margin: .2rem 0; }
.db-tell li::before { position: absolute; left: 0; content: "✓"; color: var(--link-text-color); }
.db-tell li.db-warn::before { content: "!"; color: #c0492f; font-weight: 700; left: .25rem; }
.db-caption { width: 100%; box-sizing: border-box; margin: .35rem 0 .2rem; padding: .3rem .45rem; resize: vertical;
  font: inherit; font-size: .82rem; line-height: 1.35; border: 1px solid var(--input-border-color); border-radius: 8px;
  background: var(--input-background-fill); color: var(--body-text-color); }
.db-caption::placeholder { color: var(--body-text-color-subdued); opacity: 1; }
.db-acts { display: flex; align-items: center; gap: .3rem; padding: .4rem .6rem .6rem; flex-wrap: wrap; }
.db-act { font: inherit; margin: 0 !important; font-size: .8rem; padding: .22rem .6rem; min-height: 28px;
  border-radius: 8px; cursor: pointer; border: 1px solid var(--border-color-primary);
  background: var(--background-fill-secondary); color: var(--body-text-color); }
.db-act:hover { border-color: var(--slider-color); }
@media (max-width: 640px) { .db-photos { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .5rem; }
  .db-act { min-height: 34px; } }
"""

CARDS_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-act]');
  if (button) trigger('click', {act: button.dataset.act, photo: button.dataset.photo});
});
let waiting = null;
const keep = () => {
  const field = waiting?.field;
  clearTimeout(waiting?.timer);
  waiting = null;
  if (field) trigger('edit', {photo: field.dataset.photo, caption: field.value});
};
element.addEventListener('input', (event) => {
  if (!event.target.matches('.db-caption')) return;
  if (waiting && waiting.field !== event.target) keep();
  clearTimeout(waiting?.timer);
  waiting = {field: event.target, timer: setTimeout(keep, 600)};
});
element.addEventListener('focusout', keep);
"""

EDITOR_CSS = """
.db-stage { position: relative; overflow: hidden; border-radius: 10px; margin: 0 auto; touch-action: none;
  user-select: none; background: var(--background-fill-secondary); }
.db-stage img { position: absolute; inset: 0; width: 100%; height: 100%; display: block; margin: 0; }
.db-square { position: absolute; box-sizing: border-box; border: 2px solid #fff; cursor: move; touch-action: none;
  box-shadow: 0 0 0 9999px rgba(0, 0, 0, .55), inset 0 0 0 1px rgba(0, 0, 0, .6); }
.db-square:focus-visible { outline: 3px solid var(--slider-color); outline-offset: -5px; }
.db-zoom { display: flex; gap: .7rem; align-items: center; max-width: 420px; margin: .7rem auto 0; font-size: .9rem; }
.db-zoom input { flex: 1; accent-color: var(--slider-color); min-height: 30px; }
"""

EDITOR_JS = """
watch('value', () => { if (stage()) element.scrollIntoView({block: 'nearest', behavior: 'smooth'}); });
const limit = (value, low, high) => Math.min(Math.max(value, low), high);
const stage = () => element.querySelector('.db-stage');
const place = (to) => {
  const at = stage().dataset, w = +at.w, h = +at.h;
  const zoom = limit(to.zoom, 1, 4), side = Math.min(w, h) / zoom;
  const left = limit(to.x * w - side / 2, 0, w - side), top = limit(to.y * h - side / 2, 0, h - side);
  at.x = (left + side / 2) / w; at.y = (top + side / 2) / h; at.zoom = zoom;
  const style = element.querySelector('.db-square').style;
  style.left = 100 * left / w + '%'; style.top = 100 * top / h + '%';
  style.width = 100 * side / w + '%'; style.height = 100 * side / h + '%';
  element.querySelector('input').value = zoom;
};
const now = () => ({x: +stage().dataset.x, y: +stage().dataset.y, zoom: +stage().dataset.zoom});
let waiting = null, held = null;
const tell = (after) => {
  clearTimeout(waiting);
  waiting = setTimeout(() => { if (stage()) trigger('release', {photo: stage().dataset.photo, ...now()}); }, after);
};
element.addEventListener('pointerdown', (event) => {
  if (!event.target.closest('.db-stage')) return;
  const box = stage().getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
  if (!event.target.closest('.db-square')) place({...now(), x, y});
  held = {x: x - now().x, y: y - now().y};
  stage().setPointerCapture(event.pointerId);
  element.querySelector('.db-square').focus({preventScroll: true});
  event.preventDefault();
});
element.addEventListener('pointermove', (event) => {
  if (!held) return;
  const box = stage().getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
  place({...now(), x: x - held.x, y: y - held.y});
});
for (const end of ['pointerup', 'pointercancel']) {
  element.addEventListener(end, () => { if (held) { held = null; tell(0); } });
}
element.addEventListener('keydown', (event) => {
  if (!event.target.closest('.db-square')) return;
  const by = {ArrowLeft: [-.02, 0, 1], ArrowRight: [.02, 0, 1], ArrowUp: [0, -.02, 1], ArrowDown: [0, .02, 1],
    '+': [0, 0, 1.1], '-': [0, 0, 1 / 1.1]}[event.key];
  if (!by) return;
  const at = now();
  place({x: at.x + by[0], y: at.y + by[1], zoom: at.zoom * by[2]});
  tell(350);
  event.preventDefault();
});
element.addEventListener('input', (event) => {
  if (event.target.type !== 'range') return;
  place({...now(), zoom: +event.target.value});
  tell(250);
});
"""

CUT_CSS = """
.db-cut { margin: 0; } .db-cut img { width: min(100%, 260px); aspect-ratio: 1; border-radius: 10px; display: block;
  margin: 0; } .db-cut figcaption { font-size: .86rem; color: var(--body-text-color-subdued); margin-top: .3rem; }
"""
