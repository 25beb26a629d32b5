"""What the server asks of its engine, and what it gets."""

from collections.abc import Sequence
from dataclasses import dataclass

from steer.models import EditLayer
from steer.models.tally import Tally


@dataclass(frozen=True, eq=False)
class Asked:
    """One answer to be made.

    Attributes:
        prompt: Token ids.
        edits: How it is steered.
        limit: Most new tokens.
        temperature: 0 takes the likeliest token each time.
        top_p: Share of probability that is drawn from.
        seed: For its random numbers.
        stops: Texts that end the answer and are no part of it.
    """

    prompt: list[int]
    edits: Sequence[EditLayer]
    limit: int
    temperature: float
    top_p: float
    seed: tuple[int, ...]
    stops: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Said:
    """More of one answer.

    Attributes:
        choice: Which of those that were asked for together.
        text: What is new.
        tokens: How many tokens are new.
        finish: `stop` or `length` with its last piece; else None.
        tally: With the last piece, what steering did.
    """

    choice: int
    text: str
    tokens: int
    finish: str | None = None
    tally: Tally | None = None
