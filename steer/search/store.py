"""What a search has found so far, on disk as it comes, so that none of it is computed twice."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from steer.journal import Journal
from steer.search.budget import Budget


class Store:
    """Values by kind and name.

    Args:
        journal: Where they are kept.
        budget: What was spent is kept with them.
    """

    def __init__(self, journal: Journal, budget: Budget) -> None:
        self.journal, self.budget = journal, budget

    def one(self, name: str, compute: Callable[[], Any]) -> Any:
        """The value of `name`; computed where it is not kept."""
        if name not in self.journal.items:
            self._add({name: compute()})
        return self.journal.items[name]

    def many(
        self,
        kind: str,
        names: Sequence[str],
        compute: Callable[[list[int]], Iterable[tuple[int, Any]]],
    ) -> list[Any]:
        """The value of each of `names`.

        Args:
            kind: Of the values.
            names: Of this kind's.
            compute: Given places in `names`, yields each place's value; kept one by one.
        """
        keys = [f"{kind}/{name}" for name in names]
        missing = [place for place, key in enumerate(keys) if key not in self.journal.items]
        for place, value in compute(missing) if missing else ():
            self._add({keys[place]: value})
        return [self.journal.items[key] for key in keys]

    def _add(self, items: dict[str, Any]) -> None:
        self.journal.add(items | {"spent": self.budget.spent})
