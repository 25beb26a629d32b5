"""Letters of multiple-choice questions."""

import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from test_methods import applier_of, made
from tiny import full_logits, steered, tiny_config

from steer.choices import choice_log_probs
from steer.models import FROM_PROMPT_END, Add, EditLayer, SteeredModel

PUSH = EditLayer(1, Add(9 * torch.randn(16, generator=torch.Generator().manual_seed(0))))


def by_hand(model: SteeredModel, ids: list[int], letters: str, last_only: bool) -> list[float]:
    """The slow way; in a byte tokenizer a letter with a space is two tokens, and does not count."""

    def push(hidden: torch.Tensor) -> torch.Tensor:
        changed = hidden.clone()
        changed[-1 if last_only else 0 :] += PUSH.edit.vector
        return changed

    logits = full_logits(model, ids, {1: push})[-1]
    return [float(logits.log_softmax(-1)[ord(letter) - 33]) for letter in letters]


@pytest.mark.parametrize("batch_size", [1, 2, "auto"])
def test_each_prompt_has_the_numbers_of_its_letters_alone(model: SteeredModel, batch_size):
    prompts = [model.tokenizer(t)["input_ids"] for t in ("abc:", "a longer one:", "x")]
    end = EditLayer(1, PUSH.edit, FROM_PROMPT_END)
    for step, last_only in ((PUSH, False), (end, True)):
        found = choice_log_probs(model, prompts, [4, 2, 4], [step], batch_size)
        for ids, values in zip(prompts, found, strict=True):
            letters = "".join(values)
            assert letters == "ABCD"[: len(letters)]
            wanted = by_hand(model, ids, letters, last_only)
            assert list(values.values()) == pytest.approx(wanted, abs=1e-4)
    assert [len(values) for values in found] == [4, 2, 4]


def test_a_letter_with_a_space_before_it_counts_too():
    model = steered(tiny_config("llama"))
    model.tokenizer = lambda text, **_: {"input_ids": [{"A": 5, " A": 9}[text]]}
    (found,) = choice_log_probs(model, [[3, 2]], [1], [])
    p = full_logits(model, [3, 2])[-1].softmax(-1)
    assert math.exp(found["A"]) == pytest.approx(float(p[5] + p[9]), rel=1e-4)


def test_letters_without_a_token_are_named():
    model = steered(tiny_config("llama"))
    model.tokenizer = lambda text, **_: {"input_ids": [1, 2]}
    with pytest.raises(ValueError, match=r"^the tokenizer has no single token for the letter 'A'$"):
        choice_log_probs(model, [[3]], [1], [])


def test_results_of_rows_with_choices_hold_both_sides(tmp_path: Path):
    model = steered(tiny_config("llama"))
    vectors, _ = made("caa", model, tmp_path)
    applier = applier_of(["caa"], model, tmp_path, generate_orig_output=True)
    applier.apply_vectors({"caa": vectors})
    rows = [{"input": "Which?", "choices": ["one", "two"]}, {"input": "Hello"}]
    first, second = applier.generate({"quiz": rows})["quiz"]
    assert first["choice_log_probs"].keys() == first["orig_choice_log_probs"].keys() == {"A", "B"}
    assert first["choice_log_probs"] != first["orig_choice_log_probs"]
    assert "choice_log_probs" not in second


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM would answer")
@pytest.mark.parametrize("row", [{"input": "Which?", "choices": ["one", "two"]}, {"input": "Hi"}])
def test_that_vllm_gives_no_numbers_of_letters_is_said_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: dict[str, object]
):
    model = steered(tiny_config("llama"))
    vectors, _ = made("caa", model, tmp_path)
    applier = applier_of(["caa"], model, tmp_path, engine="vllm")
    applier.apply_vectors({"caa": vectors})
    with pytest.raises((ImportError, ValueError), match="vllm"):
        applier.generate({"quiz": [row]})
    assert ("the results will have no choice_log_probs" in caplog.text) == ("choices" in row)
