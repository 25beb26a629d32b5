"""What all commands share: how much they say, and one line where a user has made a mistake."""

import argparse
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from steer import processes, progress
from steer.secrets import RedactingFormatter, redacted

# What a user can mend. Anything else is a fault of ours, and shown whole.
USERS_MISTAKES: tuple[type[Exception], ...] = (ValueError, OSError, RuntimeError, ImportError)
FAILED, INTERRUPTED = 1, 130
# Option -> how much more is said.
OPTIONS = {"-v": 1, "--verbose": 1, "-vv": 2, "-q": -1, "--quiet": -1}
# Of others, each request that they make.
NOISY = ("httpx", "httpcore", "urllib3", "filelock", "openai", "markdown_it", "matplotlib")

# What changes a key of a config, and the key's name: `layers=[12]`, `+seed=7`.
SETTING = re.compile(r"\+*([\w.]+)=")
# Text that is neither list, mapping, function, several values nor in quotes to Hydra.
PLAIN = re.compile(r"[^,()\[\]{}='\"][^,()\[\]{}=]*")
# A sign that Hydra's grammar (OverrideLexer.g4, VALUE_MODE) has no place for outside quotes.
UNKNOWN_SIGN = re.compile(r"[^\w/\\+.$%*@?|: \t,()\[\]{}=-]", re.ASCII)

LEVELS = {-3: logging.ERROR, -2: logging.ERROR, -1: logging.WARNING, 0: logging.INFO}

HOW_MUCH = """\
-v, --verbose         say each step (-vv: other libraries too)
-q, --quiet           say nothing but results, warnings and errors"""


def how_much(arguments: Iterable[str]) -> tuple[int, list[str]]:
    """How much is to be said, 0 where nothing is asked; and the arguments without those of it."""
    given = list(arguments)
    return sum(OPTIONS.get(word, 0) for word in given), [w for w in given if w not in OPTIONS]


def start_logging(more: int = 0) -> None:
    """Say on stderr what the library logs, without secrets.

    Args:
        more: -2 errors alone; -1 warnings too; 0 bars, and what one should know unasked; 1 each
            step; 2 what other libraries say as well.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter(f"{_speaker()}%(message)s"))
    others = logging.DEBUG if more > 1 else logging.WARNING
    logging.basicConfig(level=others, handlers=[handler], force=True)
    more = more if processes.is_main() else min(more, -1)
    logging.getLogger("steer").setLevel(LEVELS.get(more, logging.DEBUG))
    progress.log.disabled = more < 0
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.INFO if more > 1 else logging.WARNING)


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and knows the options of all commands."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; {self.prog} --help shows what there is")

    def parse_with_settings(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The options, and apart from them each KEY=VALUE, which may stand anywhere."""
        settings = list(filter(SETTING.match, arguments))
        return self.parse_args([word for word in arguments if word not in settings]), settings

    def format_help(self) -> str:
        everywhere = "".join(f"  {line}\n" for line in HOW_MUCH.splitlines())
        return f"{super().format_help()}\nall commands:\n{everywhere}"


def command(
    work: Callable[[list[str]], int | None],
    arguments: Sequence[str] | None,
    failed: int = FAILED,
    *,
    kept: str = "",
    said: int = 0,
) -> int:
    """Run a command; its exit status.

    Args:
        work: Gets the arguments without those that say how much is said; gives a status.
        arguments: Of the command line where None.
        failed: The status where the user made a mistake.
        kept: Of an interruption: what is not lost.
        said: How much is said where nothing is asked, as for `start_logging`.
    """
    more, left = how_much(sys.argv[1:] if arguments is None else arguments)
    start_logging(more if more > 0 else said + more)
    try:
        status = work(left) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        return nobody_reads()
    except KeyboardInterrupt:
        say(f"interrupted{kept and ': '}{kept}")
        return INTERRUPTED
    except USERS_MISTAKES as error:
        say_error(error)
        return failed
    return status


def nobody_reads() -> int:
    """The status where whoever read has seen enough (`| head`); what is left is thrown away."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return INTERRUPTED


def quoted(override: str) -> str:
    """`key=value` for Hydra, with quotes round plain text that it cannot read without: `Höflich!`.

    All else stays as it is.
    """
    key, _, value = override.partition("=")
    # Hydra takes no spaces round text without quotes either.
    text = value.strip(" \t")
    if not (PLAIN.fullmatch(text) and UNKNOWN_SIGN.search(text)):
        return override
    # To Hydra a backslash stands for itself, but before a quote.
    escaped = re.sub(r"\\+(?='|\Z)", r"\g<0>\g<0>", text).replace("'", r"\'")
    return f"{key}='{escaped}'"


def unknown_signs(override: str) -> list[str]:
    """Those that Hydra reads in quotes alone; the quotes themselves are none."""
    return [sign for sign in UNKNOWN_SIGN.findall(override) if sign not in "'\""]


def say_error(error: BaseException, message: str = "") -> None:
    """One line on stderr, or the whole traceback where STEER_TRACEBACK asks for it.

    Args:
        error: What was raised.
        message: What is said of it; its own words where empty.
    """
    if os.environ.get("STEER_TRACEBACK"):
        say("".join(traceback.format_exception(error)))
    else:
        words = message or str(error) or type(error).__name__
        say(f"error: {' '.join(words.split())}")


def say(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(_speaker() + redacted(text).rstrip() + "\n")


def _speaker() -> str:
    return "" if processes.is_main() else f"process {processes.number()}: "
