"""What all visitors share: the model, and what there is to steer it by."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from html import escape

import gradio as gr
from answering import Answers
from features import Features, features_of
from library import ReadyVector, ready_vectors
from options import DemoOptions
from recipes import Made, Recipe, make

from steer.files import project_root
from steer.models import SteeredModel
from steer.models.facts import model_facts
from steer.secrets import redacted

log = logging.getLogger(__name__)

OUR_FAULT = "This is a fault of the demo's, not yours: its log says more. Try again."


@dataclass(frozen=True)
class Studio:
    """The model and what goes with it; nothing here is changed by a visitor.

    Attributes:
        options: What the demo was started with.
        model: Its weights; nothing is ever in force on it.
        answers: What makes its answers.
        ready: Ready vectors, by name.
        features: Of its sparse autoencoder, or why there are none.
    """

    options: DemoOptions
    model: SteeredModel
    answers: Answers
    ready: dict[str, ReadyVector]
    features: Features | str

    @classmethod
    def of(cls, options: DemoOptions, model: SteeredModel | None = None) -> "Studio":
        """Load what the options name.

        Raises:
            ValueError: The model cannot be had, or what is to steer it does not fit.
            FileNotFoundError: A folder that is named is not there.
        """
        model = model or options.source.load()
        return cls(
            options,
            model,
            Answers(model, options),
            ready_vectors(model, options.vector_dirs),
            features_of(options, model),
        )

    @property
    def name(self) -> str:
        """The model's."""
        return model_facts(self.model)["id"]

    async def make(self, recipe: Recipe) -> Made:
        """What a recipe gives; only what learns from text needs the model for itself."""
        job = partial(make, recipe, self.options, self.model)
        return await (self.answers.alone(job) if recipe.rows else asyncio.to_thread(job))


@contextmanager
def in_words() -> Iterator[None]:
    """What goes wrong inside is shown on the page, in words."""
    try:
        yield
    except gr.Error:
        raise
    except (ValueError, OSError, RuntimeError) as error:
        # Where files are on this machine is not for visitors.
        said = redacted(str(error)).replace(f"{project_root()}/", "")
        raise _shown(said) from error
    except Exception as error:
        log.error("a fault of the demo's", exc_info=error)
        raise _shown(OUR_FAULT) from error


def _shown(message: str) -> gr.Error:
    # The page takes it for HTML.
    return gr.Error(escape(message), duration=None, title="Not done", print_exception=False)
