"""Serve a model whose requests say how they are steered: python -m steer.serve.

python -m steer.serve vector_dir=vectors/SmolLM2-135M-Instruct port=8001
"""

import logging
from contextlib import suppress

from omegaconf import DictConfig

from steer.cli import script

log = logging.getLogger(__name__)


@script("serve")
def main(cfg: DictConfig) -> None:
    """Serve until interrupted."""
    try:
        from steer.serve.run import serve
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"serving needs {error.name}: pip install 'steer-lm[serve]'"
        ) from error
    with suppress(KeyboardInterrupt):  # how one ends a server
        serve(cfg)


if __name__ == "__main__":
    main()
