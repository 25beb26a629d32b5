"""Repeat a run from what is kept beside its results, and say whether it gives the same.

python -m steer.repeat generation/SmolLM2-135M-Instruct/sentiment/caa
python -m steer.repeat answers/mine_run.json --output again
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from steer.datasets import Row
from steer.files import find, read_json, writing
from steer.method_files import PATHS, paths_of
from steer.recording import FOLDERS
from steer.results import Record, run_path
from steer.terminal import Parser, command

SAME, OTHER, FAILED = 0, 1, 2
AGAIN = "_repeated"
# What may be another one although the run is the same.
ALONGSIDE = ("versions", "machine")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status: 1 where an answer is another one, 2 where it failed."""
    return command(_run, arguments, FAILED)


def _run(arguments: list[str]) -> int:
    given = _parser().parse_args(arguments)
    same = [_repeated(path, given.output) for path in run_files(given.run)]
    return SAME if all(same) else OTHER


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m steer.repeat",
        description="Repeat a run from what is kept beside its results, and compare the answers.",
    )
    parser.add_argument(
        "run", metavar="RUN", help="a <data set>_run.json or _results.json, or a folder of them"
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help=f"for what is made; default: <folder of the run>{AGAIN}"
    )
    return parser


def run_files(place: str) -> list[Path]:
    """The run files that are meant by a folder, a run file or a result file.

    Raises:
        FileNotFoundError: There is none.
    """
    path = find(place, "run")
    files = sorted(path.glob("*_run.json")) if path.is_dir() else [run_path(path)]
    files = [path if path.name.endswith("_run.json") else file for file in files]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"no run in {place}: a run leaves a file <data set>_run.json")
    return files


def _repeated(path: Path, output: str | None) -> bool:
    """Whether the answers of a run are the same again; prints what is not."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    kept = read_json(path)
    # Not inside the run's folder: what reads that would read both.
    beside = path.parent.resolve()
    folder = Path(output) if output else beside.with_name(beside.name + AGAIN)
    if folder.resolve() == beside:
        raise ValueError(
            f"--output {output} is the folder of the run: its answers would be lost; name another"
        )
    results = path.with_name(path.name.replace("_run.json", "_results.json"))
    before: list[Record] = read_json(results)
    records, again = repeat(kept, folder, path)
    console = Console(highlight=False)
    rows = list(differences(kept, again))
    if rows:
        table = Table("what", "then", "now", title="What is not as it was")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
    changed = [n for n, pair in enumerate(zip(before, records, strict=False)) if pair[0] != pair[1]]
    alike = not changed and len(before) == len(records)
    said = "all" if alike else f"{len(before) - len(changed)} of"
    console.print(f"{path.name}: {said} {len(before)} answers are the same again", markup=False)
    if changed:
        console.print(f"others: rows {', '.join(map(str, changed[:10]))}, counted from 0")
    console.print(f"written: {folder}", markup=False, soft_wrap=True)
    return alike


def repeat(kept: Mapping[str, Any], folder: Path, path: Path) -> tuple[list[Record], Any]:
    """The records of a run made again, and its run file.

    Args:
        kept: What is in the run file.
        folder: Where all goes that is made.
        path: Of the run file, for messages.

    Raises:
        ValueError: It does not say enough to be repeated.
    """
    # Slow to import, and not needed where something is wrong with the file.
    from steer import BaseVectorApplier, BaseVectorGenerator, prepare_generation_datasets

    made, name = kept.get("made_by"), kept["run"]["data"]["name"]
    if made is None:
        raise ValueError(f"{path} is of a version that did not keep what a run was made by")
    config = write_config(made, folder)
    rows = prepare_generation_datasets(config) if config.get("generation_data") else {}
    if name not in rows:
        raise ValueError(f"{path}: its data were given in Python, so only that can repeat it")
    applier = BaseVectorApplier(config)
    if made["vectors"] == FOLDERS:
        applier.apply_vectors()
    else:
        names = kept["run"]["settings"]["steer_train_dataset"]
        generator = BaseVectorGenerator(config, applier.model)
        learnt_from = made.get("learnt_from", [])
        trains = bool(generator.hparams_dict)  # a prompt needs no training
        data = generator.training_data() if trains and (names or not learnt_from) else {}
        _check_learnt_from(learnt_from, data, path)
        if trains:
            generator.generate_vectors(data)
        applier.settings.steer_train_dataset = names
        applier.apply_vectors(generator.vectors(*names), generator.folds(*names))
    records = applier.generate({name: rows[name]})[name]
    return records, read_json(run_path(applier.results_path(name)))


def _check_learnt_from(
    learnt_from: Sequence[Mapping[str, Any]], data: Mapping[str, Sequence[Row]], path: Path
) -> None:
    from steer.judging import rows_digest

    for one in learnt_from:
        if one["name"] not in data or rows_digest(data[one["name"]]) != one["sha256"]:
            raise ValueError(
                f"{path}: its vectors have learnt from {one['rows']} rows {one['name']!r} that are "
                "not what the config names now: they were given in Python, so only that can repeat "
                "it, or the data have changed"
            )


def write_config(made: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The config of a run whose output goes to `folder`, where it and its method files are put."""
    places = {path: folder / "hparams" / f"{n}_{Path(path).name}" for n, path in _numbered(made)}
    for path, place in places.items():
        with writing(place) as file:
            file.write(OmegaConf.to_yaml(OmegaConf.create(made["method_files"][path])))
    config = dict(made["config"]) | {"generation_output_dir": str(folder), "resume": False}
    # Methods that were named stand for files of the project: as they were, not as they are.
    listed = {key: paths_of(config, phase) for phase, key in PATHS.items()}
    config.pop("methods", None)
    config |= {key: [str(places.get(p, p)) for p in paths] for key, paths in listed.items()}
    # One for each: a file that had no entry of its own would write where it says.
    count = len(listed[PATHS["generate"]])
    config["steer_vector_output_dirs"] = [str(folder / "vectors" / str(n)) for n in range(count)]
    with writing(folder / "config.yaml") as file:
        file.write(OmegaConf.to_yaml(OmegaConf.create(config)))
    return config


def _numbered(made: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    return enumerate(made["method_files"])


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What differs between two run files, but for where they write: its name, and both values."""
    for key in ALONGSIDE:
        yield from _unlike(key, then["made_by"][key], now["made_by"][key])
    for key in ("data", "model", "steering", "generation_params"):
        yield from _unlike(key, then["run"][key], now["run"][key])


def _unlike(name: str, then: Any, now: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in then | now:
            yield from _unlike(f"{name}: {key}", then.get(key), now.get(key))
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for number, (one, other) in enumerate(zip(then, now, strict=True)):
            yield from _unlike(f"{name} {number}", one, other)
    elif then != now:
        yield name, str(then), str(now)


if __name__ == "__main__":
    sys.exit(main())
