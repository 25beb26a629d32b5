"""The page: two tabs, and how it looks. Nothing on it is fetched from elsewhere."""

import inspect
from typing import Any

import gradio as gr
import wording
from asking import AskingPanel, Source
from feature_way import FeatureWay
from studio import Studio
from ways import WAYS

LOOK: dict[str, Any] = {
    # Fonts of the visitor's own machine.
    "theme": gr.themes.Default(
        primary_hue="indigo",
        secondary_hue="indigo",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    ),
    "css": """
        .gradio-container { max-width: 1280px !important }
        .report table { width: auto }
        .report th, .report td { padding: 4px 8px; white-space: nowrap }
    """,
}
# No page on how to call this one, and no list of what visitors asked: gradio would keep that in
# the browser, and offer to keep it on the Hub.
PLAIN = {"footer_links": ["settings"], "show_api": False, "run_history": False}


def page(studio: Studio) -> gr.Blocks:
    """All of it."""
    blocks = gr.Blocks(
        title="EasySteer", analytics_enabled=False, delete_cache=(600, 3600), **_of(gr.Blocks)
    )
    with blocks:
        gr.Markdown(wording.HEAD.format(model=studio.name, layers=studio.model.depth))
        with gr.Tab("Test-Time Steering"):
            _test_time_steering(studio)
        with gr.Tab("SAE-based Fine-grained Manipulation"):
            _feature_steering(studio)
    limits = studio.options
    blocks.queue(max_size=limits.max_waiting, default_concurrency_limit=limits.rows)
    # gradio's reloader shows pages that were never launched.
    blocks.run_history = False
    return blocks


def launch(blocks: gr.Blocks, host: str, port: int) -> None:
    """Serve the page until interrupted.

    Raises:
        OSError: The port is taken.
    """
    blocks.launch(
        server_name=host, server_port=port, share=False, ssr_mode=False, **_of(blocks.launch)
    )


def _of(function: Any) -> dict[str, Any]:
    """What `function` takes of both: before gradio 6 the page took the look, now `launch` does."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in (LOOK | PLAIN).items() if name in known}


def _question(studio: Studio, value: str) -> gr.Textbox:
    """Where the question is written; put on the page later, as ways' examples fill it in."""
    most = studio.options.max_text
    return gr.Textbox(value, label="Your question", lines=2, max_length=most, render=False)


def _test_time_steering(studio: Studio) -> None:
    question = _question(studio, next(iter(wording.PAIRS.values()))[-1])
    ways = [way(studio) for way in WAYS]
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            chosen = gr.Radio(
                [way.title for way in ways], value=ways[0].title, label="Steering strategies"
            )
            panels, sources = [], []
            for way in ways:
                with gr.Column(visible=way is ways[0]) as panel:
                    gr.Markdown(way.guide)
                    sources.append(Source(way, way.draw(question)))
                panels.append(panel)
        with gr.Column(scale=3, min_width=320):
            AskingPanel(studio, question).connect(chosen, sources)
    chosen.change(
        lambda title: [gr.update(visible=way.title == title) for way in ways], chosen, panels
    )


def _feature_steering(studio: Studio) -> None:
    if isinstance(studio.features, str):
        gr.Markdown(studio.features)
        return
    question = _question(studio, next(iter(wording.PRESETS.values()))[-1])
    way = FeatureWay(studio, studio.features)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            gr.Markdown(way.guide)
            source = Source(way, way.draw(question))
        with gr.Column(scale=3, min_width=320):
            AskingPanel(studio, question).connect(None, [source])
