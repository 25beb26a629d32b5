"""The tutorials: what they keep is clean, and run from their own folder they show what they say."""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from steer.settings import Run

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tutorial-notebooks"
PREFIX = "EasyEdit2_Example_"
NAMES = sorted(path.stem.removeprefix(PREFIX) for path in FOLDER.glob("*.ipynb"))
EMBEDDED = "SmolLM2-135M-Instruct"
MACHINE = re.compile(
    rf"({re.escape(str(ROOT))}/|/home/|/root/|/tmp|/Users/|/var/|file:|[A-Z]:\\|\.venv|site-packages)"
)

# What each says, in its own names, asked after its last cell.
CLAIMS = {
    "CAA_sentiment": """
        place = sweep.index(strength)
        assert effects["sentiment"][place].low > 0
        one, many = (effects[name][place] for name in ("one pair", "sentiment"))
        assert one.high - one.low > many.high - many.low
        assert effects["sentiment"][0].high < 0
        assert effects["sentiment"][sweep.index(0)].mean == 0
        for records in answers.values():
            assert all(r["pred"] != r["orig_pred"] for r in records)
    """,
    "CAA_translate": """
        assert effect.low > 0
        assert share["low"] > 0
        assert not any(map(is_foreign, said[0.0]))
    """,
    "CAA_r1_control": """
        assert effect.mean > 0
        assert changes[strength]["high"] < 0
        assert changes[0.0]["mean"] == 0
    """,
    "sae_feature": """
        assert min(found[-1].low for found in effects.values()) > 0
        assert effects["sae_feature"][-1].mean > effects["sae_feature"][0].mean
        assert found[0].low > 0
        assert kept < 100
    """,
    "lm_steer": """
        assert effects[-1].low > 0
        assert effects[0].high < 0
        assert effects[len(sweep) // 2].mean == 0
    """,
    "directions": """
        assert min(effect.low for effect in effects.values()) > 0
        assert without.high < 0
    """,
    "prompts": """
        assert effects["vector_prompt"].low > 0
        assert swept[0].high < 0
    """,
    "merging": """
        for name in ("merged", "side by side"):
            assert min(one.low for one in effects[name].values()) > 0
    """,
    "own_data": """
        assert effect.low > 0
        assert beaten == 20
        assert again.model.interventions()
    """,
    "own_method": """
        assert effects[0.1].low > 0
        assert effects[1.0].mean > effects[0.005].mean
    """,
}
# The configs that a notebook makes in its second code cell.
CONFIGS = {
    "sae_feature": ["cfg | adding", "cfg | clamping", "cfg | of_atoms | {'multipliers': [1.0]}"],
    "merging": ["cfg | merging", "cfg | {'methods': ['caa', 'caa']}"],
    "prompts": ["cfg | {'methods': [name]} | way for name, way in ways.items()"],
    "own_method": [],
}


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{PREFIX}{name}.ipynb", as_version=4)


def code_cells(name: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def outputs(name: str) -> list[nbformat.NotebookNode]:
    return [output for cell in code_cells(name) for output in cell.outputs]


def effects(name: str, cells: list[nbformat.NotebookNode]) -> list[float]:
    """The numbers with a sign and two decimals that the cells of a notebook have put out."""
    count = len(code_cells(name))
    said = [text for cell in cells[:count] for one in cell.outputs for text in texts(one)]
    return [float(number) for text in said for number in re.findall(r"[+-]\d+\.\d\d\b", text)]


def texts(output: nbformat.NotebookNode) -> list[str]:
    """What an output says, pictures aside."""
    if output.output_type == "stream":
        return [output.text]
    return [text for kind, text in output.data.items() if kind.startswith("text/")]


# Decoder blocks of the models that a notebook can be switched to.
DEPTHS = {
    EMBEDDED: 30,
    "Qwen/Qwen2-7B-Instruct": 28,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 28,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 28,
    "google/gemma-2-9b-it": 42,
}


def with_model(name: str, model: str) -> dict[str, Any]:
    """The names that the first two cells give, with `MODEL` changed and nothing else."""
    switch, settings = (cell.source for cell in code_cells(name)[:2])
    names: dict[str, Any] = {}
    exec(switch.replace(EMBEDDED, model, 1), names)
    exec(settings, names)
    return names


def layers_of(value: Any) -> set[int]:
    """The layers in a config, at any depth."""
    if not isinstance(value, dict):
        return set()
    own = [value[key] for key in ("layer", "layers") if key in value]
    return {n for one in own for n in (one if isinstance(one, list) else [one])}


@pytest.mark.parametrize("name", CLAIMS)
def test_one_variable_near_the_top_chooses_the_model(name: str):
    (assignment,) = ast.parse(code_cells(name)[0].source).body
    assert isinstance(assignment, ast.Assign)
    assert ast.unparse(assignment) == f"MODEL = '{EMBEDDED}'"
    choices = list(with_model(name, EMBEDDED)["SETTINGS"])
    assert choices[0] == EMBEDDED
    assert len(choices) > 1
    for model in choices:
        names = with_model(name, model)
        for expression in CONFIGS.get(name, ["cfg"]):
            for config in eval(f"[{expression}]", names):
                assert config["model_name_or_path"] == model
                assert max(layers_of(config), default=0) < DEPTHS[model]
                assert any(Run.of(config, phase).methods for phase in ("generate", "apply"))


@pytest.mark.parametrize("name", CLAIMS)
def test_outputs_are_kept_and_clean(name: str):
    cells = code_cells(name)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    found = outputs(name)
    kinds = {output.output_type for output in found}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert all(output.get("name", "stdout") == "stdout" for output in found)
    said = "\n".join(text for output in found for text in texts(output))
    assert re.search(r"[+-]\d+\.\d\d nats \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]", said)
    assert any("image/png" in output.get("data", {}) for output in found)
    assert not MACHINE.findall(said)


def test_every_notebook_is_listed_and_promised():
    assert sorted(CLAIMS) == NAMES
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(rf"\]\({PREFIX}(\w+)\.ipynb\)", listed)) == set(NAMES)


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.parametrize("name", CLAIMS)
def test_it_runs_and_shows_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    desk = tmp_path / FOLDER.name
    desk.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    notebook = read(name)
    notebook.cells.append(nbformat.v4.new_code_cell(inspect.cleandoc(CLAIMS[name])))
    place = {"metadata": {"path": str(desk)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    assert list(desk.iterdir()) == []
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    kept = effects(name, code_cells(name))
    assert kept
    assert effects(name, ran) == pytest.approx(kept, abs=0.1)
