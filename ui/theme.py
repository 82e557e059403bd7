"""How the page looks: a calm theme of its own, made of what Gradio brings along; nothing is fetched from elsewhere."""

from gradio.themes import Base, colors, sizes
from gradio.themes.utils.fonts import LocalFont

# Served by the app itself. Of its bold faces only this one has all letters.
FONT = (LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif")


def theme() -> Base:
    """Return the theme: warm paper and ink, one green for what is to be done next, the same in the dark."""
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
        slider_color="#0f6b63",
        slider_color_dark="#2aa395",
        link_text_color="#0f6b63",
        link_text_color_dark="#4cc3b5",
    )


CSS = """
.gradio-container .main.fillable { max-width: 1120px !important; margin: 0 auto; padding: 1rem 1.2rem !important; }
.db-header { display: flex; flex-wrap: wrap; align-items: baseline; gap: .3rem 1.2rem; padding: .4rem 0 .2rem; }
.db-header h1 { font-size: 1.45rem; font-weight: 650; letter-spacing: -.015em; margin: 0; }
.db-chips { display: flex; flex-wrap: wrap; gap: .35rem .5rem; font-size: .84rem;
  color: var(--body-text-color-subdued); }
.db-chips span { padding: .12rem .65rem; border-radius: 99px; background: var(--background-fill-secondary);
  border: 1px solid var(--border-color-primary); overflow-wrap: anywhere; }
.db-chips .db-live { color: var(--link-text-color); border-color: currentColor; }
.db-row { display: flex; flex-wrap: wrap; gap: .3rem .7rem; align-items: center; }
.db-quiet { color: var(--body-text-color-subdued); }
.db-chip { font-size: .8rem; font-weight: 600; padding: .1rem .6rem; border-radius: 99px;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
.db-chip-running, .db-chip-stopping, .db-chip-queued { color: var(--link-text-color); border-color: currentColor; }
.db-chip-done { color: #fff; background: #0f6b63; border-color: #0f6b63; }
.db-chip-failed, .db-chip-interrupted { color: #fff; background: #a5402d; border-color: #a5402d; }
.db-bar { height: .55rem; margin-top: .6rem; border-radius: 99px; overflow: hidden;
  background: var(--border-color-primary); }
.db-bar i { display: block; height: 100%; border-radius: 99px; background: var(--slider-color);
  transition: width .6s; }
.db-panel { border: 1px solid var(--border-color-primary); border-left-width: 4px; border-radius: 10px;
  padding: .7rem 1rem; margin: .3rem 0; background: var(--block-background-fill); overflow-wrap: anywhere; }
.db-panel p { margin: .25rem 0 0; } .db-panel ul { margin: .4rem 0 0; padding-left: 1.2rem; list-style: disc; }
.db-panel .db-todo { font-weight: 550; }
.db-bad { border-left-color: #c0492f; } .db-note { border-left-color: #c58a1f; }
.db-good { border-left-color: #0f6b63; }
.db-report ul { margin: .35rem 0 0; padding-left: 0; list-style: none; font-size: .92rem; }
.db-report li::before { content: "\\2713"; display: inline-block; width: 1.3rem; color: var(--link-text-color); }
.db-report li.db-warn::before { content: "!"; color: #c0492f; font-weight: 700; }
.db-report span, .db-hint { color: var(--body-text-color-subdued); font-size: .92rem; }
.db-logbox { display: flex; flex-direction: column-reverse; max-height: 230px; overflow: auto;
  border: 1px solid var(--border-color-primary); border-radius: 10px; background: var(--background-fill-secondary); }
.db-log { font-size: .8rem; line-height: 1.45; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0;
  padding: .6rem .8rem; background: none !important; border: 0 !important; }
#samples .grid-container, #views .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
.db-panel code, .db-hint code { font-size: .82em; opacity: .75; }
@media (max-width: 640px) { .gradio-container .main.fillable { padding: .5rem .6rem !important; }
  .db-header h1 { font-size: 1.25rem; } #settings .form { flex-direction: column; } }
"""
