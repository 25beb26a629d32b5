"""Result files: the answers to a data set, and beside them what the run was."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from steer.datasets import Row
from steer.files import fingerprint, read_json, write_json
from steer.journal import Journal, difference, refuse_other_run
from steer.models import Answer
from steer.secrets import redacted

log = logging.getLogger(__name__)

Record = dict[str, Any]
# Of a row, for metrics: as it stands there, where it does.
KEPT = ("choices", "concept")


def record(row: Row, number: int, found: Mapping[str, Answer], responses: int) -> Record:
    """What is kept of row `number`; `found` are the answers by job name, `<row>/<response>`."""
    answers = [found.get(f"{number}/{r}", found[f"{number}/0"]) for r in range(responses)]
    plain = found.get(f"{number}/orig")
    return {
        "input": row["input"],
        "orig_pred": [] if plain is None else [plain.text],
        "pred": [answer.text for answer in answers],
        "reference_response": row.get("reference_response"),
        "complete_output": [answer.complete for answer in answers],
        **{key: row[key] for key in KEPT if key in row},
    }


def answers_kept(path: Path, about: Mapping[str, Any], *, resume: bool) -> Journal:
    """Where answers are kept as they come, until `save_results` to `path`.

    It says so where those of another run will be replaced then.
    """
    journal = Journal(partial_path(path), about, resume=resume)
    if not resume and run_path(path).is_file() and (what := _unlike(run_path(path), about)):
        log.warning(
            "%s of another run (%s) will be replaced: with another generation_output_dir it stays",
            *(path, what),
        )
    return journal


def _unlike(run: Path, about: Mapping[str, Any]) -> str:
    """What tells the run that the file `run` is of from this one; empty where nothing does."""
    try:
        return difference(read_json(run), _identity(about))
    except ValueError as error:
        return str(error)


def _identity(about: Mapping[str, Any]) -> dict[str, Any]:
    return {"fingerprint": fingerprint(about), "run": about}


def save_results(
    path: Path, records: Sequence[Record], about: Mapping[str, Any], more: Mapping[str, Any]
) -> None:
    """Write the records, then what the run was: `about`, which decides them, and `more`."""
    write_json(path, redacted(list(records)))
    run = {"fingerprint": fingerprint(about), **more, "run": about}
    write_json(run_path(path), redacted(run))
    partial_path(path).unlink(missing_ok=True)
    log.debug("%s: %d answers in %s", path.stem, len(records), path)


def finished_results(
    path: Path, about: Mapping[str, Any], enough: Callable[[Any], bool]
) -> tuple[list[Record], dict[str, Any]] | None:
    """The records and the run file of a finished run; None where there is none.

    None also where its report, or that it has none, is not `enough`.

    Raises:
        ValueError: The run that is there is another one; the message names a setting.
    """
    run = run_path(path)
    if partial_path(path).is_file() or not (path.is_file() and run.is_file()):
        return None
    there = read_json(run)
    refuse_other_run(path, there, _identity(about))
    if not enough(there.get("report")):
        log.info("%s: answered again, for a report that says more", path.stem)
        return None
    log.info("%s: already answered, in %s", path.stem, path)
    return read_json(path), there


def run_path(path: Path) -> Path:
    """`<name>_run.json`, beside `<name>_results.json`."""
    return path.with_name(f"{path.stem.removesuffix('_results')}_run.json")


def partial_path(path: Path) -> Path:
    """`<name>_partial.jsonl`, beside `<name>_results.json`."""
    return path.with_name(f"{path.stem.removesuffix('_results')}_partial.jsonl")
