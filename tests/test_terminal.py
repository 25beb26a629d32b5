"""How much commands say, and how they end where something is wrong: the same for all of them."""

import fcntl
import importlib
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from steer.terminal import Parser, command, how_much, quoted, start_logging

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ["datasets", "doctor", "gates", "repeat", "saes", "vectors"]


@pytest.mark.parametrize(
    "given, more, left",
    [
        (["a", "-v", "b"], 1, ["a", "b"]),
        (["-vv", "--quiet", "-q"], 0, []),
        (["--verbose", "-x=-v"], 1, ["-x=-v"]),
    ],
)
def test_how_much_is_said_may_stand_anywhere(given: list[str], more: int, left: list[str]):
    assert how_much(given) == (more, left)


@pytest.mark.parametrize(
    "options, unasked, said",
    [
        ([], 0, ["should know", "a warning", "other's warning"]),
        (["-q"], 0, ["a warning", "other's warning"]),
        (["-v"], 0, ["a step", "should know", "a warning", "other's warning"]),
        (["-vv"], 0, ["a step", "should know", "a warning", "other's step", "other's warning"]),
        ([], -2, ["other's warning"]),
        (["-v"], -2, ["a step", "should know", "a warning", "other's warning"]),
    ],
)
def test_what_is_said(
    options: list[str], unasked: int, said: list[str], capsys: pytest.CaptureFixture[str]
):
    def work(_: list[str]) -> None:
        ours, others = logging.getLogger("steer.some"), logging.getLogger("httpx")
        ours.debug("a step")
        ours.info("should know")
        ours.warning("a warning")
        others.info("other's step")
        others.warning("other's warning")

    assert command(work, options, said=unasked) == 0
    assert capsys.readouterr().err.splitlines() == said


def test_secrets_are_not_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("MY_API_KEY", "sk-0123456789")
    start_logging()
    logging.getLogger("steer").warning("asked with sk-0123456789")
    assert capsys.readouterr().err == "asked with ***\n"


def test_a_mistake_is_one_line_and_a_fault_of_ours_is_not_hidden(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def wrong(_: list[str]) -> None:
        raise ValueError("no\n such  file")

    assert command(wrong, [], 2) == 2
    assert capsys.readouterr().err == "error: no such file\n"
    monkeypatch.setenv("STEER_TRACEBACK", "1")
    assert command(wrong, []) == 1
    assert "in wrong" in capsys.readouterr().err

    def ours(_: list[str]) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        command(ours, [])


def test_an_interruption_says_what_is_kept(capsys: pytest.CaptureFixture[str]):
    def interrupted(_: list[str]) -> None:
        raise KeyboardInterrupt

    assert command(interrupted, [], kept="half of it is there") == 130
    assert capsys.readouterr().err == "interrupted: half of it is there\n"


def test_an_option_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]):
    def work(arguments: list[str]) -> None:
        Parser(prog="python -m it").parse_args(arguments)

    assert command(work, ["--nothing"]) == 1
    said = capsys.readouterr().err
    wanted = "unrecognized arguments: --nothing; python -m it --help shows what there is"
    assert said == f"error: {wanted}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_them_and_says_so(name: str, capsys: pytest.CaptureFixture[str]):
    main = importlib.import_module(
        f"steer.{name}" if name == "repeat" else f"steer.{name}.__main__"
    ).main
    with pytest.raises(SystemExit) as ended:
        main(["-v", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "-v, --verbose" in shown
    assert "-q, --quiet" in shown
    assert max(map(len, shown.splitlines())) <= 80


CODE = """
import sys
from steer.terminal import command
def work(_):
    for n in range(100_000):
        sys.stdout.write(f"{n}\\n")
sys.exit(command(work, []))
"""


def test_a_reader_that_has_seen_enough_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-c", CODE], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline() == b"0\n"
        run.stdout.close()
        assert run.stderr.read() == b""


PROGRESS = """
import sys, time
from steer import progress
from steer.terminal import start_logging
start_logging(int(sys.argv[1]))
progress.SECONDS = float(sys.argv[2])
with progress.progress(total=4, done=1, what="answering", unit="answer") as bar:
    for _ in range(3):
        bar.update()
"""


def shown(*arguments: str, **environment: str) -> str:
    """What a run says of its progress where nobody watches."""
    environment = {k: v for k, v in os.environ.items() if k != "TQDM_DISABLE"} | environment
    run = [sys.executable, "-c", PROGRESS, *arguments]
    return subprocess.run(
        run, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stderr


def watched(*arguments: str, **environment: str) -> str:
    """What it draws on a terminal."""
    environment = {k: v for k, v in os.environ.items() if k != "TQDM_DISABLE"} | environment
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    run = [sys.executable, "-c", PROGRESS, *arguments]
    subprocess.run(run, cwd=ROOT, env=environment, stderr=its, check=True)
    os.close(its)
    found = b""
    try:
        while part := os.read(ours, 1 << 16):
            found += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    return found.decode()


def test_a_log_has_a_line_now_and_then_and_none_of_what_is_done_soon():
    lines = shown("0", "0").splitlines()
    assert lines[-1] == "answering: 4 of 4 after 00:00, 00:00 left"
    assert all(line.startswith("answering: ") for line in lines)
    assert shown("0", "30") == ""
    assert shown("-1", "0") == ""


def test_a_terminal_has_a_bar_with_the_time_left_unless_it_can_draw_none():
    drawn = watched("0", "30", TERM="xterm")
    assert "answering: 100%" in drawn
    assert "4/4 [00:00<00:00" in drawn
    assert watched("-1", "30", TERM="xterm") == ""
    assert watched("0", "30", TERM="dumb") == ""


# ---- text that Hydra cannot read without quotes --------------------------------------------------


def read_by_hydra(override: str) -> object:
    return OverridesParser.create().parse_override(override).value()


@pytest.mark.parametrize(
    "text",
    [
        "Sei höflich.",
        "~/my.jsonl",
        "Answer like it's Monday!",
        "one; two & three # four",
        'Say "yes"',
        "rock'n'roll",
        "C:\\Users\\Jörg\\m",
        "C:\\Users\\Jörg\\",
        "\\\\server\\Jörg",
        "a\\'b\\\\'ö\\\\",
        "two\nlines",
        "礼貌一点 🙂",
        "1e3€",
        "5 $ für dich",
    ],
)
def test_plain_text_is_read_as_it_stands(text: str):
    with pytest.raises(HydraException):
        read_by_hydra(f"key={text}")
    assert read_by_hydra(quoted(f"key={text}")) == text
    assert read_by_hydra(quoted(f"key= {text} ")) == text


@pytest.mark.parametrize(
    "value",
    [
        *("", "12", "-2", "1e-3", "inf", "null", "true", "plain", "two words", "my.jsonl"),
        *("[1,2]", "[-2]", "['ö',b]", "[]", "{input:q}", "{a:{b:'ö'}}", "${seed}", "a${seed}b"),
        *("'ö'", '"ö"', "'it\\'s'", '"a, b"', " 'ö' ", "2,3", "'ö',b", "int('3')", "choice(a,b)"),
        *("C:\\Users\\m", "a\\, b", "http://x:80/v1", "a/b@main", "50%", "*.csv"),
        # Refused before, and still.
        *("ö,b", "[ö]", "{a:ö}", "ö${seed}", "f(ö)", "a=ö", "[1", "'ö", '"ö'),
    ],
)
def test_what_is_no_plain_text_stays_as_it_is(value: str):
    assert quoted(f"key={value}") == f"key={value}"


def test_quotes_come_just_where_hydra_cannot_read_a_sign():
    structure = ",()[]{}="
    for sign in map(chr, [*range(32, 127), 0xA0, 0xE4, 0x3B1, 0x4E00, 0x1F642]):
        override = f"key=a{sign}b"
        try:
            read_by_hydra(override)
            without = True
        except HydraException:
            without = False
        assert (quoted(override) == override) == (without or sign in structure), sign
