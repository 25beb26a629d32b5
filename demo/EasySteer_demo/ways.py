"""The four ways of test-time steering: what a visitor fills in, and the recipe that it is."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

import gradio as gr
import wording
from gradio.components import Component
from options import number, whole
from recipes import Recipe, of_one_example, of_prompt, of_ready_vector
from studio import Studio, in_words

from steer.build import pick

# The slider's ends, as EasyEdit2's are; what a visitor may ask for by other means is a limit.
STRONGEST = 6.0


class Way(ABC):
    """A way to steer.

    Attributes:
        title: Its name.
        guide: What to do, as Markdown.
    """

    title: ClassVar[str]
    guide: ClassVar[str]

    def __init__(self, studio: Studio) -> None:
        self.studio, self.limits = studio, studio.options

    @abstractmethod
    def draw(self, question: gr.Textbox) -> list[Component]:
        """Put its fields on the page; they are what `recipes` is given.

        Args:
            question: The visitor's question, which an example fills in too.
        """

    @abstractmethod
    def recipes(self, *values: Any) -> AsyncGenerator[str | Recipe]:
        """The recipe, in the end; texts before it are what it will say, as it is written.

        Raises:
            ValueError: A field holds what cannot be.
        """

    def strength(self, value: float | None) -> float:
        """A vector's strength, within the limit."""
        most = self.limits.max_strength
        return number("the strength", value, -most, most)

    def layer(self, value: float | None) -> int:
        """A layer that the model has."""
        return whole("the layer", value, 0, self.studio.model.depth - 1)

    def text_field(self, label: str, **more: Any) -> gr.Textbox:
        """A field for text."""
        return gr.Textbox(label=label, max_length=self.limits.max_text, **more)

    def strength_slider(self, value: float) -> gr.Slider:
        """A field for a vector's strength."""
        most = min(STRONGEST, self.limits.max_strength)
        return gr.Slider(-most, most, value, step=0.05, label="Steer strength", info=wording.SIGN)


class OneExample(Way):
    """A vector of one pair of answers."""

    title = "One Example-based Steering"
    guide = wording.ONE_EXAMPLE

    def draw(self, question: gr.Textbox) -> list[Component]:
        """Prompt, both answers, layer, strength."""
        first = next(iter(wording.PAIRS.values()))
        prompt = self.text_field("Prompt", lines=2, value=first[0])
        good = self.text_field("Positive completion", lines=2, value=first[1])
        bad = self.text_field("Negative completion", lines=2, value=first[2])
        deepest = self.studio.model.depth - 1
        layer = gr.Slider(0, deepest, (deepest + 1) // 2, step=1, label="Steer layer")
        strength = self.strength_slider(wording.ONE_EXAMPLE_STRENGTH)
        gr.Examples(
            [list(one) for one in wording.PAIRS.values()],
            [prompt, good, bad, question],
            example_labels=list(wording.PAIRS),
        )
        return [prompt, good, bad, layer, strength]

    async def recipes(self, *values: Any) -> AsyncGenerator[str | Recipe]:
        """caa, of one pair."""
        prompt, good, bad, layer, strength = values
        yield of_one_example(
            self.limits.written("Prompt", prompt),
            self.limits.written("Positive completion", good),
            self.limits.written("Negative completion", bad),
            self.layer(layer),
            self.strength(strength),
        )


class ReadyVectors(Way):
    """A vector that was made before."""

    title = "Pre-trained Vectors-based Steering"
    guide = wording.READY

    def draw(self, question: gr.Textbox) -> list[Component]:
        """Vector, layer, strength."""
        names = list(self.studio.ready)
        layers, strength = self._suited(names[0]) if names else ({"choices": []}, 0.0)
        fields: list[Component] = [
            vector := gr.Dropdown(
                names, value=names[0] if names else None, label="Steering vector"
            ),
            gr.Dropdown(label="Steer layer", **layers),
            self.strength_slider(strength),
        ]
        vector.change(self._offered, vector, fields[1:])
        gr.Examples([[text] for text in wording.QUESTIONS], [question], label="Questions to ask")
        return fields

    async def recipes(self, *values: Any) -> AsyncGenerator[str | Recipe]:
        """What is in the vector's folder."""
        name, layer, strength = values
        if not self.studio.ready:
            raise ValueError(wording.NO_VECTORS)
        ready = pick("vector", name, self.studio.ready)
        if layer not in ready.layers:
            raise ValueError(f"{name} has vectors for the layers {ready.layers}: got {layer}")
        yield of_ready_vector(ready.method, name, str(ready.folder), layer, self.strength(strength))

    def _suited(self, name: str) -> tuple[dict[str, Any], float]:
        """Of a vector: its layers, as a field has them, and the strength to begin with."""
        ready = self.studio.ready[name]
        first, most = ready.layers[0], min(STRONGEST, self.limits.max_strength)
        strength = max(-most, min(most, ready.usual_strength(first)))
        return {"choices": ready.layers, "value": first}, strength

    @in_words()
    def _offered(self, name: str) -> tuple[Any, float]:
        pick("vector", name, self.studio.ready)
        layers, strength = self._suited(name)
        return gr.update(**layers), strength


class Prompt(Way):
    """A text before every question."""

    title = "Prompt-based Steering"
    guide = wording.PROMPT

    def draw(self, question: gr.Textbox) -> list[Component]:
        """The text."""
        prompt = self.text_field("Steering prompt", lines=3, value=wording.PROMPTS[0][0])
        gr.Examples([list(one) for one in wording.PROMPTS], [prompt, question])
        return [prompt]

    async def recipes(self, *values: Any) -> AsyncGenerator[str | Recipe]:
        """That text."""
        (prompt,) = values
        yield of_prompt(self.limits.written("Steering prompt", prompt))


class GeneratedPrompt(Way):
    """A text that the model writes for a concept."""

    title = "AutoPrompt-based Steering"
    guide = wording.AUTOPROMPT

    def draw(self, question: gr.Textbox) -> list[Component]:
        """The concept."""
        concept = self.text_field("Concept", value=wording.CONCEPTS[0][0])
        gr.Examples([list(one) for one in wording.CONCEPTS], [concept, question])
        return [concept]

    async def recipes(self, *values: Any) -> AsyncGenerator[str | Recipe]:
        """What the model writes, unsteered."""
        concept, text = self.limits.written("Concept", values[0]), ""
        async for text in self.studio.answers.write(concept):
            yield text
        yield of_prompt(text, concept)


WAYS: tuple[type[Way], ...] = (OneExample, ReadyVectors, Prompt, GeneratedPrompt)
