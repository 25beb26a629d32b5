"""Every page of the documentation, followed line by line; the README has a test of its own."""

import re

import pytest
from pages import PAGES, ROOT, Reader, blocks, commands, name_of

FOLLOWED = [page for page in PAGES if blocks(page) and page != ROOT / "README.md"]


@pytest.mark.slow
@pytest.mark.parametrize("page", FOLLOWED, ids=name_of)
def test_a_page_does_what_it_says(reader: Reader, page):
    reader.follow(page)


def test_brackets_are_quoted_as_zsh_takes_bare_ones_for_a_pattern():
    said = [text for page in PAGES for kind, text in blocks(page) if kind == "bash"]
    assert "=[" in "".join(said)
    assert [
        line for text in said for line in commands(text) if re.search(r"\s[\w.]+=\[", line)
    ] == []


def test_the_torch_that_goes_in_first_is_the_one_that_is_locked():
    text = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    (wanted,) = re.findall(r"pip install (torch==\S+)", text)
    assert wanted in (ROOT / "requirements.lock").read_text(encoding="utf-8").split()


def test_a_command_that_cannot_be_run_here_is_no_command(reader: Reader):
    with pytest.raises(AssertionError, match="no command that can be run here: pip install steer"):
        reader.command("pip install steer")


@pytest.mark.slow
def test_a_command_that_fails_is_noticed(reader: Reader):
    with pytest.raises(AssertionError, match=r"multiplier.*did you mean"):
        reader.command("python vectors_apply.py multiplier=[1]")
