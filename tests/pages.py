"""Runs what a page tells its reader to run: commands and Python, in their order, in one process.

The reader has little data, and answers end early, so that each command is done in seconds. All
else is as printed. What cannot be run on any machine (several GPUs, vLLM, a network) is printed in
a fence of `text`.
"""

import csv
import json
import logging
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import tasks

ROOT = Path(__file__).resolve().parents[1]
DATA_SETS = ROOT / "hparams/Steer/dataset.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    DATA_SETS,
    ROOT / "demo/EasySteer_demo/README.md",
    ROOT / "tutorial-notebooks/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCES = re.compile(r"^```(bash|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

# The first so many rows.
ROWS = {
    "sentiment/train": 6,
    "sentiment/valid": 3,
    "sentiment/test": 2,
    "refusal/train": 6,
    "refusal/valid": 3,
    "refusal/test": 2,
    "dogs/valid": 3,
    "dogs/test": 2,
    "neutral/prompts": 2,
}
# What a command gets before its own arguments, which therefore count.
SMALL = {
    "steering.py": ["generation_params.max_new_tokens=4"],
    "vectors_apply.py": ["generation_params.max_new_tokens=4"],
    # It needs more pairs than the other commands: these are short.
    "steer.search": [
        *("steer_train_dataset=my_pairs.jsonl", "methods=[caa]", "layers=[15]", "doses=[0.2]"),
        *("budget_tokens=1000", "max_new_tokens=4"),
    ],
}
# Where a page is not followed in full: runs are there for what they are given, and of a search,
# half a minute at its smallest, the settings are read and checked.
LESS = {
    "steering.py": ["report=basic", "eval_methods=[distinctness]"],
    "steer.search": ["--explain-config"],
}
# What is run by their `__main__`.
PACKAGES = {f"steer.{path.parent.name}" for path in ROOT.glob("steer/*/__main__.py")}
LM_STEER = ["n_steps=2", "rank=4"]
CHECKS = ("steer.doctor", "steer.datasets")
ADDRESS = "http://127.0.0.1:8000"


def name_of(page: Path) -> str:
    """A page's path from the project."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of what is to be run, in order."""
    return FENCES.findall(page.read_text(encoding="utf-8"))


def commands(text: str) -> list[str]:
    """The lines of a block of commands; a backslash at an end goes on in the next."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line]


class Reader:
    """A reader in a working directory of their own, with the scripts and some files to use.

    Attributes:
        folder: The working directory.
        printed: What each command wrote to stdout.
    """

    def __init__(
        self, folder: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]
    ) -> None:
        self.folder, self._patch, self._capture = folder, patch, capture
        self.printed: dict[str, str] = {}
        self._known: dict[str, Any] = {"__name__": "__main__"}
        self._address, self._in_full = ADDRESS, False
        self._open = ExitStack()
        patch.chdir(folder)
        patch.setenv("COLUMNS", "200")
        for script in ROOT.glob("*.py"):
            shutil.copy(script, folder)
        for name, rows in ROWS.items():
            lines = (ROOT / f"data/{name}.jsonl").read_text(encoding="utf-8").splitlines()
            self._write(f"data/{name}.jsonl", "\n".join(lines[:rows]))
        self._own_files()

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")

    def _rows(self, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        self._write(name, "\n".join(map(json.dumps, rows)))

    def _own_files(self) -> None:
        """What pages call the reader's own: pairs, questions, vectors."""
        from steer.vectors import export_vectors

        pairs = [
            {
                "question": f"How was day {n}?",
                "matching": f"A joy, all {n} of it.",
                "not_matching": f"Bad, {n} times.",
            }
            for n in range(24)
        ]
        self._rows("my_pairs.jsonl", pairs)
        self._rows("my.jsonl", pairs[:6])
        for name, header in (("my.csv", list(pairs[0])), ("theirs.csv", ["q", "good", "bad"])):
            with (self.folder / name).open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([header, *(list(pair.values()) for pair in pairs[:6])])
        self._rows("reviews.jsonl", [{"input": f"How was film {n}?"} for n in range(8)])
        self._rows("others.jsonl", [{"input": f"Add {n} to 7."} for n in range(8)])
        self._write("questions.json", json.dumps([{"input": "How was your day?"}]))
        shipped = ROOT / "vectors/examples/SmolLM2-135M-Instruct/sentiment/caa_vector"
        shutil.copytree(shipped, self.folder / "my/vectors")
        (self.folder / "theirs").mkdir()
        export_vectors(shipped, self.folder / "theirs/control_vector.gguf")

    @contextmanager
    def at_work(self) -> Iterator["Reader"]:
        """Until the page ends; what it has registered or started is gone behind it."""
        from steer.evaluate import METRICS_CLASS_DICT
        from steer.methods import METHODS_CLASS_DICT

        with self._open:
            for table in (METHODS_CLASS_DICT, METRICS_CLASS_DICT):
                before: Any = dict(table)
                self._open.callback(
                    lambda table=table, before=before: (table.clear(), table.update(before))
                )
            yield self

    def follow(self, page: Path, *, in_full: bool = False) -> None:
        """Run all that `page` says, in order; `in_full` also what takes long."""
        self._in_full = in_full
        for kind, text in blocks(page):
            if kind == "python":
                self.python(text, page)
            else:
                for line in commands(text):
                    self.command(line)

    def python(self, text: str, page: Path) -> None:
        """Run a block; it knows what earlier ones of the page have defined."""
        code = compile(text.replace(ADDRESS, self._address), name_of(page), "exec")
        exec(code, self._known)

    def command(self, line: str) -> None:
        """Run one line of a shell."""
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert words[1] in tasks.TASKS, line
        elif words[0] == "export":
            self._export(line)
        elif words[:2] == ["python", "tasks.py"]:
            assert words[2] in tasks.TASKS, line
        else:
            assert words[0] == "python", f"no command that can be run here: {line}"
            self._program(words[1:])

    def _export(self, line: str) -> None:
        name = line.split()[1].split("=")[0]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", f'{line}; printf %s "${name}"'],
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        self._patch.setenv(name, done.stdout)

    def _program(self, words: list[str]) -> None:
        is_module = words[0] == "-m"
        name, given = (words[1], words[2:]) if is_module else (words[0], words[1:])
        if name == "steer.serve":
            self._open.enter_context(self._server(given))
            return
        small = [*SMALL.get(name, []), *(LM_STEER if "methods=[lm_steer]" in given else [])]
        if not self._in_full or (name == "steering.py" and given):
            small += LESS.get(name, [])
        self._capture.readouterr()
        handlers, level = logging.root.handlers[:], logging.root.level
        status: Any = 0
        with self._patch.context() as patch:
            # Hydra takes settings at one place only: behind its options.
            options = [word for word in given if word == "--help"]
            patch.setattr(
                "sys.argv", [name, *options, *small, *(w for w in given if w not in options)]
            )
            patch.setattr("sys.path", sys.path[:])
            try:
                if is_module:
                    # Imported by another test of this process, it would be there already.
                    for imported in {name, f"{name}.__main__"} - PACKAGES:
                        patch.delitem(sys.modules, imported, raising=False)
                    runpy.run_module(name, run_name="__main__")
                else:
                    runpy.run_path(str(ROOT / name), run_name="__main__")
            except SystemExit as ended:
                status = ended.code or 0
            finally:
                logging.root.handlers[:] = handlers
                logging.root.setLevel(level)
        printed, said = self._capture.readouterr()
        self.printed[shlex.join(["python", *words])] = printed
        # What is checked may be found ill: then the command has done its work.
        allowed = (0, 1) if name in CHECKS and printed else (0,)
        assert status in allowed, f"{shlex.join(words)}\n{said[-2000:]}"

    @contextmanager
    def _server(self, given: list[str]) -> Iterator[None]:
        from serving import until

        from steer.build import read_config
        from steer.serve.run import server_of
        from steer.serve.settings import ServeSettings

        cfg = read_config("hparams/Steer/serve.yaml", [*given, "port=0"])
        server = server_of(ServeSettings.of(cfg))
        thread = Thread(target=server.run)
        thread.start()
        try:
            until(lambda: server.started or not thread.is_alive())
            port = server.servers[0].sockets[0].getsockname()[1]
            self._address = f"http://127.0.0.1:{port}"
            yield
        finally:
            server.should_exit = True
            thread.join()
