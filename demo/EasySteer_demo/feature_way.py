"""Steering by features of a sparse autoencoder: found, selected, each with a strength."""

from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import gradio as gr
import wording
from features import Features
from gradio.components import Component
from options import number, whole
from recipes import Recipe, of_features
from studio import Studio, in_words
from ways import Way

# Features that an example selects.
PRESET = 2
# Features as they are selected: ids and strengths.
Selected = list[tuple[int, float]]


class FeatureWay(Way):
    """Features, each with a strength of its own.

    Attributes:
        ids: Of those selected, by place.
        sliders: Their strengths, a place each; those of vacant places do not count.
    """

    title = "SAE features"
    guide = wording.FEATURES

    def __init__(self, studio: Studio, features: Features) -> None:
        super().__init__(studio)
        self.features = features

    def draw(self, question: gr.Textbox) -> list[Component]:
        """What finds features, and below it those that are selected."""
        with gr.Row():
            presets = [gr.Button(name, size="sm", min_width=90) for name in wording.PRESETS]
        with gr.Tab("Search"):
            word = self.text_field("Word or phrase", placeholder="dog, ocean, music, ...")
            search = gr.Button("Search features")
        with gr.Tab("From text"):
            text = self.text_field("A sentence", lines=2, placeholder="The dog ran into the sea.")
            read = gr.Button("Which features fire on it?")
        with gr.Tab("By id"):
            by_id = gr.Number(
                label=f"Feature, 0 to {self.features.sae.n_features - 1}", precision=0
            )
            add_id = gr.Button("Add this feature")
        self.found = gr.CheckboxGroup([], label="Features found")
        add = gr.Button("Add the ticked features")
        self.ids = gr.State([])
        self._slots()
        search.click(self._search, word, self.found)
        word.submit(self._search, word, self.found)
        read.click(self._read, text, self.found)
        add.click(self._add, [self.found, *self._state], [self.found, *self._shown])
        add_id.click(self._add_one, [by_id, *self._state], self._shown)
        for button, preset in zip(presets, wording.PRESETS.values(), strict=True):
            button.click(partial(self._preset, *preset), None, [question, *self._shown])
        return self._state

    async def recipes(self, *values: Any) -> AsyncGenerator[str | Recipe]:
        """Their sum."""
        most = self.limits.max_feature_strength
        selected = _selected(*values)
        if not selected:
            raise ValueError("no feature is selected: search for a word, tick a feature, add it")
        ids = [self.features.check(one) for one, _ in selected]
        strengths = [number("a feature's strength", s, -most, most) for _, s in selected]
        yield of_features(ids, strengths, self.features.layer, self.limits.sae_path)

    def _slots(self) -> None:
        self.none = gr.Markdown(wording.NO_FEATURES)
        self.rows, self.sliders, removers = [], [], []
        most = self.limits.max_feature_strength
        for _ in range(self.limits.max_features):
            with gr.Row(visible=False, equal_height=True) as row:
                self.sliders.append(gr.Slider(-most, most, 0, step=0.1, scale=5, min_width=200))
                removers.append(gr.Button("Remove", scale=1, min_width=80, size="sm"))
            self.rows.append(row)
        self._state: list[Component] = [self.ids, *self.sliders]
        self._shown = [*self._state, *self.rows, self.none]
        for place, button in enumerate(removers):
            button.click(partial(self._remove, place), self._state, self._shown)

    @in_words()
    def _search(self, word: str) -> Any:
        found = self.features.search(self.limits.written("Word or phrase", word))
        return _offer([(self.features.label(one), one) for one in found])

    async def _read(self, text: str) -> Any:
        with in_words():
            sentence = self.limits.written("A sentence", text)
            firing = await self.studio.answers.alone(partial(self.features.firing, sentence))
            if not firing:
                raise ValueError("no feature fires on this text: write more")
            return _offer(
                [
                    (
                        f"{one.activation:.0f} at '{one.token}': {self.features.label(one.id)}",
                        one.id,
                    )
                    for one in firing
                ]
            )

    @in_words()
    def _add(self, ticked: list[int], *values: Any) -> list[Any]:
        if not ticked:
            raise ValueError("no feature is ticked: tick one of those found")
        return [[], *self._place(self._with(_selected(*values), ticked))]

    @in_words()
    def _add_one(self, given: float | None, *values: Any) -> list[Any]:
        one = whole("the feature's id", given, 0, self.features.sae.n_features - 1)
        return self._place(self._with(_selected(*values), [one]))

    @in_words()
    def _remove(self, place: int, *values: Any) -> list[Any]:
        selected = _selected(*values)
        return self._place(selected[:place] + selected[place + 1 :])

    @in_words()
    def _preset(self, word: str, question: str) -> list[Any]:
        return [question, *self._place(self._with([], self.features.search(word)[:PRESET]))]

    def _with(self, selected: Selected, new: list[int]) -> Selected:
        fresh = [self.features.check(one) for one in new if one not in dict(selected)]
        if len(selected) + len(fresh) > self.limits.max_features:
            raise ValueError(
                f"{len(selected) + len(fresh)} features are too many, {self.limits.max_features} "
                "are allowed: remove some first"
            )
        return [*selected, *((one, self.features.usual_strength(one)) for one in fresh)]

    def _place(self, selected: Selected) -> list[Any]:
        """Updates of all in `_shown`."""
        vacant = self.limits.max_features - len(selected)
        sliders = [
            gr.update(value=strength, label=self.features.label(one)) for one, strength in selected
        ]
        rows = [gr.update(visible=n < len(selected)) for n in range(self.limits.max_features)]
        return [
            [one for one, _ in selected],
            *sliders,
            *(gr.update(value=0) for _ in range(vacant)),
            *rows,
            gr.update(visible=not selected),
        ]


def _selected(ids: list[int], *strengths: float) -> Selected:
    return list(zip(ids, strengths, strict=False))


def _offer(choices: list[tuple[str, int]]) -> Any:
    return gr.update(choices=choices, value=[])
