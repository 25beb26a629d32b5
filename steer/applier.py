"""Vectors in, steered text out."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from steer.answering import Job, answer_jobs, edits_of
from steer.choices import add_choices, warn_of_vllm
from steer.datasets import DatasetLoader, Row, input_of, named_rows, prepare_generation_datasets
from steer.effect import perplexity_ratio
from steer.engines.of_run import EngineOfRun, model_for
from steer.files import fingerprint
from steer.judging import Judgement, judge, judges_of
from steer.likelihood import answer_log_probs
from steer.methods import Applier
from steer.methods.prompt_writing import PromptApplier
from steer.models import Answer, Intervention, SteeredModel
from steer.models.facts import model_facts
from steer.models.interventions import describe
from steer.models.sampling import generation_config
from steer.models.tally import Tally
from steer.recording import THIS_RUN, made_by, origin_of, read_by
from steer.report import SteeringReport, basic_report, covers
from steer.results import Record, answers_kept, finished_results, record, save_results
from steer.secrets import redacted
from steer.settings import Run
from steer.vectors import Vectors

Folds = Mapping[str, Sequence[tuple[Vectors, Sequence[Row]]]]
# What decides a result is compared when a run is resumed; these do not.
WITHOUT_INFLUENCE = ("resume", "batch_size", "report", "generation_params")
WITHOUT_INFLUENCE += ("eval_methods", "eval_options")


class BaseVectorApplier:
    """Put every configured method in force on a model, and answer inputs with it.

    Args:
        cfg: The top-level config: from Hydra, a mapping, or a path to a YAML file.
        model: Steered instead of loading the one that `cfg` names; weights are shared, what is in
            force is this applier's own.

    Attributes:
        config: The settings, to be changed between calls; what `cfg` was is read once.
        hparams_dict: Method key -> its settings; change them and call `apply_vectors` again.
        model: The model with what is in force; `model.reset_all()` takes everything out.
        reports: Of each data set answered, by name.
        engine: What answers where it is not transformers; `engine.close()` ends its processes.
    """

    def __init__(self, cfg: Any, model: SteeredModel | None = None) -> None:
        self.run = Run.of(cfg, "apply")
        self._read = read_by(cfg)  # now: files may change before the run ends
        self.config = self.settings = self.run.settings
        self.hparams_dict: dict[str, Applier] = {k: m.half for k, m in self.run.methods.items()}
        # Judging, and the writing of prompts, needs weights also where another engine answers.
        weights = self.settings.report == "full" or any(
            isinstance(half, PromptApplier) for half in self.hparams_dict.values()
        )
        shared = model or model_for(self.settings, self.settings.source, weights=weights)
        self.model = SteeredModel(shared.model, shared.tokenizer)
        size = self.settings.batch_size
        self.engine = EngineOfRun(self.settings, self.settings.source, self.model, size)
        self.reports: dict[str, SteeringReport] = {}
        self._folds: Folds = {}
        self._judged: dict[str, Judgement] = {}
        self._applied: set[str] = set()
        self._learnt_from: list[dict[str, Any]] = []
        self._origin = origin_of(None)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.model.tokenizer

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.model.device

    def apply_vectors(
        self, vectors: Mapping[str, Mapping[str, Any]] | None = None, folds: Folds | None = None
    ) -> None:
        """Put every configured method in force, in place of what it had in force before.

        Args:
            vectors: One data set's, by method key, as the generator returns them; what is not
                among them is read from `steer_vector_load_dir`.
            folds: By method key, vectors made without some rows, and those rows: what a full
                report judges by where the data set has no held-out pairs.

        Raises:
            ValueError: Vectors that are missing, broken, or made for another model.
        """
        steps: dict[str, list[Intervention]] = {}
        learnt_from: list[dict[str, Any]] = []
        for key, half in self.hparams_dict.items():
            own = (vectors or {}).get(key)
            own = half.load(self.model) if own is None else own
            steps[key] = half.interventions(self.model, own)
            known = getattr(own, "about", {}).values()
            learnt_from += [entry["data"] for entry in known if "data" in entry]
        # Nothing is changed before all is known to fit; a key taken out of hparams_dict ends here.
        # All are taken out first, so that the order is that of hparams_dict whatever came before.
        for key in self._applied | steps.keys():
            self.model.reset(key)
        for key, of_method in steps.items():
            self.model.steer(key, of_method)
        self._folds, self._applied, self._judged = folds or {}, set(steps), {}
        self._learnt_from = learnt_from
        self._origin = origin_of(vectors)

    def generate(
        self,
        datasets: Mapping[str, Sequence[Any]] | Sequence[Any] | None = None,
        save_results: bool = True,
        **params: Any,
    ) -> dict[str, list[Record]]:
        """Answer every row of every data set.

        Args:
            datasets: Rows with `input`, by name, or rows or texts alone; those that the config
                names where None.
            save_results: Write `<generation_output_dir>/<name>_results.json`, and beside it what
                the run was, with its report.
            **params: For `transformers`' `generate`, over the config's `generation_params`.

        Returns:
            By data set name a record a row: `input`, `orig_pred`, `pred`, `reference_response`,
            `complete_output`; for a row with `choices`, and without vLLM, also `choice_log_probs`.
        """
        if datasets is None:
            datasets = prepare_generation_datasets(asdict(self.settings))
        datasets = named_rows(datasets)
        if save_results and self.settings.generation_output_dir is None:
            raise ValueError(
                "no place for results: give generation_output_dir, or generate(save_results=False)"
            )
        chosen = {**self.settings.generation_params, **params}
        return {n: self._data_set(n, rows, chosen, save_results) for n, rows in datasets.items()}

    def results_path(self, dataset: str) -> Path:
        """Where the results of a data set go."""
        folder = self.settings.generation_output_dir or "."
        return Path(folder).expanduser() / f"{dataset}_results.json"

    def answers(
        self, texts: Sequence[str], interventions: Sequence[Intervention], **params: Any
    ) -> list[Answer]:
        """Answers to users' texts under `interventions` instead of what is in force."""
        other = SteeredModel(self.model.model, self.tokenizer)
        other.steer("given", interventions)
        jobs = [
            Job(str(n), self._prompt_ids(other, text), self._seed(n, 0))
            for n, text in enumerate(texts)
        ]
        chosen = {**self.settings.generation_params, **params}
        engine = self.engine.ready_for([edits_of(interventions)], chosen)
        found = answer_jobs(other, jobs, chosen, batch_size=self.settings.batch_size, engine=engine)
        return [found[job.name] for job in jobs]

    def _prompt_ids(self, model: SteeredModel, text: str) -> list[int]:
        chat = self.settings.chat
        return chat.encode(self.tokenizer, chat.text(self.tokenizer, model.prompted(text)))

    def _seed(self, row: int, response: int) -> tuple[int, ...]:
        return (self.settings.seed, row, response)

    def _data_set(
        self, name: str, rows: Sequence[Row], params: dict[str, Any], save: bool
    ) -> list[Record]:
        size, count = self.settings.generation_data_size, self.settings.num_responses
        rows = rows[:size] if size and size > 0 else rows
        if not rows:
            raise ValueError(f"data set {name!r} has no rows to answer")
        jobs = self._jobs(name, rows, params)
        about = self._about(name, rows, params)
        if save and self.settings.resume and (done := self._finished(name, about)) is not None:
            return done
        steps = self.model.interventions()
        if self.engine.is_vllm:
            warn_of_vllm(rows)
            if self.settings.report == "full" and steps:
                self._judgement(steps)  # before the other engine takes the GPU's memory
        tally: Tally | None = None if self.settings.report == "off" else {}
        path, resume = self.results_path(name), self.settings.resume
        with answers_kept(path, about, resume=resume) if save else nullcontext() as kept:
            older = set(kept.items) if kept else set()
            found = answer_jobs(
                self.model,
                jobs,
                params,
                batch_size=self.settings.batch_size,
                tally=tally,
                journal=kept,
                label=f"answering {name}",
                engine=self.engine.ready_for([edits_of(steps)], params),
            )
            records = [record(row, n, found, count) for n, row in enumerate(rows)]
            if not self.engine.is_vllm:
                add_choices(self.model, rows, records, self._prompt_ids, self.settings)
            self.reports.pop(name, None)
            if tally is not None:
                self.reports[name] = self._measured(tally, found, older)
            if save:
                report = self.reports.get(name)
                more = {"origin": self.run.origin, "report": report.as_dict() if report else None}
                more["made_by"] = made_by(self._read, self.device, self._origin)
                save_results(path, records, about, more)
        return records

    def _jobs(self, name: str, rows: Sequence[Row], params: dict[str, Any]) -> list[Job]:
        try:
            texts = [input_of(row, number) for number, row in enumerate(rows, start=1)]
        except ValueError as error:
            raise ValueError(f"data set {name!r}: {error}") from error
        config = generation_config(self.model.model.generation_config, params)
        # Greedy answers are all the same: one is made, and shown num_responses times.
        responses = self.settings.num_responses if config.do_sample else 1
        bare = SteeredModel(self.model.model, self.tokenizer)
        jobs = []
        for n, text in enumerate(texts):
            ids = self._prompt_ids(self.model, text)
            jobs += [Job(f"{n}/{r}", ids, self._seed(n, r)) for r in range(responses)]
            if self.settings.generate_orig_output:
                plain = self._prompt_ids(bare, text)
                jobs.append(Job(f"{n}/orig", plain, self._seed(n, 0), steered=False))
        return jobs

    def _about(self, name: str, rows: Sequence[Row], params: Mapping[str, Any]) -> dict[str, Any]:
        """All that decides the results of a data set."""
        settings = {k: v for k, v in self.run.as_dict().items() if k not in WITHOUT_INFLUENCE}
        found = {
            "data": {"name": name, "rows": len(rows), "sha256": fingerprint(list(rows))},
            "settings": settings,
            "generation_params": dict(params),
            "model": model_facts(self.model),
            "steering": [describe(i) for i in self.model.interventions()],
        }
        return redacted(found)

    def _finished(self, name: str, about: Mapping[str, Any]) -> list[Record] | None:
        level, steered = self.settings.report, bool(self.model.interventions())
        enough = partial(covers, level=level, steered=steered)
        there = finished_results(self.results_path(name), about, enough)
        if there is None:
            return None
        records, run = there
        if run.get("report"):
            self.reports[name] = SteeringReport.of(run["report"])
        return records

    def _measured(
        self, tally: Tally, found: Mapping[str, Answer], older: set[str]
    ) -> SteeringReport:
        """What steering did; `older` are the answers of a killed run that this one goes on from."""
        steps = self.model.interventions()
        fresh = [n for n in found.keys() - older if not n.endswith("/orig")]
        # A killed run's counts are lost: where it had steered all, there is nothing to check.
        report = basic_report(tally, steps if fresh else [])
        if older:
            report.why_not["layers"] = f"{len(older)} answers of the killed run are not counted"
        if self.settings.report != "full" or not steps:
            return report
        judged = self._judgement(steps)
        report.effect, report.kl = judged.effect, judged.kl
        if judged.effect is None:
            report.why_not["effect"] = judged.source
        plain = [answer for name, answer in found.items() if name.endswith("/orig")]
        steered = [answer for name, answer in found.items() if not name.endswith("/orig")]
        vllm = self.engine.scoring()
        score = vllm.log_probs if vllm else partial(answer_log_probs, self.model, interventions=[])
        report.perplexity_ratio = perplexity_ratio(score, steered, plain)
        if not plain:
            report.why_not["perplexity_ratio"] = "set generate_orig_output: true"
        return report

    def _judgement(self, steps: Sequence[Intervention]) -> Judgement:
        """Effect and KL, which are the same for every data set answered under `steps`."""
        key = fingerprint([describe(step) for step in steps])
        if key not in self._judged:
            in_memory = self._origin["vectors"] == THIS_RUN
            names = judges_of(self.settings.steer_train_dataset, self._learnt_from, in_memory)
            chat, loader = self.settings.chat, DatasetLoader(source=self.settings.data_source)
            self._judged = {key: judge(self.model, chat, names, self._steps_of_folds(), loader)}
        return self._judged[key]

    def _steps_of_folds(self) -> dict[str, list[tuple[Sequence[Intervention], Sequence[Row]]]]:
        """By method key, what each fold's own vectors do, and its rows."""
        halves = {k: self.hparams_dict[k] for k in self._folds if k in self.hparams_dict}
        return {
            key: [(half.interventions(self.model, own), rows) for own, rows in self._folds[key]]
            for key, half in halves.items()
        }
