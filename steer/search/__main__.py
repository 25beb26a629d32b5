"""Search for the layer, strength and method that steer best, and say whether it is real.

python -m steer.search
python -m steer.search steer_train_dataset=my_pairs.jsonl budget_minutes=5 methods=[caa]
python -m steer.search bake_off=true
"""

from dataclasses import asdict

from omegaconf import DictConfig

from steer.cli import script, show_settings
from steer.secrets import redacted


def explain(cfg: DictConfig) -> None:
    """Print where each value comes from."""
    from steer.search.settings import SearchSettings

    settings, origin = SearchSettings.of(cfg)
    values = redacted(asdict(settings))
    values |= values.pop("more")
    show_settings({key: (value, origin.get(key, "default")) for key, value in values.items()})


@script("search", explain=explain)
def main(cfg: DictConfig) -> None:
    """Search on each data set of the config."""
    from rich.console import Console

    from steer.search.running import run

    console = Console()
    for part in run(cfg):
        console.print(part)


if __name__ == "__main__":
    main()
