"""Gradio's scripts and styles for a page in one file instead of a hundred.

A browser fetches six files at a time, and on a slow connection each takes seconds to start. The file registers its
modules in an import map, under the addresses that Gradio gives them: whatever it lacks is fetched as before.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import brotli

ENTRY = re.compile(r'<script type="module" crossorigin src="(\./assets/([\w.-]+\.js))"></script>')
STYLES = re.compile(r'<link rel="stylesheet" crossorigin href="(\./assets/([\w.-]+\.css))">')
CONFIG = "window.gradio_config = "
# What Vite writes into a script for each file it may load later: their names, and for one of them the places of those.
FILES = re.compile(r"m\.f=(\[[^\]]*\])")
COMPONENT = r"[{,]%s:\{[^{}]*?component:\(\)=>\w+\(\(\)=>import\(`\./[^`]+`\)[^\[]*\[([\d,]*)\]"
NAMED_OTHERWISE = {"api": "state"}
BROTLI_QUALITY = 9

# A module from text has no folder: what it imports gets whole addresses. A disabled style sheet is not fetched, and
# neither is a link of a kind that browsers do not know; Gradio loads nothing that there is a link to.
REGISTER = """((files) => {
  const folder = new URL('assets/', document.baseURI).href, imports = {}, styles = document.createElement('style');
  for (const [name, text] of Object.entries(files)) {
    const link = document.createElement('link');
    link.href = folder + name;
    link.rel = name.endsWith('.css') ? 'stylesheet' : 'bundled';
    link.setAttribute('disabled', '');
    document.head.append(link);
    if (name.endsWith('.css')) {
      styles.textContent += text.replaceAll('url(./', 'url(' + folder) + '\\n';
      continue;
    }
    const whole = text.replace(/(["'`])\\.\\/([\\w.-]+\\.js)\\1/g, (_, quote, other) => quote + folder + other + quote)
      .replaceAll('import.meta.url', JSON.stringify(folder + name));
    imports[folder + name] = URL.createObjectURL(new Blob([whole], {type: 'text/javascript'}));
  }
  const map = document.createElement('script');
  map.type = 'importmap';
  map.textContent = JSON.stringify({imports});
  document.head.append(styles, map);
})("""


@dataclass(frozen=True)
class Bundle:
    """One script with everything a page needs, as text and compressed, under a name that changes with its content."""

    name: str
    script: bytes
    packed: bytes


def bundled(page: str, assets: Path) -> tuple[str, Bundle | None]:
    """Return a page of Gradio changed to load one bundle, and the bundle; unchanged if its layout is unknown."""
    entry = ENTRY.search(page)
    if entry is None or not (assets / entry[2]).is_file():
        return page, None
    sheet, config = STYLES.search(page), _config(page)
    names = dict.fromkeys([*_needed(entry[2], _shown_kinds(config), assets), *([sheet[2]] if sheet else [])])
    files = {name: (assets / name).read_text("utf-8") for name in names}
    script = (REGISTER + json.dumps(files) + ");").encode()
    digest = hashlib.sha256(script).hexdigest()[:16]
    bundle = Bundle(f"bundle-{digest}.js", script, brotli.compress(script, quality=BROTLI_QUALITY))
    # An import map holds for imports only, not for the address of a script.
    start = f'<script src="./assets/{bundle.name}"></script>\n<script type="module">import "{entry[1]}";</script>'
    # The one style sheet that is not among the files.
    if theme := config.get("theme_hash"):
        start = f'<link rel="preload" as="style" href="./theme.css?v={theme}">\n' + start
    page = page.replace(entry[0], start)
    return (page.replace(sheet[0], f'<link rel="stylesheet" href="{sheet[1]}" disabled>') if sheet else page), bundle


def _config(page: str) -> dict[str, Any]:
    begin = page.find(CONFIG)
    config, _ = json.JSONDecoder().raw_decode(page, begin + len(CONFIG)) if begin >= 0 else ({}, 0)
    return dict(config)


def _shown_kinds(config: Mapping[str, Any]) -> list[str]:
    """Return the types of components that a page loads at first: all that are not hidden themselves, on any tab."""
    shown = (one["type"] for one in config.get("components", ()) if one["props"].get("visible") is not False)
    return sorted({NAMED_OTHERWISE.get(kind, kind) for kind in shown})


def _needed(entry: str, kinds: Iterable[str], assets: Path) -> Iterator[str]:
    """Yield the files that the entry loads, those that these load in turn, and of components those of these types."""
    yield entry
    first = _later(entry, assets)
    yield from first
    for name in first:
        if not name.endswith(".js") or name == entry:
            continue
        text, later = (assets / name).read_text("utf-8"), _later(name, assets)
        places = [found[1] for kind in kinds if (found := re.search(COMPONENT % re.escape(kind), text))]
        if places:
            yield from (later[int(place)] for one in places for place in one.split(",") if place)
        else:
            yield from later


def _later(name: str, assets: Path) -> list[str]:
    """Return the names of the files that a script may load later."""
    found = FILES.search((assets / name).read_text("utf-8"))
    return [Path(path).name for path in json.loads(found[1])] if found else []
