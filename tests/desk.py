"""A working directory of a user's own, with a tiny model and tiny data, to run the scripts in."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

FORMATS = """\
train: {mine: {file_path: train.jsonl}}
valid: {mine: {file_path: valid.jsonl}, neutral: {file_path: neutral.jsonl}}
generation: {mine: {file_path: test.jsonl}, more: {file_path: more.csv}}
"""


def pair(number: int) -> dict[str, str]:
    return {
        "question": f"How was number {number}?",
        "matching": f"Good, all {number} of it.",
        "not_matching": f"Bad, {number} times.",
    }


class Desk:
    """Runs the scripts in process, as `python <script> <arguments>` would.

    Attributes:
        folder: The working directory.
        out: Below it, the only place where a run is told to write.
        printed: What the latest run wrote to stdout.
        said: What it wrote to stderr.
        status: How it ended.
    """

    def __init__(
        self,
        folder: Path,
        model: Path,
        patch: pytest.MonkeyPatch,
        capture: pytest.CaptureFixture[str],
    ):
        self.folder, self.model = folder, model
        self.out = folder / "out"
        self.printed, self.said = "", ""
        self.status: Any = None
        self._patch, self._capture = patch, capture
        patch.chdir(folder)
        patch.setenv("COLUMNS", "240")
        self.write("hparams/Steer/dataset_format.yaml", FORMATS)
        self.rows("train.jsonl", [pair(n) for n in range(6)])
        self.rows("valid.jsonl", [pair(n) for n in range(10, 14)])
        self.rows("neutral.jsonl", [{"text": f"The {n} trees are green."} for n in range(3)])
        self.rows("test.jsonl", [{"input": f"Tell me of {n}."} for n in range(4)])
        self.write("more.csv", "input,reference_response\nWhat now?,Nothing\n")

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def rows(self, name: str, rows: list[dict[str, str]]) -> None:
        self.write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def overrides(self, **more: Any) -> list[str]:
        """Arguments for a small run; `more` are further keys, with `__` for a dot."""
        values = {
            "model_name_or_path": self.model,
            "device": "cpu",
            "dtype": "float32",
            "layers": "[1]",
            "multipliers": "[2]",
            "steer_train_dataset": "mine",
            "steer_vector_output_dirs": "out/vectors",
            "steer_vector_load_dir": "out/vectors/mine/caa_vector",
            "generation_data": "mine",
            "generation_output_dir": "out/answers",
            "generation_params__max_new_tokens": 4,
            "eval_methods": "[]",
            **more,
        }
        return [f"{key.replace('__', '.')}={value}" for key, value in values.items()]

    def run(self, script: str, *arguments: str, **more: Any) -> str:
        """Run a script with the arguments of a small run; what it printed."""
        return self.bare(script, *arguments, *self.overrides(**more))

    def bare(self, script: str, *arguments: str) -> str:
        """Run a script with these arguments alone; what it printed."""
        self._capture.readouterr()
        with self._patch.context() as patch:
            patch.setattr("sys.argv", [script, *arguments])
            try:
                runpy.run_path(str(ROOT / script), run_name="__main__")
                self.status = 0
            except SystemExit as ended:
                self.status = ended.code
        self.printed, self.said = self._capture.readouterr()
        return self.printed

    def answers(self, name: str = "mine") -> list[dict[str, Any]]:
        return json.loads((self.out / "answers" / f"{name}_results.json").read_text())

    def files(self) -> set[str]:
        """Every file of the working directory."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix() for path in found}
