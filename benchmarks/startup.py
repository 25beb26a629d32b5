"""How long a user waits before anything happens.

    python benchmarks/startup.py

In one run, each in a process of its own: Python itself (floor), `import steer`, `import torch`
(what a library that imports everything costs at least), and a script's `--help`.
"""

import subprocess
import sys
from pathlib import Path

import torch
from _measure import interleaved, parser, ratio, report

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Measure, and print the figures."""
    given = parser(__doc__ or "").parse_args()
    commands = {
        "python": ["-c", "pass"],
        "import steer": ["-c", "import steer"],
        "import torch, transformers": ["-c", "import torch, transformers"],
        "help": ["vectors_generate.py", "--help"],
    }

    def runner(command: list[str]) -> None:
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)

    runs = {name: lambda c=command: runner(c) for name, command in commands.items()}
    times = interleaved(runs, 3 if given.quick else given.repetitions, torch.device("cpu"))
    ratios = {
        "import steer/python": ratio(times["import steer"], times["python"]),
        "import torch, transformers/import steer": ratio(
            times["import torch, transformers"], times["import steer"]
        ),
    }
    report({}, times, ratios, given.json)


if __name__ == "__main__":
    main()
