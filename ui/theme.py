"""The page's look: a calm theme made from what Gradio includes; nothing is loaded from other servers."""

from gradio.themes import Base, colors, sizes
from gradio.themes.utils.fonts import LocalFont

# Served by the app itself. Of its bold fonts only this one has all letters.
FONT = (LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif")


def theme() -> Base:
    """Return the theme: warm paper and ink, one green for the next action, and a dark version of the same."""
    return Base(
        primary_hue=colors.teal,
        secondary_hue=colors.teal,
        neutral_hue=colors.stone,
        radius_size=sizes.radius_lg,
        spacing_size=sizes.spacing_md,
        text_size=sizes.text_md,
        font=FONT,
    ).set(
        body_background_fill="#f8f6f2",
        body_background_fill_dark="#171614",
        body_text_color="#26221d",
        body_text_color_dark="#ece7df",
        body_text_color_subdued="#6f675c",
        body_text_color_subdued_dark="#a69d90",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#211f1c",
        background_fill_secondary="#f3f0ea",
        background_fill_secondary_dark="#1c1a18",
        block_background_fill="#ffffff",
        block_background_fill_dark="#211f1c",
        block_border_color="#e5dfd5",
        block_border_color_dark="#37332d",
        border_color_primary="#e5dfd5",
        border_color_primary_dark="#37332d",
        block_shadow="0 1px 2px rgba(60, 50, 35, 0.05)",
        block_shadow_dark="none",
        block_label_background_fill="#f3f0ea",
        block_label_background_fill_dark="#2a2723",
        block_label_text_color="#6f675c",
        block_label_text_color_dark="#a69d90",
        block_title_text_weight="600",
        input_background_fill="#fdfcfa",
        input_background_fill_dark="#1b1917",
        # At least 3:1 against its surroundings, so that input fields can be recognised.
        input_border_color="#8f8676",
        input_border_color_dark="#7d7568",
        input_border_color_focus="#0f6b63",
        input_border_color_focus_dark="#4cc3b5",
        input_border_width="1px",
        input_shadow_focus="0 0 0 2px #0f6b63",
        input_shadow_focus_dark="0 0 0 2px #4cc3b5",
        checkbox_border_color="#8f8676",
        checkbox_border_color_dark="#7d7568",
        button_primary_background_fill="#0f6b63",
        button_primary_background_fill_dark="#14857a",
        button_primary_background_fill_hover="#0c5851",
        button_primary_background_fill_hover_dark="#199688",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        button_secondary_background_fill="#ece7de",
        button_secondary_background_fill_dark="#332f2a",
        button_secondary_background_fill_hover="#e1dacd",
        button_secondary_background_fill_hover_dark="#3e3932",
        button_secondary_text_color="#3b352c",
        button_secondary_text_color_dark="#ece7df",
        color_accent="#0f6b63",
        checkbox_background_color_selected="#0f6b63",
        checkbox_background_color_selected_dark="#14857a",
        checkbox_border_color_selected="#0f6b63",
        checkbox_border_color_selected_dark="#14857a",
        slider_color="#0f6b63",
        slider_color_dark="#2aa395",
        link_text_color="#0f6b63",
        link_text_color_dark="#4cc3b5",
        link_text_color_visited="#0f6b63",
        link_text_color_visited_dark="#4cc3b5",
    )


CSS = """
:root { --db-accent: #0f6b63; --db-bad: #b3402a; --db-warn: #b9791a; --db-raw: #8fbcb5; }
.dark { --db-accent: #4cc3b5; --db-bad: #e8836d; --db-warn: #e0b15c; --db-raw: #3f6d67; }
.gradio-container .main.fillable { max-width: 1120px !important; margin: 0 auto; padding: 1rem 1.2rem !important; }
.gradio-container .html-container { padding: 0 .15rem !important; }
.gradio-container .block:has(> .html-container > .prose:empty):not(:has(> .wrap:not(.hide))) { display: none; }
.gradio-container .block:has(> .wrap:not(.hide)) > .html-container { min-height: 5.5rem; visibility: hidden; }
.gradio-container .block:has(> .html-container) > .wrap { justify-content: flex-start; }
.gradio-container .block:has(> .html-container) > .wrap .progress-text:has(+ .progress-level) { display: none; }
.dark .tab-container button.selected { color: #4cc3b5 !important; }
.gradio-container .label-wrap { text-align: left; }
.gradio-container .secondary-wrap { min-width: 0; }
.gradio-container .secondary-wrap input { min-width: 0; text-overflow: ellipsis; }
.gradio-container h3 { font-size: 1rem; font-weight: 650; margin: .3rem 0; }
.gradio-container h3 .db-hint { font-weight: 400; margin-left: .35rem; }
.gradio-container :focus-visible { outline: 2px solid var(--db-accent); outline-offset: 2px; }
.db-opening { pointer-events: none; } .db-opening[inert] { opacity: .6; transition: opacity .3s .5s; }
.db-offscreen { display: none !important; }
.gradio-container .db-spoken { position: absolute; width: 1px; height: 1px; margin: 0; overflow: hidden;
  clip-path: inset(50%); }
html[data-train-view="runs"] :is(#run-view, #new-view), html[data-train-view="run"] :is(#runs-view, #new-view),
html[data-train-view="new"] :is(#runs-view, #run-view) { display: none !important; }
.db-view-head { align-items: center; } .db-view-head > .block { flex: 0 0 auto !important; width: auto !important;
  min-width: 0 !important; }
.db-view-head > #run { flex: 1 1 14rem !important; }
.db-view-head > :is(.db-end, :nth-child(3)) { margin-left: auto; }
.gradio-container .db-view-head h2 { font-size: 1.15rem; font-weight: 650; margin: 0; }
.gradio-container a.db-button { display: inline-block; padding: .45rem 1.1rem; border-radius: 10px; font-weight: 600;
  color: #fff !important; background: var(--button-primary-background-fill); text-decoration: none; }
#status-line { position: sticky; top: 0; z-index: 40; align-items: center; padding: .45rem .8rem; gap: .8rem;
  flex-wrap: nowrap; background: var(--block-background-fill);
  border: 1px solid var(--db-accent); border-radius: 10px; }
#status-line #status-line-text { flex: 1 1 auto !important; min-width: 0; }
.db-line { display: flex; flex-wrap: wrap; gap: 0 .7rem; align-items: baseline; overflow-wrap: anywhere; }
.db-line a { font-weight: 650; } .db-line .db-bar { flex: 1 0 100%; }
.db-runs tr:hover { background: var(--background-fill-secondary); } .db-runs th a { font-weight: 650; }
.db-header { display: flex; flex-wrap: wrap; align-items: baseline; gap: .3rem 1.2rem; padding: .4rem 0 .2rem; }
.db-header h1 { font-size: 1.45rem; font-weight: 650; letter-spacing: -.015em; margin: 0; }
.db-chips { display: flex; flex-wrap: wrap; gap: .35rem .5rem; font-size: .84rem;
  color: var(--body-text-color-subdued); }
.db-chips span { padding: .12rem .65rem; border-radius: 99px; background: var(--background-fill-secondary);
  border: 1px solid var(--border-color-primary); overflow-wrap: anywhere; }
.db-chips .db-live { color: var(--link-text-color); border-color: currentColor; }
.db-chips .db-alarm { color: var(--db-bad); border-color: currentColor; }
.db-unused-card { color: var(--db-bad); margin: .5rem 0 0; overflow-wrap: anywhere; }
.db-row { display: flex; flex-wrap: wrap; gap: .3rem .7rem; align-items: center; }
.db-quiet { color: var(--body-text-color-subdued); }
.db-chip { font-size: .8rem; font-weight: 600; padding: .1rem .6rem; border-radius: 99px;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
.db-chip-running, .db-chip-stopping, .db-chip-queued { color: var(--link-text-color); border-color: currentColor; }
.db-chip-done { color: #fff; background: #0f6b63; border-color: #0f6b63; }
.db-chip-failed, .db-chip-interrupted { color: #fff; background: #a5402d; border-color: #a5402d; }
.db-chip-paused { color: #fff; background: #86590f; border-color: #86590f; }
.db-bar { height: .55rem; margin-top: .6rem; border-radius: 99px; overflow: hidden;
  background: var(--border-color-primary); }
.db-bar i { display: block; height: 100%; border-radius: 99px; background: var(--slider-color);
  transition: width .6s; }
.db-thin { height: .28rem; margin-top: .25rem; } .db-thin i { background: var(--body-text-color-subdued); }
.db-phases { display: flex; flex-wrap: wrap; gap: .25rem .4rem; list-style: none; margin: .65rem 0 0; padding: 0;
  font-size: .82rem; color: var(--body-text-color-subdued); }
.db-phases li { display: flex; align-items: center; margin: 0; }
.db-phases li::before { content: ""; width: .5rem; height: .5rem; border-radius: 99px; margin-right: .35rem;
  border: 1.5px solid currentColor; }
.db-phases li:not(:last-child)::after { content: ""; width: 1.1rem; height: 1px; margin-left: .45rem;
  background: var(--border-color-primary); }
.db-phases .db-cycle { border: 1px dashed var(--border-color-primary); border-radius: 99px; padding: .1rem .7rem; }
.db-phases .db-cycle::before { display: none; } .db-cycle > span { margin-right: .4rem; font-size: 1rem; }
.db-cycle ol { display: flex; flex-wrap: wrap; gap: .25rem .4rem; list-style: none; margin: 0; padding: 0; }
.db-phases .db-done { color: var(--body-text-color); }
.db-phases .db-done::before { background: var(--db-accent); border-color: var(--db-accent); }
.db-phases .db-now { color: var(--db-accent); font-weight: 650; }
.db-phases .db-now::before { background: currentColor; animation: db-pulse 1.6s infinite; }
@keyframes db-pulse { 50% { opacity: .35; } }
@media (prefers-reduced-motion: reduce) { .db-phases .db-now::before { animation: none; } }
.db-made { display: flex; flex-wrap: wrap; gap: .3rem; margin: .2rem 0; }
.db-made img { height: 64px; border-radius: 6px; margin: 0; }
.db-memory { margin-top: .6rem; font-size: .82rem; color: var(--body-text-color-subdued); max-width: 26rem; }
.db-panel { border: 1px solid var(--border-color-primary); border-left-width: 4px; border-radius: 10px;
  padding: .7rem 1rem; margin: .3rem 0; background: var(--block-background-fill); overflow-wrap: anywhere; }
.db-panel p { margin: .25rem 0 0; } .db-panel ul { margin: .4rem 0 0; padding-left: 1.2rem; list-style: disc; }
.db-panel .db-todo { font-weight: 550; } .db-panel li a { font-weight: 650; text-decoration: underline; }
.db-bad { border-left-color: #c0492f; } .db-note { border-left-color: #c58a1f; }
.db-good { border-left-color: #0f6b63; }
.db-plan { display: flex; flex-wrap: wrap; gap: .1rem 0; margin: 0; font-size: 1rem; }
.db-plan span:not(:last-child)::after { content: "\\00b7"; margin: 0 .5rem; color: var(--body-text-color-subdued); }
.db-plan .db-wrong-part { color: var(--db-bad); font-weight: 650; }
[data-stale-plan] #plan, [data-stale-plan] #start { opacity: .55; transition: opacity .2s .3s; }
[data-stale-plan] #start { pointer-events: none; }
#start-row { align-items: center; } #start-row #plan { align-self: center; }
.db-wrong, .db-wrong .block { border-color: var(--db-bad) !important; }
.db-wrong input, .db-wrong textarea { border-color: var(--db-bad) !important;
  box-shadow: 0 0 0 1px var(--db-bad) !important; }
.db-wrong .info-text code { all: unset; }
.db-wrong .info-text { color: var(--db-bad) !important; font-weight: 600; }
#preset .wrap { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem; }
#preset .wrap label { background: none; border: 1px solid var(--border-color-primary);
  align-items: flex-start; padding: .6rem .7rem; border-radius: 10px; white-space: pre-line;
  line-height: 1.35; font-size: .9rem; }
#preset .wrap label span { color: var(--body-text-color-subdued); }
#preset .wrap label span::first-line { color: var(--body-text-color); font-weight: 650; }
#preset .wrap label.selected { border-color: var(--db-accent); background: var(--background-fill-secondary); }
#preset .wrap label input { margin-top: .2rem; }
.db-report ul { margin: .35rem 0 0; padding-left: 0; list-style: none; font-size: .92rem; }
.db-report li::before { content: "\\2713"; display: inline-block; width: 1.3rem; color: var(--link-text-color); }
.db-report li.db-warn::before { content: "!"; color: #c0492f; font-weight: 700; }
.db-report span, .db-hint { color: var(--body-text-color-subdued); font-size: .92rem; }
.db-logbox { display: flex; flex-direction: column-reverse; max-height: 230px; overflow: auto;
  border: 1px solid var(--border-color-primary); border-radius: 10px; background: var(--background-fill-secondary); }
.db-log { font-size: .8rem; line-height: 1.45; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0;
  padding: .6rem .8rem; background: none !important; border: 0 !important; }
.db-plot { margin: 0; border: 1px solid var(--block-border-color); border-radius: 10px; padding: .5rem;
  background: var(--block-background-fill); }
.db-plot svg { width: 100%; height: auto; display: block; }
.db-plot figcaption { font-size: .82rem; color: var(--body-text-color-subdued); padding: .2rem .3rem 0; }
.db-empty { min-height: 8rem; display: grid; place-items: center; color: var(--body-text-color-subdued); }
.db-grid line { stroke: var(--border-color-primary); stroke-width: 1; }
.db-grid text { fill: var(--body-text-color-subdued); font-size: 12px; }
.db-raw { fill: none; stroke: var(--db-raw); stroke-width: 1; opacity: .55; }
.db-course { fill: none; stroke: var(--db-accent); stroke-width: 2.5; stroke-linejoin: round; }
.db-seen, .db-unseen, .db-drift { fill: none; stroke: var(--db-accent); stroke-width: 2.5; }
.db-unseen { stroke: var(--db-warn); stroke-dasharray: 8 4; }
.db-drift { stroke: var(--db-bad); stroke-dasharray: 2 4; }
.db-now { fill: var(--db-accent); }
.db-now.db-unseen { fill: var(--db-warn); } .db-now.db-drift { fill: var(--db-bad); }
.db-key { margin-right: 1rem; }
.db-key::before { content: ""; display: inline-block; width: 1.6rem; margin-right: .35rem;
  vertical-align: middle; border-top: 3px solid var(--db-accent); }
.db-key.db-unseen::before { border-top: 3px dashed var(--db-warn); }
.db-key.db-drift::before { border-top: 3px dotted var(--db-bad); }
:is(#new-view, [id^='generate-']) .info-text { position: relative; }
:is(#new-view, [id^='generate-']) .info-text code { display: none; position: absolute; right: 0; bottom: 100%;
  z-index: 5; white-space: nowrap;
  padding: .15rem .5rem; border-radius: 6px; border: 1px solid var(--border-color-primary);
  background: var(--background-fill-secondary); color: var(--body-text-color); }
#new-view .block:is(:hover, :focus-within) .info-text code,
[id^='generate-'].block:is(:hover, :focus-within) .info-text code { display: block; }
.db-not-found:not(.db-wrong, :has(.db-wrong)) { display: none !important; }
.db-smooth { fill: none; stroke: var(--db-raw); stroke-width: 2; }
.db-steps { list-style: none; margin: .3rem 0; padding: 0; }
.db-steps li { display: flex; flex-wrap: wrap; gap: .3rem .6rem; align-items: center; padding: .25rem 0; }
.db-step-acts button { margin: 0 !important; font-size: .85rem; padding: .25rem .7rem; min-height: 30px;
  border-radius: 8px; cursor: pointer; border: 1px solid var(--border-color-primary);
  background: var(--background-fill-secondary);
  color: var(--body-text-color); } .db-step-acts button:hover { border-color: var(--slider-color); }
.db-step-acts { display: flex; flex-wrap: wrap; gap: .3rem; margin-left: auto; }
.db-saved { stroke: var(--body-text-color-subdued); stroke-dasharray: 2 4; opacity: .7; }
.db-table { border-collapse: collapse; font-size: .85rem; width: 100%; }
.db-table, .db-table tr { border: 0 !important; }
.db-table th, .db-table td { border: 0 !important; text-align: left; padding: .2rem .6rem .2rem 0; vertical-align: top;
  border-bottom: 1px solid var(--border-color-primary) !important; overflow-wrap: anywhere; }
.db-table th { font-weight: 550; color: var(--body-text-color-subdued); white-space: nowrap; }
#views .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
#history-pictures .grid-container, #class-views .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(min(30%, 8.5rem), 1fr)) !important; }
#samples .grid-wrap { max-height: 30rem; overflow: auto; }
#samples .grid-container { gap: .35rem;
  grid-template-columns: repeat(var(--grid-cols), minmax(5.2rem, 6.8rem)) !important; }
.db-panel code, .db-hint code { font-size: .82em; opacity: .75; }
#connection-lost { position: fixed; inset: auto 0 0 0; z-index: 1000; padding: .7rem 1rem; text-align: center;
  background: #86590f; color: #fff; font-weight: 600; }
#pictures .grid-wrap { max-height: min(80vh, 60rem) !important; }
@media (max-width: 640px) { .tab-container button { padding: .4rem .55rem !important; font-size: .84rem !important; }
  .gradio-container .main.fillable { padding: .5rem .6rem !important; }
  .db-header h1 { font-size: 1.25rem; } #new-view .form { flex-direction: column; }
  .db-runs thead { display: none; } .db-runs tr { display: grid; grid-template-columns: 1fr 1fr; padding: .5rem 0; }
  .db-runs td[data-label]::before { content: attr(data-label) ": "; color: var(--body-text-color-subdued); }
  .db-runs td, .db-runs th { border-bottom: 0 !important; } .db-runs tr { border-bottom: 1px solid !important;
    border-color: var(--border-color-primary) !important; }
  #start-row { flex-direction: column; align-items: stretch; }
  .db-phases li:not(:last-child)::after { width: .4rem; } }
"""
