"""The half of the page that asks the model: question, both answers, report, files to take along."""

import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
import wording
from answering import Pair, Wish
from gradio.components import Component
from options import number, whole
from recipes import Done, Recipe, export, text_of
from reporting import report_of
from studio import Studio, in_words
from ways import Way

from steer.models import EditPrompt

# Seconds between two updates of the page.
PAUSE = 0.1
HOTTEST = 2.0


@dataclass(frozen=True)
class Source:
    """A way, and the fields that hold its values."""

    way: Way
    fields: Sequence[Component]


class AskingPanel:
    """Asks the model as one of some ways says.

    Args:
        studio: What all visitors share.
        question: Where the question is put; not on the page yet.
    """

    def __init__(self, studio: Studio, question: gr.Textbox) -> None:
        self.studio, self.limits = studio, studio.options
        question.render()
        settings = self._settings()
        with gr.Row():
            self.ask = gr.Button("Steer and answer", variant="primary")
            self.stop = gr.Button("Stop")
        with gr.Row():
            self.unsteered = _answer_field("Unsteered")
            self.steered = _answer_field("Steered")
        self.in_force = gr.Textbox(
            label="Steering prompt in force", interactive=False, visible=False
        )
        self.report = gr.Markdown(wording.NO_REPORT, elem_classes="report")
        self.done = gr.State()
        self._files()
        self.asked: list[Component] = [question, *settings]

    def connect(self, chosen: Component | None, sources: Sequence[Source]) -> None:
        """Let the button ask as the way says whose title `chosen` holds; as the first, without."""
        self.sources = {source.way.title: source for source in sources}
        fields = [field for source in sources for field in source.fields]
        title = gr.State(sources[0].way.title) if chosen is None else chosen
        shown = [
            *(self.unsteered, self.steered, self.in_force, self.report),
            *(self.done, self.recipe, self.files),
        ]
        asking = self.ask.click(
            self._answer,
            [title, *self.asked, *fields],
            shown,
            show_progress="minimal",
            concurrency_limit=None,
        )
        self.stop.click(None, cancels=[asking])

    def _settings(self) -> list[Component]:
        most = self.limits.max_new_tokens
        with gr.Accordion("Generation settings", open=False):
            return [
                gr.Slider(1, most, min(60, most), step=1, label="Max new tokens"),
                gr.Slider(0, HOTTEST, 0, step=0.1, label="Temperature", info=wording.GREEDY),
                gr.Slider(0.1, 1, 1, step=0.05, label="Top-p"),
                gr.Number(42, label="Seed", precision=0),
            ]

    def _files(self) -> None:
        with gr.Accordion("Take it along", open=False):
            gr.Markdown(wording.FILES)
            self.recipe = gr.Code(label="recipe.yaml", language="yaml", interactive=False)
            pack = gr.Button("Make files")
            self.files = gr.Files(label="Files", interactive=False, visible=False)
            pack.click(self._packed, self.done, self.files)

    def _wish(self, question: str, tokens: float, heat: float, top_p: float, seed: float) -> Wish:
        return Wish(
            question=self.limits.written("Your question", question),
            max_new_tokens=whole("Max new tokens", tokens, 1, self.limits.max_new_tokens),
            temperature=number("Temperature", heat, 0, HOTTEST),
            top_p=number("Top-p", top_p, 0.01, 1),
            seed=whole("Seed", seed, 0, 2**32 - 1),
        )

    async def _answer(self, title: str, *values: Any) -> AsyncGenerator[dict[Component, Any]]:
        with in_words():
            yield self._nothing_yet()
            wish = self._wish(*values[: len(self.asked)])
            source = self.sources[title]
            recipe: str | Recipe = ""
            async for recipe in source.way.recipes(*self._own(source, values)):
                if isinstance(recipe, str):
                    yield {self.in_force: gr.update(visible=True, value=recipe)}
            assert isinstance(recipe, Recipe)
            made = await self.studio.make(recipe)
            prompts = [one.text for one in made.interventions if isinstance(one, EditPrompt)]
            yield {self.in_force: gr.update(visible=bool(prompts), value=" ".join(prompts))}
            pair, shown_at = Pair(), 0.0
            async for pair in self.studio.answers.compare(wish, made.interventions):
                if time.monotonic() - shown_at > PAUSE:
                    shown_at = time.monotonic()
                    yield {self.unsteered: pair.unsteered, self.steered: pair.steered}
            done = Done(recipe, wish, made)
            yield self._all(pair, done)

    def _own(self, source: Source, values: Sequence[Any]) -> Sequence[Any]:
        """The values of the fields of one way, out of all."""
        start = len(self.asked)
        for other in self.sources.values():
            if other is source:
                break
            start += len(other.fields)
        return values[start : start + len(source.fields)]

    def _nothing_yet(self) -> dict[Component, Any]:
        return {
            self.unsteered: "",
            self.steered: "",
            self.in_force: gr.update(visible=False, value=""),
            self.report: "",
            self.done: None,
            self.recipe: "",
            self.files: gr.update(visible=False, value=None),
        }

    def _all(self, pair: Pair, done: Done) -> dict[Component, Any]:
        return {
            self.unsteered: pair.unsteered,
            self.steered: pair.steered,
            self.report: report_of(pair, done),
            self.done: done,
            self.recipe: text_of(done, self.limits),
        }

    def _packed(self, done: Done | None) -> Iterator[Any]:
        with in_words(), TemporaryDirectory() as folder:
            if done is None:
                raise ValueError("there is nothing to take along yet: let the model answer first")
            paths = export(done, self.limits, Path(folder))
            # The page has copied them once it is asked for more.
            yield gr.update(visible=True, value=[str(path) for path in paths])


def _answer_field(label: str) -> gr.Textbox:
    """Plain text: what a model says is no Markdown, which could fetch pictures from elsewhere."""
    return gr.Textbox(label=label, lines=7, max_lines=20, interactive=False, min_width=280)
