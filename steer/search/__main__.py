"""Search for the layer, strength and method that steer best, and say whether it is real.

python -m steer.search
python -m steer.search steer_train_dataset=my_pairs.jsonl budget_minutes=5 "methods=[caa]"
python -m steer.search bake_off=true
"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig

from steer.cli import script


def settings(cfg: DictConfig) -> Iterable[tuple[str, Any, str]]:
    """Each setting, its value, and where it comes from."""
    from steer.search.settings import SearchSettings

    given, origin = SearchSettings.of(cfg)
    values = asdict(given)
    values |= values.pop("more")
    return [(key, value, origin.get(key, "default")) for key, value in values.items()]


@script("search", settings=settings)
def main(cfg: DictConfig) -> None:
    """Search on each data set of the config."""
    from rich.console import Console

    from steer.search.running import run

    console = Console()
    for part in run(cfg):
        # Paths and commands are to be copied: they stay in one line.
        console.print(part, markup=False, highlight=False, soft_wrap=isinstance(part, str))


if __name__ == "__main__":
    main()
