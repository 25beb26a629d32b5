"""Text of tokens as they come: hand-made tokens, a byte each."""

import pytest
from tiny import byte_tokenizer

from steer.serve.text import AnswerText

TOKENIZER = byte_tokenizer()
END = 256


def told(text: str, stops: list[str], *, end: bool = False, limit: int = 999) -> list[str]:
    """What is given out at each token of `text`."""
    ids = [*TOKENIZER(text)["input_ids"], *([END] if end else [])][:limit]
    answer = AnswerText(TOKENIZER, {END}, stops)
    given: list[str] = []
    for number in range(1, len(ids) + 1):
        over = answer.reached([], ids[:number]) or number == len(ids)
        given.append(answer.taken(over=over))
        if over:
            break
    return given


def test_text_comes_token_by_token():
    assert told("abc", []) == ["a", "b", "c"]
    assert told("abc", [], end=True) == ["a", "b", "c", ""]


def test_a_character_comes_when_it_is_whole():
    assert told("a\u00e9\u20ac", []) == ["a", "", "\u00e9", "", "", "\u20ac"]


def test_a_character_that_is_cut_short_is_shown_as_that():
    assert told("\u20ac", [], limit=2) == ["", "\ufffd"]


def test_what_may_begin_a_stop_string_is_kept_back():
    assert told("one END two", ["END"]) == ["o", "n", "e", " ", "", "", ""]
    assert told("an EN ENx", ["END"]) == ["a", "n", " ", "", "", "EN ", "", "", "ENx"]
    assert told("aEN", ["END"]) == ["a", "", "EN"]


def test_the_first_of_several_stop_strings_counts():
    assert "".join(told("say yes or no", ["no", "yes", "or"])) == "say "


@pytest.mark.parametrize("stop", ["\u20ac", "b\u20ac"])
def test_a_stop_string_may_be_of_many_bytes(stop: str):
    expected = "ab\u20acc".split(stop)[0]
    assert "".join(told("ab\u20acc", [stop])) == expected
