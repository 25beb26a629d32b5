"""Serve a model whose requests say how they are steered: python -m steer.serve."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig

from steer.cli import script
from steer.serve.settings import ServeSettings


def settings(cfg: DictConfig) -> Iterable[tuple[str, Any, str]]:
    """Each setting, its value, and where it comes from."""
    values = asdict(ServeSettings.of(cfg))
    return [(key, values[key], cfg["origin_of"].get(key, "default")) for key in sorted(values)]


@script("serve", settings=settings)
def main(cfg: DictConfig) -> None:
    """Serve until interrupted."""
    try:
        from steer.serve.run import serve
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"serving needs {error.name}: pip install -e '.[serve]' in the project's folder"
        ) from error
    with suppress(KeyboardInterrupt):  # how one ends a server
        serve(cfg)


if __name__ == "__main__":
    main()
