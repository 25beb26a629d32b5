"""A prompt made into a vector, EasyEdit2's Vector Prompt: what the prompt does to an answer.

The contrast is that of CAA (Rimsky et al., 2024, https://arxiv.org/abs/2312.06681), between the
same answer behind a question with the prompt and without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from steer.activations import contrast
from steer.datasets import Row, optional_text_of, text_of
from steer.methods.base import ALONE, Context, Trained
from steer.methods.contrastive import MEAN, PairReader, mean_differences
from steer.methods.prompt_writing import PromptWriter
from steer.models import SteeredModel
from steer.passages import Passage
from steer.progress import progress


@dataclass(kw_only=True)
class TrainVectorPrompt(PairReader, PromptWriter):
    """One vector a layer: the mean over rows of (activation with the prompt - without it).

    A row is an `output`, an `input` that it answers (may be missing), and a `prompt` of its own
    (may be missing); contrastive rows are read as `question` and `matching`. Activations are
    averaged over the output's tokens.

    Attributes:
        prompt: For rows that have none of their own. With `generate_prompt_params` or
            `writer_model`, prompts are concepts, for each of which a prompt is written once (see
            `PromptWriter`).
    """

    prompt: str | None = None

    def __post_init__(self) -> None:
        PairReader.__post_init__(self)
        PromptWriter.__post_init__(self)
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("prompt must not be empty; null where every row has one of its own")

    @property
    def folder(self) -> str:
        """EasyEdit2's name for it."""
        return "vector_prompt_vector"

    def train(self, model: SteeredModel, rows: Sequence[Row], context: Context = ALONE) -> Trained:
        """Vectors `layer_<n>` of shape [d_model], float32.

        Raises:
            ValueError: No rows, a row without output or prompt, or a layer that is not there.
            RuntimeError: The endpoint that is to write prompts does not answer.
        """
        del context
        layers = self.chosen_layers(model)
        if not rows:
            raise ValueError("no rows: give some with an output, and the input that it answers")
        rows, written = self._with_prompts(model, rows)
        wanted, shunned = self.sides(model, rows)
        found = contrast(model, wanted, shunned, layers, batch_size=self.batch_size)
        trained = mean_differences(found, len(rows), MEAN)
        # Folds serve to judge vectors by pairs of answers, and not every data set has them.
        judged = all("matching" in row and "not_matching" in row for row in rows)
        report = {"generated_prompts": written} if written else {}
        return replace(trained, folds=trained.folds if judged else [], report=report)

    def passages(self, model: SteeredModel, row: Row, number: int) -> tuple[Passage, Passage]:
        """The output of row `number`, counted from 1, behind the input with the prompt and without.

        Each side is tokenised whole, and its question once more to know where the output begins.
        """
        prompt = self._prompt_of(row, number)
        asked, answered = _fields(row)
        user = optional_text_of(row, asked, number).strip()
        output = " " + text_of(row, answered, number).strip()
        sides = []
        for text in (f"{prompt} {user}", user):
            question = self.text(model.tokenizer, text)
            start = len(self.encode(model.tokenizer, question))
            ids = self.encode(model.tokenizer, question + output)
            if len(ids) <= start:
                raise ValueError(f"row {number}: {answered!r} adds no token to the question")
            sides.append(Passage(ids, start, len(ids)))
        return sides[0], sides[1]

    def _prompt_of(self, row: Row, number: int) -> str:
        prompt = optional_text_of(row, "prompt", number).strip() or self.prompt
        if prompt is None:
            raise ValueError(
                f"row {number} has no prompt of its own: give one for all, prompt: ..."
            )
        return prompt.strip()

    def _with_prompts(
        self, model: SteeredModel, rows: Sequence[Row]
    ) -> tuple[Sequence[Row], dict[str, str]]:
        """`rows` with the prompts to use, and by concept those that were written."""
        if not self.is_asked:
            return rows, {}
        concepts = [self._prompt_of(row, number) for number, row in enumerate(rows, start=1)]
        distinct = progress(dict.fromkeys(concepts), what="writing prompts", unit="prompt")
        written = {concept: self.write(model, concept) for concept in distinct}
        with_prompts: list[dict[str, Any]] = [
            {**row, "prompt": written[c]} for row, c in zip(rows, concepts, strict=True)
        ]
        return with_prompts, written


def _fields(row: Row) -> tuple[str, str]:
    """The names of what is asked and of what is answered."""
    contrastive = "output" not in row and "matching" in row
    return ("question", "matching") if contrastive else ("input", "output")
