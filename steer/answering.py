"""Many prompts answered in batches, each finished answer kept on disk where a journal is given."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from steer.journal import Journal
from steer.models import Answer, EditTensor, Intervention, SteeredModel, generate_batches
from steer.models.generation import answer_of_ids
from steer.models.interventions import only_rows
from steer.models.tally import Tally
from steer.progress import progress

NOTHING: Sequence[EditTensor] = ()


class Engine(Protocol):
    """What answers in place of transformers."""

    def batches(
        self,
        prompts: Sequence[Sequence[int]],
        params: dict[str, Any],
        recipes: Sequence[Sequence[EditTensor]],
        seeds: Sequence[Sequence[int]],
        tally: Tally | None,
    ) -> Iterator[tuple[list[int], list[Answer]]]:
        """Yield `(rows, answers)` until every row is done, each steered by its own recipe."""
        ...


@dataclass(frozen=True)
class Job:
    """One answer to be made.

    Attributes:
        name: Unique among the jobs of a call.
        prompt_ids: What the model reads.
        seed: Its own random numbers.
        steered: Whether what is in force acts.
    """

    name: str
    prompt_ids: list[int]
    seed: tuple[int, ...]
    steered: bool = True


def answer_jobs(
    model: SteeredModel,
    jobs: Sequence[Job],
    params: Mapping[str, Any],
    *,
    batch_size: int | str = "auto",
    tally: Tally | None = None,
    journal: Journal | None = None,
    label: str = "answering",
    engine: Engine | None = None,
) -> dict[str, Answer]:
    """Answers by job name.

    Args:
        model: With what is in force on it.
        jobs: Longest prompts are answered first; steered and unsteered ones share batches, in
            which the unsteered rows are left untouched.
        params: For `transformers`' `generate`.
        batch_size: As for `generate_batches`.
        tally: Filled with counts of each steered layer.
        journal: Its items are taken over, new ones added batch by batch.
        label: Of the progress bar.
        engine: Answers instead of `model`, by what is in force on it.
    """
    known: Mapping[str, list[int]] = {} if journal is None else journal.items
    found = {
        job.name: answer_of_ids(model, job.prompt_ids, known[job.name])
        for job in jobs
        if job.name in known
    }
    with progress(total=len(jobs), done=len(found), what=label, unit="answer") as bar:
        left = [job for job in jobs if job.name not in found]
        prompts, seeds = [job.prompt_ids for job in left], [job.seed for job in left]
        steps = model.interventions()
        if engine is None:
            batches = generate_batches(
                model,
                prompts,
                dict(params),
                interventions=only_rows(steps, [job.steered for job in left]),
                seeds=seeds,
                batch_size=batch_size,
                tally=tally,
            )
        else:
            edits = edits_of(steps)
            recipes = [edits if job.steered else NOTHING for job in left]
            batches = engine.batches(prompts, dict(params), recipes, seeds, tally)
        for rows, answers in batches:
            new = {left[row].name: a for row, a in zip(rows, answers, strict=True)}
            if journal is not None:
                journal.add({name: answer.new_ids for name, answer in new.items()})
            found |= new
            bar.update(len(new))
    return found


def edits_of(steps: Sequence[Intervention]) -> list[EditTensor]:
    """What an engine is told: steering prompts are in the text that it is given."""
    return [step for step in steps if isinstance(step, EditTensor)]
