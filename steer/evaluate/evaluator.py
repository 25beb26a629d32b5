"""`Evaluator`: result files scored by the metrics that are named, steered beside unsteered."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from steer.build import build, unknown
from steer.evaluate import ALIASES, METRICS_CLASS_DICT
from steer.evaluate.base import Metric
from steer.evaluate.comparing import compare
from steer.evaluate.options import Options
from steer.evaluate.plots import PRICE, STRENGTH, write_plot
from steer.evaluate.reading import (
    STEERED,
    circumstances,
    dataset_name,
    read_results,
    read_sides,
    result_files,
    strengths,
)
from steer.evaluate.tables import write_tables
from steer.files import check_writable, write_json
from steer.secrets import redacted

PLOTS = {PRICE: "evaluation.png", STRENGTH: "evaluation_strength.png"}

log = logging.getLogger(__name__)

Results = Sequence[Mapping[str, Any]]


class Evaluator:
    """Scores answers.

    Args:
        **options: Those of `Options`, and of any metric (`model_name_or_path`, `device`, ...);
            None is the default.

    Attributes:
        options: Those of `Options`.
        metrics: By name, as they will score.
        broken: Errors over which a run went on: files and metrics that gave nothing.

    Raises:
        ValueError: An unknown option or metric, named with the nearest; a value that is not
            allowed; no metric.
    """

    def __init__(self, **options: Any) -> None:
        given = {key: value for key, value in options.items() if value is not None}
        if isinstance(given.get("eval_methods"), str):
            given["eval_methods"] = [given["eval_methods"]]
        own = _names(Options)
        allowed = own.union(*map(_names, METRICS_CLASS_DICT.values()))
        for key in options:
            if key not in allowed:
                raise ValueError(unknown("option", key, allowed))
        self.options = build(Options, {k: v for k, v in given.items() if k in own})
        if self.options.save_results:
            given.setdefault("cache_dir", f"{self.options.results_dir}/cache")
        if not self.options.eval_methods:
            raise ValueError(f"eval_methods is missing (allowed: {', '.join(METRICS_CLASS_DICT)})")
        chosen = dict.fromkeys(map(_known, self.options.eval_methods))
        self.metrics = {name: _metric(METRICS_CLASS_DICT[name], given) for name in chosen}
        self.broken: list[Exception] = []

    def evaluate(
        self, results: Results, dataset_name: str, concept: str | None = None
    ) -> dict[str, Any]:
        """Figures of results in memory; nothing is written.

        Args:
            results: Lines as a result file holds them: `input`, `pred`, and where there are such
                `orig_pred` and `reference_response`.
            dataset_name: Their name, for messages.
            concept: What the answers are to show, for metrics that ask for it.

        Returns:
            The figures of the steered answers under their documented names; `unsteered` has those
            of the others, `difference` by figure the mean difference of both with its 95 %
            interval (`mean`, `low`, `high`, `items`), `protocol` how each metric measured,
            `missing` what it could not score, and `failed` why a metric has no figure.

        Raises:
            ValueError: These are no results, or no metric can score them.
        """
        sides = read_sides(results, dataset_name)
        if not self.options.unsteered:
            sides = {STEERED: sides[STEERED]}
        metrics = {n: _with_concept(m, concept) for n, m in self.metrics.items()}
        found = compare(metrics, sides, len(results))
        self.broken += found.broken
        if not found.figures[STEERED]:
            reasons = "; ".join(f"{name}: {why}" for name, why in found.failed.items())
            raise ValueError(f"{dataset_name}: no metric can score it ({reasons})")
        return found.as_dict()

    def evaluate_from_file(
        self, path: str | Path | None = None, concept: str | None = None, name: str | None = None
    ) -> dict[str, Any]:
        """Figures of one result file; written to `<results_dir>/<data set>_evaluation.json`.

        Args:
            path: The file; without it `generation_dataset_path`.
            concept: As for `evaluate`.
            name: Of the data set, `a/b` too; without it the file's own.

        Raises:
            ValueError: The file is no result file, or there are several.
            FileNotFoundError: No such file.
        """
        files = self._files(path)
        if len(files) > 1:
            raise ValueError(f"{path} holds {len(files)} result files: use evaluate_all")
        ((own, file),) = files.items()
        return self._saved(name or own, self._file(file, concept))

    def evaluate_from_direct(
        self, results: Results, dataset_name: str, concept: str | None = None
    ) -> dict[str, Any]:
        """As `evaluate`, and written to `<results_dir>/<dataset_name>_evaluation.json`."""
        return self._saved(dataset_name, self.evaluate(results, dataset_name, concept))

    def evaluate_all(self, concept: str | None = None) -> dict[str, dict[str, Any]]:
        """Figures of every result file of `generation_dataset_path`, by data set.

        A file that cannot be scored is said so, and the others go on. Each file's evaluation is
        on disk before the next file begins; at the end come tables and plots across files.

        Raises:
            ValueError: No file can be scored.
            FileNotFoundError: No such file or folder.
        """
        files = self._files()
        found: dict[str, dict[str, Any]] = {}
        for name, file in files.items():
            try:
                found[name] = self._saved(name, self._file(file, concept))
            except ValueError as error:
                if len(files) == 1:
                    raise
                log.warning("%s", error)
                self.broken.append(error)
        if not found:
            raise self.broken[0]
        if self.options.save_results:
            self._across(found)
        return found

    def save_all_results(self, results: Mapping[str, Mapping[str, Any]]) -> list[Path]:
        """Write evaluations by data set, each its file, and what there is across files."""
        written = [self._write(name, result) for name, result in results.items()]
        return [*written, *self._across(results)]

    def _across(self, results: Mapping[str, Mapping[str, Any]]) -> list[Path]:
        written = write_tables(results, self._folder())
        for against, name in PLOTS.items():
            plot = self._folder() / name
            written += [plot] if write_plot(results, plot, against) else []
        log.info("written: %s", ", ".join(map(str, written)))
        return written

    def _folder(self) -> Path:
        return Path(self.options.results_dir).expanduser()

    def _files(self, path: str | Path | None = None) -> dict[str, Path]:
        if self.options.save_results:
            check_writable(self._folder())
        return result_files(
            path or self.options.generation_dataset_path or self.options.results_dir
        )

    def _file(self, file: Path, concept: str | None) -> dict[str, Any]:
        # First: an error there costs no scores.
        told = {"strengths": strengths(file), "run": circumstances(file)}
        return self.evaluate(read_results(file), dataset_name(file), concept) | told

    def _saved(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        if self.options.save_results:
            log.info("written: %s", self._write(name, result))
        return result

    def _write(self, name: str, result: Mapping[str, Any]) -> Path:
        path = self._folder() / f"{name}_evaluation.json"
        write_json(path, redacted(dict(result)))
        return path


def _names(cls: Any) -> set[str]:
    return {f.name for f in fields(cls)}


def _known(name: str) -> str:
    """The name in the table that a user's name means."""
    name = ALIASES.get(name, name)
    if name not in METRICS_CLASS_DICT:
        raise ValueError(unknown("metric", name, METRICS_CLASS_DICT, also=ALIASES))
    return name


def _metric(cls: type[Metric], given: Mapping[str, Any]) -> Metric:
    return build(cls, {k: v for k, v in given.items() if k in _names(cls)})


def _with_concept(metric: Any, concept: str | None) -> Metric:
    if concept is None or "concept" not in _names(metric):
        return metric
    return replace(metric, concept=concept)
