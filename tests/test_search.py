"""The parts of a search, each against what is known beforehand."""

import random
import shlex
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from tiny import ids_of

from steer.build import read_yaml
from steer.methods.activation_addition import AddSTAVectors, AddVectors
from steer.models import EditLayer, SteeredModel
from steer.passages import Passage, passage_means, remembered_readings
from steer.search.budget import Budget
from steer.search.candidates import Candidate, Workshop, coarse_to_fine, evenly_spaced
from steer.search.choosing import choose
from steer.search.damage import Damage
from steer.search.halving import Rung, Tried, affordable, halve, rungs
from steer.search.page import CONFIG
from steer.search.settings import TRAINABLE, Limits, SearchSettings
from steer.search.shifts import first_difference
from steer.search.splitting import shuffled, split
from steer.search.wording import commands


def pairs(number: int, start: int = 0):
    return [
        {"question": f"q {n}", "matching": f"good {n}", "not_matching": f"bad {n}"}
        for n in range(start, start + number)
    ]


# ---- data ----


def test_no_question_is_in_two_parts_and_no_pair_is_lost():
    rows = pairs(40) + [{**row, "matching": f"{row['matching']} too"} for row in pairs(20)]
    found = split(rows, [], seed=1)
    parts = [found.train, found.select, found.verdict]
    questions = [{row["question"] for row in part} for part in parts]
    assert (
        not questions[0] & questions[1] | questions[0] & questions[2] | questions[1] & questions[2]
    )
    assert sorted(str(row) for part in parts for row in part) == sorted(map(str, rows))
    assert [len(part) for part in parts[1:]] == pytest.approx([15, 15], abs=1)
    assert split(rows, [], seed=1) == found != split(rows, [], seed=2)


def test_a_held_out_file_gives_the_verdict_and_what_it_has_is_not_learnt():
    held_out = pairs(10)
    found = split(pairs(40), held_out, seed=0)
    assert found.verdict == held_out
    learnt = {row["question"] for row in found.train + found.select}
    assert learnt == {f"q {n}" for n in range(10, 40)}
    assert len(found.select) == 10


def test_rows_that_cannot_be_searched_are_refused():
    with pytest.raises(ValueError, match=r"too few pairs: 8 of 8 .* 0 held out, leave 4 to learn"):
        split(pairs(8), [], seed=0)
    with pytest.raises(ValueError, match=r"100 of 1 different questions, .* with more questions"):
        split([{**row, "question": "q"} for row in pairs(100)], [], seed=0)
    with pytest.raises(ValueError, match="the held-out data has rows that are no pairs"):
        split(pairs(40), [{"question": "q", "matching": "a"}], seed=0)


def test_shuffling_turns_exactly_half_of_the_pairs_round():
    rows = pairs(11)
    found = shuffled(rows, 3)
    turned = [one != other for one, other in zip(rows, found, strict=True)]
    assert sum(turned) == 5
    for row, other, is_turned in zip(rows, found, turned, strict=True):
        assert is_turned == (other["matching"] == row["not_matching"])
        assert {other["matching"], other["not_matching"]} == {row["matching"], row["not_matching"]}
    assert shuffled(rows, 3) == found != shuffled(rows, 4)


# ---- settings to try ----


def test_each_beginning_of_a_coarse_list_is_spread_out():
    for count in range(1, 20):
        assert sorted(coarse_to_fine(count)) == list(range(count))
    assert coarse_to_fine(7)[:3] == [3, 1, 5]
    assert evenly_spaced(30, 8)[::7] == [7, 26]
    assert evenly_spaced(3, 8) == [0, 1]


def test_what_learns_from_pairs_can_be_searched():
    assert TRAINABLE == ["caa", "vector_prompt", "sta", "lm_steer", "pca", "probe", "ablate"]


def settings(**more) -> SearchSettings:
    return SearchSettings.of({"steer_train_dataset": ["mine"], "device": "cpu", **more})[0]


def test_the_keys_of_a_search_are_checked():
    assert settings(methods="caa", multiple_choice=True).more == {"multiple_choice": True}
    with pytest.raises(ValueError, match="unknown method to search 'prompt'"):
        settings(methods=["prompt"])
    with pytest.raises(ValueError, match="unknown key 'dosis'; did you mean 'doses'"):
        settings(dosis=[0.1])
    with pytest.raises(ValueError, match=r"doses must be numbers above 0: got \[0.1, -0.1\]"):
        settings(doses=[0.1, -0.1])
    with pytest.raises(ValueError, match=r"gate must be left out of a search.*got my/detector"):
        settings(gate="my/detector")
    with pytest.raises(ValueError, match="budget_minutes must be above 0"):
        settings(budget_minutes=0)


def test_a_dose_is_a_share_of_the_residuals_norm(model: SteeredModel):
    workshop = Workshop(settings(methods=["caa"]), "mine", model, [0, 2])
    vectors = workshop.train("caa", pairs(12), [0, 2])
    assert set(vectors) == {"layer_0", "layer_2"}
    for layer in (0, 2):
        (step,) = workshop.interventions(Candidate("caa", layer, 0.3), vectors)
        assert isinstance(step, EditLayer)
        assert step.layer == layer
        norm = vectors.about[f"layer_{layer}"]["residual_norm"]
        assert float(step.edit.change().norm()) == pytest.approx(0.3 * norm, rel=1e-4)
    half = AddVectors(**workshop.values(Candidate("caa", 2, 0.3)))
    assert (half.layers, half.multipliers, half.strength) == ([2], [0.3], "relative")


def test_what_adds_no_vector_is_scaled_from_what_its_file_says(model: SteeredModel):
    workshop = Workshop(settings(methods=["lm_steer", "ablate"]), "mine", model, [0, 2])
    assert workshop.layers_of("lm_steer") == [None]
    assert workshop.values(Candidate("lm_steer", None, 0.5))["steer_values"] == [1.5, 0.0]
    values = workshop.values(Candidate("ablate", 2, 2.0))
    assert values == {"positions": "all", "layers": [2], "direction_layer": 2, "amount": 1.0}


def test_what_is_written_for_applying_is_the_setting_that_was_tried(model: SteeredModel):
    given = settings(methods=["caa"], operation="add_keeping_norm", multiple_choice=True)
    values = Workshop(given, "mine", model, [0, 2]).values(Candidate("caa", 2, 0.3))
    assert AddVectors(**values).operation == "add_keeping_norm"
    sta = Workshop(settings(methods=["sta"], trims=[0.9]), "mine", model, [2])
    applied = AddSTAVectors(**sta.values(Candidate("sta", 2, 0.3)))
    assert applied.names() == ["layer_2_act_and_freq_trim0.9"]


def test_the_grid_begins_coarse_and_has_every_setting_once(model: SteeredModel):
    given = settings(methods=["caa", "pca"], positions=["all", "generated"], doses=[0.1, 0.2, 0.3])
    grid = Workshop(given, "mine", model, [0, 1, 2]).grid()
    assert len(set(grid)) == len(grid) == 2 * 2 * 3 * 3
    assert grid[0] == Candidate("caa", 1, 0.2, "all")
    assert {one.layer for one in grid[:8]} == {0, 1, 2}
    assert {one.method for one in grid[:8]} == {"caa", "pca"}


def test_passages_are_read_once_while_readings_are_remembered(model: SteeredModel):
    passages = [Passage(ids, 2, len(ids)) for ids in ids_of([5, 9, 6])]
    (alone,) = passage_means(model, passages, [0, 2])
    reads: list[object] = []
    read = model.read
    model.read = lambda inputs, layers: reads.append(layers) or read(inputs, layers)
    with remembered_readings():
        for chosen, layers in [
            ([0, 1], [0]),
            ([2, 0], [0]),
            ([2, 1, 0, 0], [2]),
            ([1, 2, 0], [0, 2]),
        ]:
            (batch,) = passage_means(model, [passages[n] for n in chosen], layers)
            for place, number in enumerate(chosen):
                row = alone.rows.index(number)
                for layer in layers:
                    torch.testing.assert_close(batch.means[layer][place], alone.means[layer][row])
                    torch.testing.assert_close(batch.norms[layer][place], alone.norms[layer][row])
    assert reads == [[0], [0], [2]]


# ---- budget and halving ----


def test_tokens_that_the_model_reads_are_counted(model: SteeredModel):
    budget = Budget(1.0, tokens=100, spent=10)
    with budget.counting(model):
        model.model(torch.zeros(2, 15, dtype=torch.long))
    model.model(torch.zeros(2, 15, dtype=torch.long))
    assert (budget.unit, budget.total, budget.spent, budget.left(0.5)) == ("tokens", 100, 40, 10)
    budget.note("reading")
    assert budget.phases == {"reading": 30}
    assert Budget(2.0).total == 120


def test_a_third_goes_on_each_time_with_thrice_the_pairs():
    assert rungs(90, 48, 8) == [Rung(90, 6, 2), Rung(30, 18, 4), Rung(10, 48, 8)]
    assert rungs(9, 18, 8) == [Rung(9, 6, 2), Rung(8, 18, 8)]
    assert rungs(4, 5, 8) == [Rung(4, 5, 8)]


def test_as_many_settings_as_the_budget_allows():
    # 9 on 6 pairs and 2 texts, 8 on 12 more pairs and 6 more texts.
    cost = 9 * (6 * 2 + 2) + 8 * (12 * 2 + 6)
    assert affordable(100, 18, 8, cost, 2.0, 1.0) == 9
    assert affordable(7, 18, 8, cost, 2.0, 1.0) == 7
    assert affordable(100, 18, 8, 0.0, 2.0, 1.0) == 4


class KnownJudge:
    """Knows what each dose does to each pair and text."""

    def __init__(self, pairs: int, texts: int) -> None:
        self.pairs, self.texts = list(range(pairs)), list(range(texts))
        self.asked: list[tuple[list[str], int, int]] = []

    def changes(self, names, settings, first, last):
        self.asked.append((names, first, last))
        dice = random.Random(first)
        noise = [dice.gauss(0, 0.1) for _ in range(first, last)]
        return [[10 * dose + one for one in noise] for dose in settings]

    def divergences(self, names, settings, first, last):
        return [dose**2 * self.tokens(first, last) for dose in settings]

    def tokens(self, first, last):
        return 5 * (last - first)


def test_the_strongest_setting_within_the_limit_comes_first():
    doses = [n / 20 for n in range(1, 28)]
    judge = KnownJudge(18, 8)
    candidates = [Candidate("caa", 1, dose) for dose in doses]
    tried, left = halve(candidates, lambda one: one.dose, judge, 0.25, lambda: 1e9)
    assert [one.candidate.dose for one in left[:3]] == [0.5, 0.45, 0.4]
    assert [len(one.changes) for one in tried] == [18 if one in left else 6 for one in tried]
    assert left[0].mean == pytest.approx(5, abs=0.1)
    assert left[0].kl == pytest.approx(0.25)
    assert [(len(names), first, last) for names, first, last in judge.asked] == [
        (27, 0, 6),
        (9, 6, 18),
    ]
    low, high = left[0].interval()
    assert low < left[0].mean < high < low + 0.2


def test_fewer_settings_go_on_where_the_machine_is_slower_than_it_was():
    judge, left_over = KnownJudge(18, 8), iter([100.0, 30.0, 30.0, 0.0])
    candidates = [Candidate("caa", 1, n / 100) for n in range(1, 28)]
    halve(candidates, lambda one: one.dose, judge, 1.0, lambda: next(left_over))
    # 70 for 27 settings on 8 items each: 30 are enough for 5 on 18.
    assert len(judge.asked[1][0]) == 5


def test_where_nothing_is_left_a_few_settings_are_tried_all_the_same():
    judge = KnownJudge(18, 8)
    candidates = [Candidate("caa", 1, n / 100) for n in range(1, 28)]
    tried, left = halve(candidates, lambda one: one.dose, judge, 1.0, lambda: 0.0)
    assert [len(names) for names, *_ in judge.asked] == [3, 3]
    assert [one.candidate for one in tried] == candidates[:3]
    assert len(left) == 3


# ---- choosing ----


class KnownAnswers:
    """Knows each dose's perplexity."""

    def __init__(self, ratios: dict[float, float]) -> None:
        self.ratios, self.asked = ratios, []

    def damage(self, names, settings, kls):
        self.asked += settings
        return [
            Damage(kl, self.ratios[d], 0, 0, 4, 2) for d, kl in zip(settings, kls, strict=True)
        ], []


def finalist(dose: float, changes: list[float], kl: float = 0.1) -> Tried:
    return Tried(Candidate("caa", 1, dose), changes, kl, 1)


def chosen(finalists, ratios, at_once=2, limits=None):
    answers = KnownAnswers(ratios)
    limits = limits or Limits()
    return choose(finalists, lambda one: one.dose, answers, limits, at_once, lambda: 1.0), answers


FINALISTS = [
    finalist(0.4, [5.0, 6.0, 7.0, 6.0]),
    finalist(0.3, [4.5, 6.1, 6.0, 6.5]),
    finalist(0.2, [1.0, 2.0, 3.0, 2.0]),
    finalist(0.1, [0.5, 1.0, 1.5, 1.0]),
]


def test_the_best_within_the_limits_is_picked_with_those_as_good():
    found, answers = chosen(FINALISTS, {0.4: 1.2, 0.3: 1.1, 0.2: 1.0, 0.1: 1.0}, at_once=4)
    assert found.pick == FINALISTS[0].candidate
    assert [one.dose for one in found.band] == [0.4, 0.3]
    assert answers.asked == [0.4, 0.3, 0.2, 0.1]


def test_settings_over_a_limit_make_way_for_the_next():
    found, answers = chosen(FINALISTS, {0.4: 9.0, 0.3: 2.0, 0.2: 1.0, 0.1: 1.0})
    assert found.pick == FINALISTS[2].candidate
    assert answers.asked == [0.4, 0.3, 0.2, 0.1]
    found, answers = chosen(FINALISTS, {0.4: 9.0, 0.3: 1.0})
    assert found.pick == FINALISTS[1].candidate
    assert answers.asked == [0.4, 0.3]


def test_no_setting_may_be_the_answer():
    found, _ = chosen(FINALISTS, dict.fromkeys([0.4, 0.3, 0.2, 0.1], 2.0))
    assert found.pick is None
    assert (
        "no setting stays within the limits; caa, layer 1, dose 0.4: perplexity ratio 2.00"
        in found.reason
    )
    harmful = [replace(one, changes=[-c for c in one.changes]) for one in FINALISTS]
    found, answers = chosen(harmful, {})
    assert found.pick is None
    assert answers.asked == []
    assert found.reason.startswith("no setting makes matching answers likelier")
    costly = [replace(one, divergence=3.0) for one in FINALISTS]
    found, _ = chosen(costly, {})
    assert found.reason.startswith("every setting costs more than the limit")


def test_each_limit_is_named_where_it_is_broken():
    over = Damage(0.5, 2.0, 0.3, 0.4, 8, 4).over(Limits())
    assert [one.split(" 0")[0].split(" 2")[0] for one in over] == [
        "KL",
        "perplexity ratio",
        "repetition",
        "refusal of harmless prompts",
    ]
    assert Damage(0.3, 1.5, 0.1, 0.1, 8, 4).over(Limits()) == []


# ---- what to type ----


def typed(command: str) -> tuple[str, dict[str, Any]]:
    """A program, and its arguments as Hydra reads them."""
    words = shlex.split(command)
    given = [word for word in words if "=" in word]
    read = OverridesParser.create().parse_overrides(given)
    return " ".join(words[: len(words) - len(given)]), {
        one.key_or_group: one.value() for one in read
    }


def test_what_to_type_means_the_same_settings():
    usual = read_yaml(CONFIG, "config")
    own = {
        "steer_train_dataset": ["my pairs.jsonl"],
        "train_fields": {"question": "what is asked", "matching": ["yes", "ja"]},
        "system_prompt": 'You are brief, "kind" = [good].',
        "use_chat_template": False,
        "enable_thinking": False,
        "revision": "v1.0",
        "batch_size": "4",
        "verdict_dataset": "~/held out, é.jsonl",
        "doses": [0.1, 0.2],
        "operation": "add_keeping_norm",
    }
    given = SearchSettings.of(usual | own)[0]
    finding = {
        "settings": asdict(given),
        "source": "my pairs.jsonl",
        "folder": "my search/vectors",
        "pick": {"method": "caa"},
    }
    again, answer = (typed(command) for _, command in commands(finding, usual))
    assert again[0] == "python -m steer.search"
    assert again[1].keys() == own.keys()
    assert SearchSettings.of(usual | again[1])[0] == given
    assert answer[0] == "python vectors_apply.py"
    chat = ("system_prompt", "use_chat_template", "enable_thinking", "revision")
    assert answer[1] == {key: own[key] for key in chat} | {
        "model_name_or_path": "SmolLM2-135M-Instruct",
        "apply_steer_hparam_paths": ["my search/vectors/apply_caa.yaml"],
        "steer_vector_load_dir": ["my search/vectors"],
    }


def test_the_first_token_that_differs():
    assert first_difference([1, 2, 3], [1, 2, 4]) == 2
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2], [1, 2, 3]) == 2
    assert first_difference([], [1]) == 0
