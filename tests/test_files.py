"""Files that are whole or not there, and the journal of a long run."""

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT

from steer.files import (
    check_writable,
    file_sha256,
    find,
    fingerprint,
    project_root,
    read_json,
    write_json,
    writing,
)
from steer.journal import Journal
from steer.results import answers_kept, run_path, save_results

RUN = {"seed": 1, "settings": {"layers": [1], "report": "off"}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ---- writing -----------------------------------------------------------------------------------


def test_what_was_written_is_there_and_nothing_else(tmp_path: Path):
    write_json(tmp_path / "new" / "a.json", {"text": "ä\u2028"})
    assert read_json(tmp_path / "new" / "a.json") == {"text": "ä\u2028"}
    assert "ä" in (tmp_path / "new" / "a.json").read_text(encoding="utf-8")
    assert names(tmp_path / "new") == ["a.json"]


def test_bytes_are_written_as_they_are(tmp_path: Path):
    with writing(tmp_path / "a.pt", "wb") as file:
        file.write(b"\x00\r\n")
    assert (tmp_path / "a.pt").read_bytes() == b"\x00\r\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_others_may_read_what_was_written(tmp_path: Path):
    write_json(tmp_path / "a.json", 1)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, "old")
    with writing(path) as file:
        file.write('"new"')
        file.flush()
        assert read_json(path) == "old"
    assert read_json(path) == "new"


def broken_off(path: Path, error: type[BaseException]) -> None:
    with writing(path) as file:
        file.write("half")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_write_that_is_broken_off_leaves_the_old_file_alone(
    tmp_path: Path, error: type[BaseException]
):
    write_json(tmp_path / "a.json", "old")
    with pytest.raises(error):
        broken_off(tmp_path / "a.json", error)
    assert names(tmp_path) == ["a.json"]
    assert read_json(tmp_path / "a.json") == "old"


def test_a_value_that_json_does_not_know_is_written_as_text(tmp_path: Path):
    write_json(tmp_path / "a.json", {"path": Path("x")})
    assert read_json(tmp_path / "a.json") == {"path": "x"}


@pytest.mark.parametrize("place", ["os.fsync", "tempfile.mkstemp"])
def test_a_full_disk_is_named_and_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
):
    path = tmp_path / "a.json"
    write_json(path, "old")
    monkeypatch.setattr(place, no_space)
    with pytest.raises(OSError, match=r"cannot write .*a.json: No space left on device") as caught:
        write_json(path, "new")
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["a.json"]
    assert read_json(path) == "old"


def test_a_file_in_a_folders_place_is_named(tmp_path: Path):
    (tmp_path / "out").touch()
    for folder in ("out", "out/deep/down"):
        with pytest.raises(NotADirectoryError, match=r"cannot write to .*: .*out is a file"):
            write_json(tmp_path / folder / "a.json", 1)


def test_a_folder_is_checked_without_being_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_writable(tmp_path / "a" / "b")
    assert names(tmp_path) == []
    monkeypatch.chdir(tmp_path)
    check_writable("a/b")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="cannot write to a/b: no permission in "):
        check_writable("a/b")


# ---- reading -----------------------------------------------------------------------------------


def test_a_path_is_looked_for_here_and_then_in_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    shipped = "hparams/Steer/config.yaml"
    assert find(shipped) == project_root() / shipped
    own = tmp_path / shipped
    own.parent.mkdir(parents=True)
    own.touch()
    assert find(shipped).resolve() == own.resolve()
    assert find(own) == own


def test_a_path_that_is_nowhere_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no thing at gone ") as caught:
        find("gone", "thing")
    assert str(tmp_path / "gone") in str(caught.value)
    assert str(project_root() / "gone") in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"no file at .*gone \(looked at [^ ]*gone\)"):
        find(tmp_path / "gone")


def test_json_of_windows_programs_is_read(tmp_path: Path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_a_fingerprint_does_not_depend_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint("\ud83d") != fingerprint("?")


def test_a_files_sha256_is_the_known_one(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "a") == known


# ---- the journal -------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "mine_partial.jsonl"


def kept(path: Path, run: dict[str, Any] | None = None) -> dict[str, Any]:
    with Journal(path, RUN if run is None else run, resume=True) as journal:
        return dict(journal.items)


def begun(path: Path, *items: dict[str, Any]) -> None:
    with Journal(path, RUN, resume=False) as journal:
        for item in items:
            journal.add(item)


def test_finished_items_are_there_for_a_run_that_goes_on(path: Path):
    begun(path, {"0": [1], "1": [2]}, {"2": ["ä\u2028"]})
    assert kept(path) == {"0": [1], "1": [2], "2": ["ä\u2028"]}


def test_an_item_is_on_disk_before_the_next_one_is_made(path: Path):
    with Journal(path, RUN, resume=False) as journal:
        journal.add({"0": [1]})
        assert json.loads(path.read_text().splitlines()[-1]) == {"0": [1]}


def test_a_run_that_goes_on_adds_to_what_is_there(path: Path):
    begun(path, {"0": 1})
    with Journal(path, RUN, resume=True) as journal:
        journal.add({"1": 2})
    assert kept(path) == {"0": 1, "1": 2}


@pytest.mark.parametrize("torn", ['{"1": [', "{", '{"1": 2}'])
def test_a_line_without_its_end_is_dropped(path: Path, torn: str):
    begun(path, {"0": 1})
    with path.open("a") as file:
        file.write(torn)
    with Journal(path, RUN, resume=True) as journal:
        assert journal.items == {"0": 1}
        journal.add({"2": 3})
    assert kept(path) == {"0": 1, "2": 3}


@pytest.mark.parametrize("content", ["", '{"finger'])
def test_a_first_line_that_was_not_finished_is_written_anew(path: Path, content: str):
    path.parent.mkdir()
    path.write_text(content)
    with Journal(path, RUN, resume=True) as journal:
        journal.add({"0": 1})
    assert kept(path) == {"0": 1}


def test_nothing_to_go_on_from_is_no_error(path: Path):
    assert kept(path) == {}


def test_without_resume_a_run_begins_anew_and_says_so(path: Path, caplog: pytest.LogCaptureFixture):
    begun(path, {"0": 1})
    begun(path)
    assert kept(path) == {}
    assert "mine_partial.jsonl of a killed run is overwritten; resume: true would" in caplog.text


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda run: run.update(seed=2), r"\(seed: 1 then, 2 now\)"),
        (
            lambda run: run["settings"].update(layers=[1, 2]),
            r"\(settings.layers: \[1\] then, \[1, 2\] now\)",
        ),
        (lambda run: run.update(more=True), r"\(more: None then, True now\)"),
    ],
)
def test_a_changed_setting_is_named(path: Path, change: Callable[[Any], None], said: str):
    begun(path, {"0": 1})
    other = json.loads(json.dumps(RUN))
    change(other)
    with pytest.raises(ValueError, match=f"cannot resume: .*other settings {said}"):
        kept(path, other)
    assert kept(path) == {"0": 1}


@pytest.mark.parametrize("line", ["not json", "[1]", "\x00\x00"])
def test_a_broken_line_in_the_middle_is_named(path: Path, line: str):
    begun(path, {"0": 1})
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"mine_partial.jsonl line 3 is broken .*resume: false"):
        kept(path)


def test_a_first_line_of_another_kind_is_refused(path: Path):
    path.parent.mkdir()
    path.write_text("{}\n")
    with pytest.raises(ValueError, match=r"cannot resume: .* of a run with other settings"):
        kept(path)


class FillingUp(FileIO):
    """A file on a disk that has room for the first half of what is written."""

    def write(self, data: bytes) -> int:
        if len(data) < 5:
            no_space()
        return super().write(data[: len(data) // 2])


def test_a_disk_that_fills_up_in_the_middle_of_a_line_loses_that_line_only(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    begun(path, {"0": 1})
    before = path.read_bytes()
    with Journal(path, RUN, resume=True) as journal, monkeypatch.context() as patched:
        patched.setattr("steer.journal.FileIO", FillingUp)
        with pytest.raises(OSError, match=r"partial.jsonl: No space left on device; what was fin"):
            journal.add({"1": 2})
        assert journal.items == {"0": 1}
    assert len(path.read_bytes()) > len(before)
    assert kept(path) == {"0": 1}
    assert path.read_bytes() == before


def test_a_journal_that_is_done_leaves_nothing(path: Path):
    with Journal(path, RUN, resume=False) as journal:
        journal.add({"0": 1})
    journal.done()
    assert names(path.parent) == []


HELD = r"another run is at work in .*new \(on mine_partial.jsonl\), .*generation_output_dir"


def test_another_run_is_refused_while_one_writes(path: Path):
    with Journal(path, RUN, resume=False) as journal:
        journal.add({"0": 1})
        for resume in (False, True):
            with pytest.raises(OSError, match=HELD):
                Journal(path, RUN, resume=resume)
        journal.add({"1": 2})
    assert kept(path) == {"0": 1, "1": 2}
    with pytest.raises(ValueError, match="other settings"):
        kept(path, {})
    assert names(path.parent) == ["mine_partial.jsonl"]


HOLDS = """
import sys
from pathlib import Path
from steer.journal import Journal
journal = Journal(Path(sys.argv[1]), {}, resume=False)
journal.add({"0": 1})
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_is_refused_beside_another_process_until_that_is_killed(path: Path):
    code = [sys.executable, "-c", HOLDS, str(path)]
    with subprocess.Popen(
        code, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "held\n"
        with pytest.raises(OSError, match=HELD):
            begun(path)
        run.kill()
    assert kept(path, {}) == {"0": 1}
    assert names(path.parent) == ["mine_partial.jsonl"]


def test_results_of_another_run_are_not_replaced_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "mine_results.json"

    def said(run: dict[str, Any], *, resume: bool = False) -> str:
        caplog.clear()
        with answers_kept(path, run, resume=resume) as journal:
            journal.done()
        return caplog.text

    other = RUN | {"seed": 2}
    assert said(RUN) == ""
    save_results(path, [], RUN, {})
    assert said(RUN) == said(other, resume=True) == ""
    assert "mine_results.json of another run (seed: 1 then, 2 now) will be replaced" in said(other)
    run_path(path).write_text("{")
    assert "mine_run.json is not valid JSON" in said(RUN)
