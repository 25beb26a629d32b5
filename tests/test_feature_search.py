"""From a word to features: the shipped directory, and small ones written by hand."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from steer.saes import (
    DEFAULT_SAE,
    describe,
    features_by_id,
    has_directory,
    read_features,
    search_features,
)
from steer.saes.__main__ import main
from steer.saes.words import same_word, split_words

WORDS = ["water", "dog", "money", "happy", "war", "school", "car", "love", "computer", "movie"]


def example(token: str, before: str = "", after: str = "", act: float = 10.0) -> dict[str, Any]:
    return {"act": act, "before": before, "token": token, "after": after}


def record(number: int, *examples: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {
        "id": number,
        "frequency": 0.01,
        "max_activation": 20.0,
        "mean_activation": 5.0,
        "top_logits": [],
        "bottom_logits": [],
        "examples": list(examples),
        **changed,
    }


def directory(folder: Path, *records: dict[str, Any]) -> Path:
    with gzip.open(folder / "features.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in records)
    return folder


def found(place: Path, query: str, k: int = 9) -> list[int]:
    return [hit.feature.id for hit in search_features(place, query, k)]


# ---- the directory that is shipped --------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS)
def test_what_is_found_for_a_word_fires_on_it(word: str):
    hits = search_features(DEFAULT_SAE, word)
    assert hits
    for hit in hits:
        tokens = [e.token.strip().lower() for e in hit.feature.examples]
        assert sum(word in (token, token.removesuffix("s")) for token in tokens) >= 2
        assert repr(word) in hit.reason


@pytest.mark.slow
def test_a_word_that_no_feature_knows_is_said_to_be_unknown_beside_what_is_near():
    with pytest.raises(ValueError, match=r"no feature of .*layer_15 fires on 'ocean'.*surf.*sea"):
        search_features(DEFAULT_SAE, "ocean")
    with pytest.raises(ValueError, match=r"fires on 'watre'.*did you mean 'water'"):
        search_features(DEFAULT_SAE, "watre")


@pytest.mark.slow
def test_every_record_of_the_shipped_directory_is_read():
    features = list(read_features(DEFAULT_SAE))
    assert [feature.id for feature in features] == list(range(4096))
    assert features_by_id(DEFAULT_SAE, [877, 5000]) == {877: features[877]}
    assert features[877].fires_on() == "happy"


# ---- what counts --------------------------------------------------------------------------------


def test_what_fires_counts_more_than_the_words_around_and_those_more_than_what_is_promoted(
    tmp_path: Path,
):
    place = directory(
        tmp_path,
        record(0, example(" cat", "a black"), example(" cat", "my")),
        record(1, example(" cat", "the small"), example(" cat", "a small")),
        record(2, example(" cat"), example(" dog")),
        record(3, example(" cat"), example(" cat"), top_logits=[" small"]),
        record(4, example(" stone", "cat and", "small cat"), top_logits=["cat"]),
    )
    assert found(place, "small cat") == [1, 3, 0]
    assert found(place, "cat") == [0, 1, 3]


def test_the_share_of_activation_decides_and_the_rarer_feature_goes_first_of_equal_ones(
    tmp_path: Path,
):
    half = [example(" cat", act=5), example(" cat", act=5)]
    place = directory(
        tmp_path,
        record(0, *half, example(" sofa", act=90)),
        record(1, *half, example(" sofa", act=5)),
        record(2, *half, frequency=0.2),
        record(3, *half, frequency=0.001),
    )
    hits = search_features(place, "cat", 9)
    assert [hit.feature.id for hit in hits] == [3, 2, 1, 0]
    # 0.8 times the share at the word: all, all, 10 of 15, 10 of 100.
    assert [hit.score for hit in hits] == pytest.approx([0.8, 0.8, 0.8 * 2 / 3, 0.08])


def test_a_word_is_what_the_token_is_part_of(tmp_path: Path):
    place = directory(
        tmp_path,
        record(0, example("dog", "a bull"), example("dog", "the bull")),
        record(1, example(" dog", "a", "matic view"), example(" dog", "a", "ma")),
        record(2, example(" d", "one", "og barks"), example("og", "one d", ", two")),
    )
    assert found(place, "dog") == [2]
    assert found(place, "bulldog") == [0]


def test_other_forms_of_a_word_are_found_after_the_word_itself(tmp_path: Path):
    place = directory(
        tmp_path,
        record(0, example(" LOVED"), example(" loving")),
        record(1, example(" Love"), example(" love")),
        record(2, example(" lover"), example(" lovely")),
    )
    assert found(place, "love") == [1, 0]
    assert found(place, "Loved") == [0, 1]


def test_common_words_of_a_phrase_find_nothing_by_themselves(tmp_path: Path):
    everywhere = [record(n, example(" of"), example(" of")) for n in range(2, 50)]
    place = directory(
        tmp_path,
        record(0, example(" love", "", " of all"), example(" love", "", " of")),
        record(1, example(" money"), example(" money")),
        *everywhere,
    )
    assert found(place, "love of money") == [0, 1]
    assert 2 in found(place, "of", 60)


def test_a_word_of_a_phrase_that_nothing_fires_on_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    place = directory(tmp_path, record(0, example(" blue"), example(" blue")))
    assert found(place, "blue ocean") == [0]
    assert "fires on 'ocean'" in caplog.text


def test_one_example_is_not_enough_and_nothing_is_picked_instead(tmp_path: Path):
    place = directory(
        tmp_path,
        record(7, example(" ocean"), example(" sea")),
        record(8, example(" ship", "ocean"), example(" ship", "ocean"), top_logits=["ocean"]),
    )
    with pytest.raises(ValueError, match=r"feature 7 \(ocean, sea\)"):
        search_features(place, "ocean")


def test_names_of_special_tokens_are_no_words(tmp_path: Path):
    place = directory(tmp_path, record(0, example("<|im_end|>"), example("<|im_end|>")))
    with pytest.raises(ValueError, match="no feature"):
        search_features(place, "end")


@pytest.mark.parametrize("query", ["", "  ", "?!"])
def test_an_empty_search_is_refused(query: str):
    with pytest.raises(ValueError, match="search needs a word"):
        search_features(DEFAULT_SAE, query)
    with pytest.raises(ValueError, match="k must be 1 or more: got 0"):
        search_features(DEFAULT_SAE, "dog", 0)


@pytest.mark.parametrize(
    "one, other",
    [
        ("dog", "Dogs"),
        ("city", "cities"),
        ("box", "boxes"),
        ("movie", "movies"),
        ("love", "loving"),
        ("love", "loved"),
        ("read", "reading"),
        ("run", "running"),
        ("runs", "running"),
        ("carry", "carried"),
        ("water", "watered"),
        ("compute", "computing"),
    ],
)
def test_forms_of_one_word(one: str, other: str):
    assert same_word(one, other)
    assert same_word(other, one)


@pytest.mark.parametrize(
    "one, other",
    [
        ("car", "care"),
        ("car", "caring"),
        ("car", "card"),
        ("war", "warm"),
        ("new", "news"),
        ("k", "king"),
        ("th", "thing"),
        ("gla", "glass"),
        ("universe", "university"),
        ("hop", "hoping"),
        ("computer", "compute"),
    ],
)
def test_other_words(one: str, other: str):
    assert not same_word(one, other)


def test_words_around_a_token():
    assert split_words("It's New", " York", "ers' day") == (["yorkers"], ["it", "s", "new", "day"])
    assert split_words("a", " ", "b") == ([], ["a", "b"])


# ---- reading ------------------------------------------------------------------------------------


def test_a_broken_directory_is_named_with_its_line(tmp_path: Path):
    good = record(0, example(" cat"))
    for broken, said in [
        ({k: v for k, v in good.items() if k != "frequency"}, "line 2: the feature has no 'frequ"),
        ({**good, "id": "0"}, "line 2 .*whole number from 0: got '0'"),
        ({**good, "max_activation": float("nan")}, "line 2 .*not a finite number"),
        ({**good, "top_logits": "cat"}, "line 2 .*not a list of texts"),
        ([1], "line 2 is no record"),
    ]:
        with pytest.raises(ValueError, match=said):
            list(read_features(directory(tmp_path, good, broken)))  # type: ignore[arg-type]


def test_a_file_that_is_no_whole_gzip_is_refused(tmp_path: Path):
    path = tmp_path / "features.jsonl.gz"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"features\.jsonl\.gz is not a whole gzip file"):
        list(read_features(tmp_path))
    directory(tmp_path, *[record(n, example(" cat")) for n in range(99)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="is not a whole gzip file"):
        list(read_features(path))


def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path):
    with gzip.open(tmp_path / "features.jsonl.gz", "wb") as file:
        file.write(b" " * (3 << 20))
    with pytest.raises(ValueError, match="is no feature directory: a line over 1048576 bytes"):
        list(read_features(tmp_path))


def test_an_sae_without_a_directory(tmp_path: Path):
    assert not has_directory(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no feature directory at .*features\.jsonl\.gz"):
        search_features(tmp_path, "dog")


# ---- shown --------------------------------------------------------------------------------------


def test_what_is_found_is_shown_with_examples_and_no_markup_is_taken_from_them(tmp_path: Path):
    place = directory(
        tmp_path, record(5, example(" cat", "[red]a\n", " sat"), example("cat")), record(6)
    )
    console = Console(width=80)
    with console.capture() as shown:
        console.print(describe(search_features(place, "cat")))
    assert "[red]a↵ «cat» sat" in shown.get()
    assert "fires on 'cat' (2 of 2 examples)" in shown.get()


@pytest.mark.slow
def test_search_on_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    assert main(["search", "dog", "-k", "2"]) == 0
    assert "1094" in capsys.readouterr().out
    assert main(["search", "ocean", "--sae", DEFAULT_SAE]) == 1
    assert re.match(r"error: no feature of .* fires on 'ocean'", capsys.readouterr().err)
