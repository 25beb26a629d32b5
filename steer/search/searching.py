"""A search: split, plan, train, halve, choose, refit, judge."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from steer.datasets import DatasetLoader, Row, input_of, question_of
from steer.files import fingerprint, read_json, write_json
from steer.journal import Journal
from steer.method_files import write_method_file
from steer.models import Intervention, SteeredModel
from steer.models.facts import model_facts
from steer.models.interventions import opposite
from steer.passages import remembered_readings
from steer.search.budget import Budget
from steer.search.candidates import Candidate, Workshop, evenly_spaced
from steer.search.choosing import Chosen, choose
from steer.search.damage import Answers, harmless_prompts
from steer.search.finding import Found
from steer.search.halving import halve
from steer.search.judging import Judge, neutral_texts
from steer.search.planning import ANSWERED_BY, TRIED_BY, Plan, plan
from steer.search.settings import SearchSettings
from steer.search.shifts import examples
from steer.search.splitting import Splits, split
from steer.search.store import Store
from steer.search.verdict import Court, Verdict, add_price
from steer.secrets import redacted
from steer.vectors import annotate

log = logging.getLogger(__name__)

FINDING, PARTIAL = "search.json", "search_partial.jsonl"
LAYERS = 8
SHOWN = 4
# Settings of a run that decide no result of it.
WITHOUT_INFLUENCE = ("resume", "output_dir", "bake_off")


@dataclass(frozen=True)
class Data:
    """What a search is about.

    Attributes:
        source: What it is read by again: a name, or a file.
        name: As it is called.
        rows: Contrastive pairs.
        held_out: Pairs for the verdict; none where part of `rows` is to be.
        inputs: Users' texts to answer.
    """

    source: str
    name: str
    rows: Sequence[Row]
    held_out: Sequence[Row]
    inputs: Sequence[str]

    @classmethod
    def of(cls, settings: SearchSettings, source: str, name: str, rows: Sequence[Row]) -> "Data":
        """The same with what belongs to it by its name, or by the settings."""
        loader = DatasetLoader(source=settings.data_source, fields=settings.train_fields)
        held_out: list[Row] = []
        if settings.verdict_dataset is not None:
            held_out = loader.load_file(settings.verdict_dataset, "train")
        elif loader.has(name, "valid"):
            held_out = loader.load_file(name, "valid")
        # The prompts of a data set of concepts may be for all of them.
        whole = [name[:end] for end in range(len(name), 0, -1) if name[end:][:1] in ("", "/")]
        there = next((one for one in whole if loader.has(one, "generation")), None)
        prompts = settings.generation_data or there
        if prompts is None:
            given = [question_of(row, n) for n, row in enumerate(rows, start=1)]
        else:
            asked = DatasetLoader(source=settings.data_source).load_file(prompts, "generation")
            given = [input_of(row, n) for n, row in enumerate(asked, start=1)]
        return cls(
            source, name, rows, held_out, [text for text in dict.fromkeys(given) if text.strip()]
        )


def search(settings: SearchSettings, data: Data, model: SteeredModel) -> dict[str, Any]:
    """Search for the best setting of `data`, and say whether it works; see docs/search.md.

    Everything goes into `<output_dir>/<name>`: `search.json`, vectors, and while it runs a journal.

    Returns:
        What `search.json` has.

    Raises:
        ValueError: Data or settings that cannot be searched.
    """
    if not data.inputs:
        raise ValueError(
            f"{data.name}: no prompts to answer, and what steering costs is measured in answers: "
            "give generation_data, or pairs with a question"
        )
    folder = Path(settings.output_dir, data.name).expanduser()
    about = _about(settings, data, model)
    if settings.resume and (done := _finished(folder, about)) is not None:
        return done
    began = time.monotonic()
    with Journal(folder / PARTIAL, about, resume=settings.resume) as journal:
        spent = journal.items.get("spent", 0.0)
        budget = Budget(settings.budget_minutes, settings.budget_tokens, spent)
        bare = SteeredModel(model.model, model.tokenizer)
        with budget.counting(bare), remembered_readings():
            running = _Search(settings, data, bare, Store(journal, budget), folder)
            found, splits = running.run()
        cost: dict[str, Any] = {"unit": budget.unit, "total": budget.total}
        cost |= {"spent": budget.spent, "phases": budget.phases}
        cost["seconds"] = time.monotonic() - began
        result = redacted(found.as_dict(running.workshop, splits, cost))
        result |= {"source": data.source, "fingerprint": fingerprint(about)}
        write_json(folder / FINDING, result)
        journal.done()
    return result


def _about(settings: SearchSettings, data: Data, model: SteeredModel) -> dict[str, Any]:
    decisive = {k: v for k, v in asdict(settings).items() if k not in WITHOUT_INFLUENCE}
    given = [list(data.rows), list(data.held_out), list(data.inputs)]
    return redacted({"settings": decisive, "model": model_facts(model), "data": fingerprint(given)})


def _finished(folder: Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
    path = folder / FINDING
    if (folder / PARTIAL).is_file() or not path.is_file():
        return None
    there = read_json(path)
    return there if there.get("fingerprint") == fingerprint(about) else None


class _Search:
    """One search under way."""

    def __init__(
        self, settings: SearchSettings, data: Data, model: SteeredModel, store: Store, folder: Path
    ) -> None:
        self.settings, self.data, self.model = settings, data, model
        self.store, self.budget, self.folder = store, store.budget, folder
        layers = settings.layers or evenly_spaced(model.depth, LAYERS)
        self.workshop = Workshop(settings, data.name, model, layers)
        texts = neutral_texts()
        self.texts = texts[::2], texts[1::2]
        self.harmless = harmless_prompts()

    def run(self) -> tuple[Found, Splits]:
        """All of it."""
        settings, workshop = self.settings, self.workshop
        whole = split(self.data.rows, self.data.held_out, settings.seed)
        grid = workshop.grid()
        sizes = self._plan(whole, len(grid))
        self.budget.note("planning")
        splits = Splits(
            whole.train[: sizes.train],
            whole.select[: sizes.select],
            whole.verdict[: sizes.verdict],
            whole.source,
        )
        candidates = grid[: sizes.settings]
        log.info(
            "%s: %d of %d settings, %d pairs to learn from, %d to choose by, %d for the verdict",
            *(self.data.name, len(candidates), len(grid)),
            *(len(splits.train), len(splits.select), len(splits.verdict)),
        )
        vectors = {
            method: workshop.train(method, splits.train, _layers(method, candidates))
            for method in dict.fromkeys(one.method for one in candidates)
        }
        self.budget.note("training")

        def interventions(candidate: Candidate) -> list[Intervention]:
            return workshop.interventions(candidate, vectors[candidate.method])

        judge = self._judge(splits.select, 0, "select")
        left_over = partial(self.budget.left, TRIED_BY)
        tried, finalists = halve(candidates, interventions, judge, settings.max_kl, left_over)
        self.budget.note("trying settings")
        answers = self._answers(0, sizes.prompts, "select")
        left_over = partial(self.budget.left, ANSWERED_BY)
        given = (answers, settings.limits, sizes.checked, left_over)
        chosen = choose(finalists, interventions, *given)
        self.budget.note("answering")
        if chosen.pick is None:
            return Found(tried, finalists, chosen, Verdict.nothing(chosen.reason), [], None), splits
        return self._judged(tried, finalists, chosen, splits, sizes), splits

    def _plan(self, whole: Splits, settings: int) -> Plan:
        judge = self._judge(whole.select, 0, "plan")
        tokens = self.settings.max_new_tokens
        found = self.store.one("plan", lambda: plan(self.budget, judge, settings, tokens).as_dict())
        return Plan(**found)

    def _judge(self, rows: Sequence[Row], part: int, name: str) -> Judge:
        settings = self.settings
        given = (self.model, rows, self.texts[part], settings.chat, self.store, name)
        return Judge(*given, settings.batch_size)

    def _answers(self, part: int, prompts: int, name: str) -> Answers:
        """To the first half of the prompts, or the second; harmless ones are the same in both."""
        inputs = list(self.data.inputs)[part::2] or list(self.data.inputs)
        harmless = self.harmless[: max(prompts // 2, 2)]
        given = (self.model, inputs[:prompts], harmless, self.settings.chat)
        return Answers(*given, self.settings.max_new_tokens, self.store, name)

    def _judged(
        self, tried: list[Any], finalists: list[Any], chosen: Chosen, splits: Splits, sizes: Plan
    ) -> Found:
        """The verdict on the pick, its vectors made anew of all pairs but the verdict's."""
        pick = chosen.pick
        assert pick is not None
        rows = [*splits.train, *splits.select]
        place, vectors = self.workshop.write(pick, rows, self.folder / "vectors")
        setting = self.workshop.interventions(pick, vectors)
        judge = self._judge(splits.verdict, 1, "verdict")
        self.budget.note("training")
        verdict = Court(self.workshop, judge, rows, self.budget).effect(pick, setting)
        self.budget.note("verdict and controls")
        # What does nothing has no price.
        shown = self._priced(verdict, pick, setting, judge, sizes) if verdict.works else []
        self.budget.note("price")
        values = self.workshop.values(pick)
        annotate(place, {"recommended": values, "verdict": asdict(verdict)}, vectors.about)
        write_method_file(place, pick.method, values)
        return Found(tried, finalists, chosen, verdict, shown, str(place))

    def _priced(
        self,
        verdict: Verdict,
        pick: Candidate,
        setting: list[Intervention],
        judge: Judge,
        sizes: Plan,
    ) -> list[dict[str, Any]]:
        """Add the price to the verdict; examples of answers."""
        answers = self._answers(1, sizes.prompts, "verdict")
        names, settings = [f"{pick}, refitted"], [setting]
        kls = judge.divergences(names, settings, 0, len(judge.texts))
        kls = [kl / judge.tokens(0, len(judge.texts)) for kl in kls]
        if turned := opposite(setting):
            names, settings, kls = [*names, "reversed"], [*settings, turned], [*kls, 0.0]
        prices, made = answers.damage(names, settings, kls)
        add_price(verdict, prices[0], self.settings.limits)
        inputs = answers.inputs[:SHOWN]
        few = [some[: len(inputs)] for some in made]
        others = few[2] if turned else []
        return examples(self.model, inputs, few[0], few[1], others, setting)


def _layers(method: str, candidates: Sequence[Candidate]) -> list[int | None]:
    found = dict.fromkeys(one.layer for one in candidates if one.method == method)
    return sorted(found, key=lambda layer: -1 if layer is None else layer)
