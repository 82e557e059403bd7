"""What runs in the browser before Gradio's own scripts: the page's language, and fixes for its components."""

from ui.access.connection import RECONNECT

# Gradio translates its own texts into the browser's language, but ours are English.
ENGLISH = """for (const [name, value] of [['language', 'en'], ['languages', ['en']]]) {
  Object.defineProperty(navigator, name, {value, configurable: true});
}"""
# A picture that says again what stands beside it, a name that is not the one on the button, a name where none may be,
# thumbnails whose names leave out their captions, and buttons that show a picture alone.
READABLE = """(() => {
  const mend = () => {
    for (const image of document.querySelectorAll('footer img[alt]:not([alt=""])')) image.alt = '';
    for (const box of document.querySelectorAll('.upload-container[aria-label]')) box.removeAttribute('aria-label');
    for (const box of document.querySelectorAll('div.empty[aria-label]:not([role])')) box.removeAttribute('aria-label');
    for (const button of document.querySelectorAll('button.thumbnail-item')) {
      const text = button.textContent.trim(), label = button.getAttribute('aria-label') ?? '';
      if (text) for (const image of button.querySelectorAll('img')) image.alt = '';
      if (text && !label.includes(text)) button.setAttribute('aria-label', `${text}. ${label}`);
    }
    for (const button of document.querySelectorAll('button:not([aria-label]):not([title])')) {
      const image = button.querySelector('img, svg');
      if (image && !button.textContent.trim() && !image.getAttribute('alt')) {
        button.setAttribute('aria-label', 'Show the picture');
      }
    }
  };
  let waiting = null;
  const watch = () => new MutationObserver(() => { waiting ??= setTimeout(() => { waiting = null; mend(); }, 300); })
    .observe(document.body, {childList: true, subtree: true});
  document.body ? watch() : addEventListener('DOMContentLoaded', watch);
})();"""
FIRST_SCRIPTS = f"<script>{ENGLISH}\n{RECONNECT}\n{READABLE}</script>"
