"""Perplexity, against two full passes a text, hand-worked numbers and the reference cases."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import byte_tokenizer, full_logits, kept, steered, tiny_config
from tokenizers import Tokenizer

from steer.evaluate.base import Item, Missing
from steer.evaluate.perplexity import (
    Perplexity,
    Surprise,
    answer_surprises,
    perplexity_figures,
    surprise,
)
from steer.models import Add, EditLayer, SteeredModel

CASES = Path(__file__).resolve().parents[2] / "shared" / "eval_cases" / "reference_cases.json"


def items(*given: tuple[str, Sequence[str]]) -> list[Item]:
    return [Item(prompt, tuple(responses)) for prompt, responses in given]


def energy(model: SteeredModel, ids: list[int]) -> float:
    """-log P of the tokens from the second on, by one full pass."""
    if len(ids) < 2:
        return 0.0
    log_probs = full_logits(model, ids[:-1]).double().log_softmax(-1)
    return -float(log_probs.gather(-1, torch.tensor(ids[1:])[:, None]).sum())


def slow(model: SteeredModel, prompt: str, response: str) -> Surprise:
    """The definition, by two full passes."""
    tokenizer: Any = model.tokenizer
    text, start = tokenizer(prompt + response)["input_ids"], tokenizer(prompt)["input_ids"]
    return Surprise(energy(model, text) - energy(model, start), len(text) - len(start))


def assert_as_slow(model: SteeredModel, given: list[Item]) -> None:
    found = answer_surprises(model, given)
    assert (found.missing, found.cut) == ([], 0)
    for item, of_item in zip(given, found.of_items, strict=True):
        expected = [slow(model, item.input, response) for response in item.responses]
        assert [one.tokens for one in of_item] == [one.tokens for one in expected]
        nats = [[one.nats for one in side] for side in (of_item, expected)]
        assert nats[0] == pytest.approx(nats[1], rel=1e-4)


def merging() -> SteeredModel:
    """A tiny model whose tokenizer makes one token of `ab`, also across the prompt's end."""
    model = steered(tiny_config("llama", vocab_size=259))
    state = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    state["model"]["vocab"]["ab"] = 258
    state["model"]["merges"] = [["a", "b"]]
    tokenizer = type(model.tokenizer)(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    return SteeredModel(model.model, tokenizer)


# ---- the formula -------------------------------------------------------------------------------


def test_perplexity_is_that_of_the_answers_tokens():
    halves = [math.log(0.5)] * 3
    assert surprise(halves).perplexity == pytest.approx(2)
    assert surprise([math.log(0.1), *halves], [math.log(0.1)]).perplexity == pytest.approx(2)


def test_nothing_is_dropped_unless_it_is_asked_for():
    found = [Surprise(math.log(value), 1) for value in (2.0, 4.0, 2e4)]
    figures = perplexity_figures(found)
    assert figures["perplexity"] == pytest.approx(20006 / 3)
    assert figures["total_perplexity"] == pytest.approx((2 * 4 * 2e4) ** (1 / 3))
    assert figures["perplexity_median"] == pytest.approx(4)
    assert figures["perplexity_over_1e4"] == pytest.approx(1 / 3)
    assert perplexity_figures(found, drop_over=1e4) == pytest.approx(figures | {"perplexity": 3})
    assert set(perplexity_figures([]).values()) == {None}


def cases(*metrics: str) -> list[dict[str, Any]]:
    if not CASES.is_file():
        pytest.skip(f"no reference cases at {CASES}")
    every = json.loads(CASES.read_text(encoding="utf-8"))
    return [case for case in every if case["metric"] in metrics]


def bigrams(case: dict[str, Any], text: str) -> list[float]:
    words, table = text.split(), case["params"]["bigram_probability"]
    pairs = (f"{a} {b}" for a, b in pairwise(words))
    return [math.log(table.get(pair, case["params"]["default_probability"])) for pair in pairs]


def test_the_reference_cases_of_conditional_perplexity_hold():
    for case in cases("conditional_perplexity", "conditional_perplexity_easyedit2"):
        found = [
            surprise(bigrams(case, prompt + answer), bigrams(case, prompt))
            for item in case["input"]
            for prompt in [item.get("prompt", item.get("input"))]
            for answer in item.get("generations", item.get("pred"))
        ]
        figures, expected = perplexity_figures(found, drop_over=1e4), case["expected"]
        expected = expected if isinstance(expected, dict) else {"perplexity": expected}
        assert {key: figures[key] for key in expected} == pytest.approx(expected), case["id"]


def test_perplexities_of_lm_evaluation_harness_are_totals_of_this_one():
    for case in cases("perplexity_lm_eval"):
        documents = [Surprise(-log_prob, 1) for log_prob in case["input"]]
        found = perplexity_figures(documents)["total_perplexity"]
        assert found == pytest.approx(case["expected"]), case["id"]
    for case in cases("weighted_perplexity_lm_eval", "bits_per_byte_lm_eval"):
        total = perplexity_figures([Surprise(-nats, n) for nats, n in case["input"]])
        found = total["total_perplexity"]
        found = math.log2(found) if case["metric"].startswith("bits") else found
        assert found == pytest.approx(case["expected"]), case["id"]


# ---- by a model --------------------------------------------------------------------------------


def test_answers_cost_what_two_full_passes_say(every: SteeredModel):
    shared = "One beginning for all of them. "
    assert_as_slow(
        every,
        items(("short", [" answer", "!"]), ("x", ["yz"]), (f"{shared}Go", [" on now", "."]))
        + items((f"{shared}Stop", [" there"])),
    )


def test_what_merges_across_the_prompts_end_is_counted_as_the_definition_says():
    model = merging()
    assert_as_slow(model, items(("xa", ["bc", " c", "bab"]), ("a", ["bc"]), ("xab", ["ab"])))
    found = answer_surprises(model, items(("xa", ["b"])))
    reason = "no token of its own behind the prompt"
    assert (found.of_items, found.missing) == ([[]], [Missing(1, 1, reason)])


def test_what_is_in_force_does_not_count(model: SteeredModel):
    model.steer("caa", [EditLayer(1, Add(9 * torch.ones(16)))])
    assert_as_slow(model, items(("prompt", [" answer"])))


def test_without_a_prompt_the_first_token_is_given():
    model, tokenizer = kept("llama"), byte_tokenizer()
    found = answer_surprises(model, items(("", ["abc", "a"])))
    (one,) = found.of_items[0]
    expected = energy(model, tokenizer("abc")["input_ids"])  # type: ignore[arg-type]
    assert (one.tokens, one.nats) == (2, pytest.approx(expected, rel=1e-4))
    assert [left.response for left in found.missing] == [2]


def test_empty_answers_and_prompts_too_long_are_missing_and_long_answers_are_cut():
    model = steered(tiny_config("llama", max_position_embeddings=12))
    given = items(("prompt", ["", " an answer too long"]), ("a prompt too long", [" answer"]))
    found = answer_surprises(model, given)
    reason = "the prompt alone fills the 12 tokens that the model can read"
    assert found.missing == [Missing(1, 1, "empty"), Missing(2, 1, reason)]
    assert found.cut == 1
    (one,) = found.of_items[0]
    expected = slow(model, "prompt", " an answer too long"[:6])
    assert (one.tokens, one.nats) == (6, pytest.approx(expected.nats, rel=1e-4))


def test_an_answer_whose_probability_is_no_number_is_missing():
    model = steered(tiny_config("llama"))
    with torch.no_grad():
        model.model.get_input_embeddings().weight[ord("!")] = math.nan
    bad = byte_tokenizer().decode([ord("!")])
    found = answer_surprises(model, items(("abc", ["def", 2 * bad])))
    assert found.missing == [Missing(1, 2, "the model gives no finite probability")]
    assert len(found.of_items[0]) == 1


def test_the_metric_says_what_it_measured_with(tiny_folder: Path):
    metric = Perplexity(model_name_or_path=str(tiny_folder), device="cpu", ppl_drop_over=1e4)
    given = items(("prompt", [" one", " another"]), ("more", [""]), ("last", ["."]))
    scores = metric.score(given)
    found = answer_surprises(kept("llama"), given).of_items
    first = [one.perplexity for one in found[0]]
    assert scores.figures == perplexity_figures([*found[0], *found[2]], drop_over=1e4)
    assert scores.values["perplexity"] == [
        pytest.approx(sum(first) / 2),
        None,
        pytest.approx(found[2][0].perplexity),
    ]
    assert scores.missing == [Missing(2, 1, "empty")]
    assert scores.protocol["model"]["id"] == tiny_folder.name
    assert scores.protocol["model"]["fingerprint"]
    told = {"answers": 3, "tokens": 13, "texts_cut": 0, "drop_over": 1e4}
    assert told.items() <= scores.protocol.items()


def test_model_kwargs_are_a_mapping_or_its_json():
    told = {"attn_implementation": "eager"}
    for given in (told, json.dumps(told)):
        assert Perplexity(model_kwargs=given).model_kwargs == told
    for wrong in ("eager", "[1]", 3):
        with pytest.raises(ValueError, match=r"model_kwargs must be a mapping, as \{\"attn.*: got"):
            Perplexity(model_kwargs=wrong)


@pytest.mark.slow
def test_the_embedded_model_gives_what_two_passes_give(embedded: SteeredModel):
    # " of" and "of" are other tokens; "wonder" + "ful" is one.
    given = items(
        ("The capital of France is", [" Paris, of course.", "Paris"]),
        ("It was wonder", ["ful to see you again.", "\n"]),
    )
    assert_as_slow(embedded, given)
    scores = Perplexity(device="cpu").score(given)
    assert scores.protocol["model"]["id"] == "SmolLM2-135M-Instruct"
    assert scores.figures["perplexity"] > 1
