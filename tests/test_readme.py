"""The README, followed line by line in a folder of a reader's own."""

import re

import pytest
from pages import ROOT, Reader

import tasks

README = ROOT / "README.md"


@pytest.mark.slow
def test_the_readme_does_what_it_says(reader: Reader):
    reader.follow(README, in_full=True)
    results = "generation/SmolLM2-135M-Instruct/sentiment/caa/sentiment_results.json"
    assert (reader.folder / results).is_file()
    assert (reader.folder / "vectors/imported/caa_vector/layer_15.pt").is_file()
    for words in ("unsteered", "steered the other way", "Steering report", "random vectors"):
        assert words in reader.printed["python steering.py"]


def test_make_targets_are_tasks():
    targets = re.findall(r"`make ([\w-]+)`", README.read_text(encoding="utf-8"))
    assert targets
    assert set(targets) <= set(tasks.TASKS)
