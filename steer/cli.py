"""What the scripts share: Hydra without its run folders, one-line errors, logs without secrets."""

import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from steer.files import project_root
from steer.secrets import RedactingFilter

log = logging.getLogger(__name__)

EXPLAIN = "--explain-config"
# Nothing but results is left behind: no run folder, no copy of the config, no log file.
QUIET = ("hydra.output_subdir=null", "hydra.run.dir=.", "hydra/job_logging=none")
OTHER_NAMES = {"vector_applier": "vector_apply", "vector_generator": "vector_generate"}
_SECRET = re.compile(r"^\+*(\w*(api_key|token|password|secret))=", re.IGNORECASE)


def script(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make a program of `main(cfg)`: `key=value` changes or adds a key of hparams/Steer/<name>.yaml.

    A mistake of the user's ends it with one line and status 1; `STEER_TRACEBACK=1` shows all.
    """

    def wrap(main: Callable[[DictConfig], None]) -> Callable[[], None]:
        def run() -> None:
            explain = EXPLAIN in sys.argv
            sys.argv[1:] = _arguments(sys.argv[1:])
            folder = str(project_root() / "hparams" / "Steer")
            job = _guarded(_explain if explain else main)
            hydra.main(version_base="1.3", config_path=folder, config_name=config_name)(job)()

        return run

    return wrap


def _arguments(given: list[str]) -> list[str]:
    """Hydra's arguments: every plain override may add as well as change."""
    arguments = []
    for number, argument in enumerate(given):
        if secret := _SECRET.match(argument):
            sys.exit(f"error: {secret[1]}: keys and tokens come from the environment only")
        if argument == EXPLAIN:
            continue
        if number and given[number - 1] in ("--config-name", "-cn"):
            argument = OTHER_NAMES.get(argument, argument)
        is_override = re.match(r"^\+?[\w.]+=", argument) and not argument.startswith("hydra.")
        arguments.append("++" + argument.lstrip("+") if is_override else argument)
    return [*arguments, *(q for q in QUIET if not any(a.startswith(q.split("=")[0]) for a in given))]


def _guarded(main: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    def job(cfg: DictConfig) -> None:
        _start_logging()
        with open_dict(cfg):
            cfg["origin_of"] = _origins(cfg)
        try:
            main(cfg)
        except KeyboardInterrupt:
            sys.exit("interrupted: finished items are kept; resume=true goes on from them")
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            if os.environ.get("STEER_TRACEBACK"):
                raise
            sys.exit(f"error: {error}")

    return job


def _start_logging() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(RedactingFilter())
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _origins(cfg: DictConfig) -> dict[str, str]:
    state = HydraConfig.get()
    sources = [s.path for s in state.runtime.config_sources if s.provider == "main"]
    file = str(Path(sources[0], f"{state.job.config_name}.yaml"))
    relative = os.path.relpath(file) if Path(file).is_relative_to(Path.cwd()) else file
    origins = {str(key): relative for key in cfg}
    overridden = [override.lstrip("+~").split("=")[0] for override in state.overrides.task]
    return origins | {name.split(".")[0]: "command line" for name in overridden}


def _explain(cfg: DictConfig) -> None:
    """Print where each value of the run comes from."""
    from rich.console import Console
    from rich.table import Table

    from steer.settings import Run

    table = Table("key", "value", "comes from", title="Settings of this run")
    listed: set[str] = set()
    for phase in ("generate", "apply"):
        run = Run.of(cfg, phase)
        values: dict[str, Any] = run.as_dict()
        methods = values.pop("methods")
        flat = values | {f"{m}.{k}": v for m, half in methods.items() for k, v in half.items()}
        for key, origin in run.origin.items():
            shown = f"{phase}: {key}" if "." in key else key
            if shown not in listed:
                listed.add(shown)
                table.add_row(shown, str(flat[key]), origin)
    Console().print(table)

