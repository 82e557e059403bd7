"""The page's address: which tab, and which run or view of the Train tab; for Back, reloads and bookmarks.

The browser reads and writes `?tab=train&run=NAME` or `?tab=train&view=new` by itself, so that no answer of the server
can move a window away from where its user is. A handler that navigates says so with `to`.
"""

import itertools
from html import escape
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from ui.boundary import QUIET

TABS = ("concepts", "train", "convert", "generate")
# An address requested twice must be two different answers: the browser ignores an equal one.
_numbers = itertools.count(1)

# `show` writes the address and the attribute used by the style sheet; `follow` reads it, and returns the tab and the
# run.
SCRIPT = """(...given) => {
  const parts = ['tab', 'run', 'view'];
  const placeOf = query => Object.fromEntries(parts.map(part => [part, query.get(part) ?? '']));
  const read = () => placeOf(new URLSearchParams(location.search));
  const tabOf = place => TABS.includes(place.tab) ? place.tab : place.run || place.view ? 'train' : TABS[0];
  const address = place => {
    const query = new URLSearchParams(location.search);
    parts.forEach(part => place[part] ? query.set(part, place[part]) : query.delete(part));
    return location.pathname + (query.size ? '?' + query : '') + location.hash;
  };
  const self = window.dbPlace = {
    landing: {view: 'runs'}, last: null, shown: '', search: '', ready: false, read,
    paint() {
      const place = read();
      self.search = location.search;
      const view = place.run ? 'run' : ['new', 'runs'].includes(place.view) ? place.view : self.landing.view;
      document.documentElement.dataset.trainView = view;
      if (tabOf(place) === 'train') self.last = {tab: 'train', run: place.run, view: place.view};
    },
    show(place, replaced) {
      const how = replaced ? 'replaceState' : 'pushState';
      if (address(place) !== address(read())) history[how](null, '', address(place));
      self.paint();
    },
    tab(name) {
      self.shown = name;
      if (!self.ready || tabOf(read()) === name) return;
      self.show(name === 'train' ? self.last ?? {tab: 'train', ...self.landing} : {tab: name});
    },
    run(name) {
      const place = read();
      if (self.ready && name && place.run && place.run !== name) self.show({tab: place.tab || 'train', run: name});
    },
    land(landing) {
      self.landing = landing ?? self.landing;
      const place = read();
      if (tabOf(place) === 'train' && !place.run && !place.view) self.show({tab: 'train', ...self.landing}, true);
      self.paint();
      self.ready = true;
    },
    follow() {
      self.paint();
      const place = read(), tab = tabOf(place);
      // A tab that is selected once more would be laid out again.
      return [tab === self.shown ? undefined : {__type__: 'update', selected: tab}, place.run || undefined];
    },
  };
  if (!window.dbFollows) {
    window.dbFollows = true;
    const follow = () => document.getElementById('follow-address')?.click();
    addEventListener('popstate', () => { if (location.search !== window.dbPlace.search) follow(); });
    document.addEventListener('click', event => {
      // Gradio's page has a base address, so that a link to a field would load the page again without its query.
      const field = event.target.closest?.('a[href^="#"]')?.getAttribute('href').slice(1);
      if (field) {
        event.preventDefault();
        document.getElementById(field)?.scrollIntoView({block: 'center'});
        document.getElementById(field)?.querySelector('input, textarea')?.focus({preventScroll: true});
        return;
      }
      const link = event.target.closest?.('a[data-place]');
      if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      window.dbPlace.show(placeOf(new URL(link.href).searchParams));
      follow();
      scrollTo(0, 0);
    });
  }
  return self.follow()[0];
}"""
SCRIPT = SCRIPT.replace("TABS", str(list(TABS)))
FOLLOW = "() => window.dbPlace.follow()"
GO = """place => {
  if (place?.landing) { window.dbPlace.land(place.landing); return [undefined, undefined]; }
  window.dbPlace.show(place);
  return window.dbPlace.follow();
}"""
# What the first load requests: the run of the address, before any run is selected.
RUN_OF_THE_ADDRESS = "() => [new URLSearchParams(location.search).get('run') ?? '']"


def to(tab: str, *, run: str = "", view: str = "") -> dict[str, Any]:
    """Return the answer that navigates: to a tab, and there to a run or to the view `new` or `runs`."""
    return {"tab": tab, "run": run, "view": view, "number": next(_numbers)}


def landing(view: str, run: str = "") -> dict[str, Any]:
    """Return the answer that says where the Train tab begins if its address names no view."""
    return {"landing": {"view": "" if run else view, "run": run}, "number": next(_numbers)}


def link(text: str, *, run: str = "", view: str = "", style: str = "") -> str:
    """Return a link to a place of the Train tab; `text` is HTML."""
    query = urlencode({"tab": "train"} | ({"run": run} if run else {}) | ({"view": view} if view else {}))
    kind = f" class='{style}'" if style else ""
    return f"<a data-place{kind} href='?{escape(query)}'>{text}</a>"


def build() -> dict[str, Any]:
    """Return the components that the address uses, by name."""
    return {
        "place": gr.JSON({}, visible=False, label="Place"),
        "follow": gr.Button("Follow the address", elem_id="follow-address", elem_classes=["db-offscreen"]),
    }


def connect(made: dict[str, Any], page: gr.Blocks, tabs: gr.Tabs, each: dict[str, gr.Tab], run: gr.Dropdown) -> None:
    """Connect tabs and runs with the address."""
    page.load(None, None, tabs, js=SCRIPT, **QUIET)
    made["follow"].click(None, None, [tabs, run], js=FOLLOW, **QUIET)
    made["place"].change(None, made["place"], [tabs, run], js=GO, **QUIET)
    for name, tab in each.items():
        tab.select(None, None, None, js=f"() => window.dbPlace?.tab('{name}')", **QUIET)
    run.change(None, run, None, js="name => window.dbPlace?.run(name)", **QUIET)
