"""The editor of a photo's mask: a canvas over the photo, painted with mouse, finger or keyboard.

Plain HTML with its script, like the editor of the crop. Gradio's image editor would load 700 kB of scripts, draws a
given layer upside down (6.31), and uploads the photo with every stroke, under names that deleting the photo does not
find.
"""

from html import escape

from ui.concepts.cards import served


def painter(file: str, preview: str, mask: str, guess: str, size: tuple[int, int]) -> str:
    """Return the photo with its mask over it, for painting; `guess` is a starting point on request.

    preview: of the photo, of this (width, height); mask (or none) and guess: transparent for the background.
    """
    width, height = size
    begin = f" data-mask='{served(mask)}'" if mask else ""
    tools = "".join(
        f"<button type='button' class='db-act' data-tool='{tool}'{pressed}>{label}</button>"
        for tool, label, pressed in (
            ("paint", "Paint", " aria-pressed='true'"), ("erase", "Erase", " aria-pressed='false'"),
            ("undo", "Undo", ""), ("clear", "Clear", ""), ("found", "Start from the found mask", ""),
            ("guess", "Start from a guess", ""), ("save", "Save mask", ""), ("close", "Close", ""),
        )
    )  # fmt: skip
    return (
        "<p class='db-paint-how'><b>Paint what is your subject</b> <span class='db-hint'>The rest of the photo counts "
        "only by the background weight.</span></p>"
        f"<div class='db-paint' data-photo='{escape(file)}'{begin} data-guess='{served(guess)}' "
        f"style='aspect-ratio:{width}/{height};max-width:min(100%, {460 * width / height:.0f}px)'>"
        f"<img src='{served(preview)}' alt='The whole photo' draggable='false'>"
        f"<canvas width='{width}' height='{height}' tabindex='0' role='application' aria-label='The mask of the photo. "
        "Arrow keys move the brush, the space bar paints.'></canvas></div>"
        f"<div class='db-tools'>{tools}<label>Brush <input type='range' min='2' max='40' value='10' "
        "aria-label='Size of the brush'></label></div>"
    )


PAINTER_CSS = """
.db-paint-how { margin: .8rem 0 .5rem; }
.db-paint { position: relative; overflow: hidden; border-radius: 10px; margin: 0; touch-action: none;
  user-select: none; background: var(--background-fill-secondary); }
.db-paint img, .db-paint canvas { position: absolute; inset: 0; width: 100%; height: 100%; display: block; margin: 0; }
.db-paint canvas { opacity: .55; cursor: crosshair; touch-action: none; }
.db-paint canvas:focus-visible { outline: 3px solid var(--slider-color); outline-offset: -3px; }
.db-tools { display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; margin-top: .6rem; }
.db-tools label { display: flex; gap: .5rem; align-items: center; font-size: .9rem; }
.db-tools input { accent-color: var(--slider-color); min-height: 30px; width: 110px; }
.db-tools .db-act { font: inherit; margin: 0 !important; font-size: .8rem; padding: .22rem .6rem; min-height: 32px;
  border-radius: 8px; cursor: pointer; border: 1px solid var(--border-color-primary);
  background: var(--background-fill-secondary); color: var(--body-text-color); }
.db-tools .db-act[aria-pressed=true] { border-color: var(--slider-color); outline: 1px solid var(--slider-color); }
.db-tools .db-act[data-tool=save] { background: var(--button-primary-background-fill);
  color: var(--button-primary-text-color); border-color: transparent; }
"""

PAINTER_JS = """
const canvas = () => element.querySelector('canvas'), at = () => element.querySelector('.db-paint').dataset;
let pen = null, before = [], cursor = null;
const context = () => canvas().getContext('2d', {willReadFrequently: true});
const remember = () => {
  before.push(context().getImageData(0, 0, canvas().width, canvas().height));
  if (before.length > 20) before.shift();
};
const lay = (address) => {
  const shown = new Image(), on = canvas();
  shown.onload = () => {
    if (on !== canvas()) return;
    context().clearRect(0, 0, on.width, on.height);
    context().drawImage(shown, 0, 0, on.width, on.height);
    on.dataset.ready = '';
  };
  shown.src = address;
};
watch('value', () => {
  before = []; pen = cursor = null;
  if (!canvas()) return;
  if (at().mask) lay(at().mask); else canvas().dataset.ready = '';
  element.scrollIntoView({block: 'nearest', behavior: 'smooth'});
});
const erases = () => element.querySelector('[data-tool=erase]').getAttribute('aria-pressed') === 'true';
const line = (from, to) => {
  const ink = context(), share = +element.querySelector('input[type=range]').value / 100;
  ink.globalCompositeOperation = erases() ? 'destination-out' : 'source-over';
  ink.strokeStyle = 'COLOUR'; ink.lineCap = ink.lineJoin = 'round';
  ink.lineWidth = share * Math.min(canvas().width, canvas().height);
  ink.beginPath(); ink.moveTo(from.x, from.y); ink.lineTo(to.x, to.y); ink.stroke();
  ink.globalCompositeOperation = 'source-over';
};
const place = (event) => {
  const box = canvas().getBoundingClientRect();
  return {x: (event.clientX - box.left) / box.width * canvas().width,
          y: (event.clientY - box.top) / box.height * canvas().height};
};
element.addEventListener('pointerdown', (event) => {
  if (event.target !== canvas() || event.button) return;
  remember();
  pen = cursor = place(event);
  line(pen, pen);
  canvas().setPointerCapture(event.pointerId);
  canvas().focus({preventScroll: true});
  event.preventDefault();
});
element.addEventListener('pointermove', (event) => {
  if (!pen) return;
  for (const each of event.getCoalescedEvents?.() ?? [event]) { const to = place(each); line(pen, to); pen = to; }
});
for (const end of ['pointerup', 'pointercancel']) element.addEventListener(end, () => { pen = null; });
element.addEventListener('keydown', (event) => {
  if (event.target !== canvas()) return;
  const step = Math.min(canvas().width, canvas().height) / 20;
  const by = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step]}[event.key];
  cursor ??= {x: canvas().width / 2, y: canvas().height / 2};
  if (by) cursor = {x: Math.min(Math.max(cursor.x + by[0], 0), canvas().width),
                    y: Math.min(Math.max(cursor.y + by[1], 0), canvas().height)};
  else if (event.key === ' ') { remember(); line(cursor, cursor); }
  else return;
  event.preventDefault();
});
const painted = () => {
  const {width, height} = canvas(), ink = context().getImageData(0, 0, width, height), all = ink.data;
  for (let place = 0; place < all.length; place += 4) {
    all[place] = all[place + 1] = all[place + 2] = all[place + 3] >= 128 ? 255 : 0;
    all[place + 3] = 255;
  }
  const mask = Object.assign(document.createElement('canvas'), {width, height});
  mask.getContext('2d').putImageData(ink, 0, 0);
  return mask.toDataURL('image/png');
};
element.addEventListener('click', (event) => {
  const tool = event.target.closest('[data-tool]')?.dataset.tool;
  if (!tool) return;
  if (tool === 'save') trigger('release', {photo: at().photo, mask: painted()});
  else if (tool === 'close') trigger('release', {photo: at().photo, mask: ''});
  else if (tool === 'found') trigger('edit', {photo: at().photo});
  else if (tool === 'undo') { const last = before.pop(); if (last) context().putImageData(last, 0, 0); }
  else if (tool === 'clear') { remember(); context().clearRect(0, 0, canvas().width, canvas().height); }
  else if (tool === 'guess') { remember(); lay(at().guess); }
  else for (const one of ['paint', 'erase']) {
    element.querySelector(`[data-tool=${one}]`).setAttribute('aria-pressed', String(one === tool));
  }
});
""".replace("COLOUR", "#ff3b30")
