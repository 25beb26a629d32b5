"""What the scripts share: Hydra without its run folders, one-line errors, logs without secrets."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import steer
from steer import processes, terminal
from steer.build import COMMAND_LINE, unknown
from steer.files import find, project_root
from steer.secrets import is_secret_key, redacted

EXPLAIN = "--explain-config"
# Nothing but results is left behind: no run folder, no copy of the config, no log file.
QUIET = (
    "hydra.output_subdir=null",
    "hydra.run.dir=.",
    "hydra/job_logging=none",
    "hydra/help=steer",
)
# Hydra's options, and ours.
HYDRA = {
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run"),
    *("--multirun", "--shell-completion", "--config-path", "--config-name", "--config-dir"),
    *("--experimental-rerun", "--info", EXPLAIN, "--config"),
}
# What stands behind it looks like an override, and is none.
COMPLETION = ("-sc", "--shell-completion")
OTHER_NAMES = {"vector_applier": "vector_apply", "vector_generator": "vector_generate"}
MISTAKES: tuple[type[BaseException], ...] = (
    *terminal.USERS_MISTAKES,
    *(HydraException, OmegaConfBaseException, KeyboardInterrupt),
)
# Key, value, and where it comes from.
Setting = tuple[str, Any, str]
KEPT = "interrupted: finished answers and vectors are kept; resume=true goes on from them"

HELP = """\
{purpose}
Options: any key as key=value, those of the file below and others, and
    --explain-config      show every key and where its value comes from, and do nothing else
    --config FILE         another file; --config-name NAME one of that folder
    {how_much}
    --hydra-help          what else Hydra can do, such as completion in the shell
    STEER_TRACEBACK=1     (in the environment) show the whole traceback of an error
{methods}
{file}:

{keys}"""
# Of programs that run methods as their files say.
METHODS = """\
Method files (hparams/Steer/<method>_hparams) say what each method does; their keys can be given
here too and then hold for every method: "layers=[12]" "multipliers=[-2]"
"""


def script(
    config_name: str,
    *,
    shared: bool = False,
    settings: Callable[[DictConfig], Iterable[Setting]] | None = None,
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make a program of `main(cfg)` and hparams/Steer/<name>.yaml, whose keys `key=value` changes.

    A mistake of the user's ends it with one line and status 1; `STEER_TRACEBACK=1` shows all.

    Args:
        config_name: The file of the program's keys.
        shared: Whether it makes vectors, and several processes of a launcher can share its work.
        settings: What --explain-config shows; of generating and applying vectors where None.
    """

    def wrap(main: Callable[[DictConfig], None]) -> Callable[[], None]:
        def run() -> None:
            shown = partial(_explained, settings=settings or _of_run)
            more, given = terminal.how_much(sys.argv[1:])
            # What else has settings of its own keeps what it was in ways of its own.
            typed = [Path(sys.argv[0]).name, *given] if settings is None else []
            job = _job(shown if EXPLAIN in given else main, shared, more, typed)
            with_config = hydra.main(
                version_base="1.3", config_path=str(_shipped()), config_name=config_name
            )
            # Errors come out of Hydra as they are: they are shown here.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            try:
                purpose = main.__globals__["__doc__"] or ""
                methods = METHODS if settings is None else ""
                sys.argv[1:] = _arguments(given, config_name, purpose, methods)
                with _any_help():
                    with_config(job)()
                sys.stdout.flush()
            except MISTAKES as error:
                _fail(error)

        return run

    return wrap


@contextmanager
def _any_help() -> Iterator[None]:
    """From 3.14 on Python checks help texts, of which one of Hydra's is no string until shown."""
    name, parser = "_check_help", argparse.ArgumentParser
    before = parser.__dict__.get(name)
    setattr(parser, name, lambda *_: None)
    try:
        yield
    finally:
        delattr(parser, name) if before is None else setattr(parser, name, before)


def _shipped() -> Path:
    return project_root() / "hparams" / "Steer"


def _arguments(given: list[str], config_name: str, purpose: str, methods: str) -> list[str]:
    """Hydra's arguments: every plain override may add as well as change."""
    arguments: list[str] = []
    chosen = {"--config-name": config_name, "--config-path": str(_shipped())}
    words = iter([word for argument in given for word in _option_and_value(argument)])
    for word in words:
        if word == "--config":
            folder, file = os.path.split(next(words, ""))
            chosen |= {"--config-path": folder or ".", "--config-name": file}
            continue
        if word in COMPLETION:
            arguments += [word, next(words, "")]
            continue
        if word.startswith("--") and word.partition("=")[0] not in HYDRA:
            key = word.strip("-").partition("=")[0].replace("-", "_")
            raise ValueError(f"unknown option {word!r}: a setting is given as {key}=value")
        name = {"-cn": "--config-name", "-cp": "--config-path"}.get(word, word)
        override = terminal.SETTING.match(word)
        if name in chosen:
            chosen[name] = next(words, "")
        elif override and is_secret_key(override[1].split(".")[-1]):
            raise ValueError(f"{override[1]}: keys and tokens come from the environment only")
        elif override and not override[1].startswith("hydra."):
            arguments.append("++" + word.lstrip("+"))
        elif word != EXPLAIN:
            arguments.append(word)
    folder = find(chosen["--config-path"], "config folder").resolve()
    name = _config_file(chosen["--config-name"], folder)
    ConfigStore.instance().store(
        "steer", {"template": _help(purpose, methods, folder / name)}, "hydra/help"
    )
    arguments += [q for q in QUIET if not any(a.startswith(q.split("=")[0]) for a in given)]
    return [*arguments, "--config-path", str(folder), "--config-name", name.removesuffix(".yaml")]


def _option_and_value(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--config") else [argument]


def _config_file(name: str, folder: Path) -> str:
    """The name of the file in `folder` that a user means."""
    name = name.removesuffix(".yaml")
    there = {path.stem for path in folder.glob("*.yaml")}
    name = name if name in there else OTHER_NAMES.get(name, name)
    if name not in there and not (folder / f"{name}.yaml").is_file():
        raise ValueError(f"{folder}: {unknown('config', name, there)}")
    return f"{name}.yaml"


def _help(purpose: str, methods: str, file: Path) -> str:
    """The template of --help: what Hydra and OmegaConf would replace in it stays as it is."""
    keys = file.read_text(encoding="utf-8")
    how_much = terminal.HOW_MUCH.replace("\n", "\n    ")
    given = {"purpose": purpose, "methods": methods, "how_much": how_much, "keys": keys}
    text = HELP.format(file=_short(file), **given)
    return text.replace("$", "$$").replace("${", "\\${")


def _short(file: Path) -> str:
    return os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)


def _job(
    main: Callable[[DictConfig], None], shared: bool, more: int, command: list[str]
) -> Callable[[DictConfig], None]:
    def job(cfg: DictConfig) -> None:
        terminal.start_logging(more)
        try:
            with open_dict(cfg):
                cfg["origin_of"] = _origins(cfg)
                if command:
                    cfg["command"] = command
            with processes.together():
                _run(main, cfg, shared)
        except MISTAKES as error:
            _fail(error)

    return job


def _run(main: Callable[[DictConfig], None], cfg: DictConfig, shared: bool) -> None:
    if processes.count() == 1:
        main(cfg)
    elif not shared:
        raise ValueError(
            f"{processes.count()} processes were launched, and this program is for one: only "
            "vectors_generate.py shares its work; start it with python, device_map=auto puts one "
            "model on several GPUs"
        )
    elif processes.is_main():
        main(cfg)
    else:
        steer.BaseVectorGenerator(cfg).assist()


def _fail(error: BaseException) -> NoReturn:
    """End with one line on stderr, or the whole traceback where asked for."""
    whole = bool(os.environ.get("STEER_TRACEBACK"))
    # The main process says it, and with which status: a launcher that saw another one fail first
    # would kill the main one before it could.
    if isinstance(error, processes.Stopped) and not whole:
        sys.exit(0)
    if isinstance(error, BrokenPipeError):
        sys.exit(terminal.nobody_reads())
    if isinstance(error, KeyboardInterrupt):
        if processes.is_main():
            terminal.say(KEPT)
        sys.exit(terminal.INTERRUPTED)
    terminal.say_error(error, _message(error))
    sys.exit(terminal.FAILED)


def _message(error: BaseException) -> str:
    """What is said instead of the error's own words; empty where they will do."""
    if several := re.search(r"Ambiguous value for argument '\++([^=]+)=([^']*)'", str(error)):
        key, value = several.groups()
        return f'{key}={value}: a list is written in brackets, "{key}=[{value}]"'
    if isinstance(error, OverrideParseException):
        argument = error.override.lstrip("+")
        return (
            f'cannot read the argument {argument!r}: write key=value, a list as "key=[1,2]", '
            "and text with commas or brackets in quotes within quotes, key=\"'a, b'\""
        )
    return ""


def _origins(cfg: DictConfig) -> dict[str, str]:
    state = HydraConfig.get()
    sources = [s.path for s in state.runtime.config_sources if s.provider == "main"]
    file = _short(Path(sources[0], f"{state.job.config_name}.yaml"))
    origins = {str(key): file for key in cfg}
    # Not resolved: an interpolation in an argument has its place in the config alone.
    overrides: Any = OmegaConf.to_container(state.overrides.task, resolve=False)
    for override in overrides:
        key, *inner = override.lstrip("+~").split("=")[0].split(".")
        origins[key] = f"{file} and {COMMAND_LINE}" if inner and key in origins else COMMAND_LINE
    return origins


def _explained(cfg: DictConfig, settings: Callable[[DictConfig], Iterable[Setting]]) -> None:
    """Print where each value of the run comes from."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Settings of this run")
    for header in ("key", "value", "comes from"):
        table.add_column(header, overflow="fold")
    for key, value, origin in settings(cfg):
        table.add_row(key, str(redacted(value)), origin)
    Console().print(table)


def _of_run(cfg: DictConfig) -> Iterable[Setting]:
    """The settings of both phases; what they share once, as it is when vectors are applied."""
    from steer.settings import Run

    listed: dict[str, Setting] = {}
    for phase in ("generate", "apply"):
        run = Run.of(cfg, phase)
        values = run.as_dict()
        methods = values.pop("methods")
        flat = (
            values
            | {"methods": list(methods)}
            | {f"{m}.{k}": v for m, half in methods.items() for k, v in half.items()}
        )
        for key, origin in run.origin.items():
            shown = f"{phase}: {key}" if "." in key else key
            listed[shown] = (shown, flat[key], origin)
    return listed.values()
