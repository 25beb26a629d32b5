"""The web demo without a browser: what visitors may ask for, what they get and take along."""

import asyncio
import json
import shutil
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
import torch
from answering import Pair, Wish
from conftest import slow_but
from desk import Desk
from library import ReadyVector, _fits, ready_vectors
from options import DemoOptions, number, read_options, whole
from page import LOOK, launch, page
from recipes import (
    Done,
    Made,
    Recipe,
    export,
    make,
    of_features,
    of_one_example,
    of_prompt,
    of_ready_vector,
    text_of,
)
from reporting import report_of
from serving import chat_ids, free_port, truth
from serving import text_of as text_of_ids
from studio import OUR_FAULT, Studio, in_words
from tiny import hooks_on, kept
from yaml import safe_load

from steer.methods.prompt_writing import PromptWriter
from steer.models import EditLayer, generate
from steer.models.facts import model_facts
from steer.models.load import ModelAndChat
from steer.saes import load_sae
from steer.vectors import read_metadata, save_vectors

ROOT = Path(__file__).resolve().parents[1]
TINY_SAE = ROOT / "tests" / "data" / "tiny_sae"
PAIR = ("How was it?", "Good, all of it.", "Bad, many times.")
HELLO = "Hello there"


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A folder with a vector of the tiny model, one of another model, and a broken one."""
    facts = model_facts(kept("llama"))
    vector = 2 * torch.randn(16, generator=torch.Generator().manual_seed(3))
    about = {"method": "caa", "layer": 1, "model": facts, "residual_norm": 5.0}
    folder = tmp_path / "ready"
    save_vectors(folder / "mood" / "caa_vector", {"layer_1": vector}, {"layer_1": about})
    other = {**about, "model": {**facts, "id": "other", "fingerprint": "0"}}
    save_vectors(folder / "other" / "caa_vector", {"layer_1": vector}, {"layer_1": other})
    (folder / "broken").mkdir()
    (folder / "broken" / "metadata.json").write_text("{", encoding="utf-8")
    return folder


@pytest.fixture
def options(tiny_folder: Path, ready: Path) -> DemoOptions:
    return DemoOptions(
        model_name_or_path=str(tiny_folder),
        device="cpu",
        dtype="float32",
        vector_dirs=[str(ready)],
        sae_path=str(TINY_SAE),
        max_text=200,
        max_new_tokens=40,
    )


@pytest.fixture
def studio(options: DemoOptions) -> Studio:
    return Studio.of(options)


async def answered(studio: Studio, recipe: Recipe, question: str = HELLO, **wish: Any) -> Pair:
    made = await studio.make(recipe)
    asked = Wish(question=question, **{"max_new_tokens": 12} | wish)
    return [pair async for pair in studio.answers.compare(asked, made.interventions)][-1]


def expected(question: str, limit: int, interventions: Sequence[Any]) -> str:
    """What transformers' own loop says under plain hooks."""
    added = {one.layer: one.edit.change().flatten() for one in interventions}
    return text_of_ids(truth(chat_ids(question), limit, added))


# ---- what it is started with, and what may be asked for -----------------------------------------


def test_it_listens_on_loopback_unless_told():
    assert (read_options([]).host, read_options([]).port) == ("127.0.0.1", 8088)
    told = read_options(["--host", "0.0.0.0", "--port", "9000", "--model", "x/y", "max_text=5"])
    assert (told.host, told.port, told.model_name_or_path) == ("0.0.0.0", 9000, "x/y")
    assert told.max_text == 5


def test_settings_may_stand_before_and_behind_options():
    told = read_options(["max_text=5", "--port", "9000", "rows=4"])
    assert (told.max_text, told.port, told.rows) == (5, 9000, 4)


def test_a_config_file_may_say_it_all_and_the_command_line_more(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("port: 9001\nmax_text: 7\n", encoding="utf-8")
    told = read_options(["--config", str(tmp_path / "mine.yaml"), "port=9002"])
    assert (told.port, told.max_text) == (9002, 7)


@pytest.mark.parametrize(
    "argument, said",
    [
        ("max_txt=5", "did you mean 'max_text'?"),
        ("port=0", "port must be 1 to 65535: got 0"),
        ("max_features=0", "max_features must be above 0: got 0"),
        ("max_strength=much", "max_strength must be a number: got 'much'"),
    ],
)
def test_a_wrong_option_is_named(argument: str, said: str):
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        read_options([argument])


def test_text_is_limited_and_may_not_be_empty(options: DemoOptions):
    assert options.written("Prompt", "  a b \n") == "a b"
    assert options.written("Prompt", "x" * 200) == "x" * 200
    with pytest.raises(ValueError, match="Prompt has 201 characters, and 200 are allowed"):
        options.written("Prompt", "x" * 201)
    for nothing in (None, "", " \n"):
        with pytest.raises(ValueError, match="Prompt is empty: write"):
            options.written("Prompt", nothing)


@pytest.mark.parametrize("given", [None, float("nan"), float("inf"), -1, 3])
def test_a_number_out_of_bounds_is_refused(given: float | None):
    with pytest.raises(ValueError, match="it must be a number from 0 to 2: got"):
        number("it", given, 0, 2)


def test_a_whole_number_is_whole():
    assert whole("it", 2.0, 0, 2) == 2
    with pytest.raises(ValueError, match=r"it must be a whole number: got 1\.5"):
        whole("it", 1.5, 0, 2)


# ---- answers ------------------------------------------------------------------------------------


def test_both_answers_are_those_of_plain_hooks(studio: Studio):
    recipe = of_one_example(*PAIR, layer=1, strength=3.0)
    made = make(recipe, studio.options, studio.model)
    pair = asyncio.run(answered(studio, recipe))
    assert pair.unsteered == text_of_ids(truth(chat_ids(HELLO), 12))
    assert pair.steered == expected(HELLO, 12, made.interventions) != pair.unsteered
    assert pair.layers is not None
    # The last token is never read.
    assert pair.layers["1"]["tokens"] == len(chat_ids(HELLO)) + pair.layers["1"]["passes"] - 1
    assert hooks_on(studio.model.model) == []
    assert studio.model.in_force == {}


def test_the_vector_of_one_example_is_the_difference_of_mean_activations(studio: Studio):
    question, good, bad = PAIR
    made = make(of_one_example(*PAIR, layer=1, strength=1.0), studio.options, studio.model)
    means = []
    for answer in (good, bad):
        start = len(chat_ids(question))
        ids = torch.tensor(
            [[*chat_ids(question), *kept("llama").tokenizer(f" {answer}").input_ids]]
        )
        with torch.no_grad():
            out = kept("llama").model(ids, output_hidden_states=True)
        means.append(out.hidden_states[2][0, start:].double().mean(0))
    vector = made.vectors["caa"]["layer_1"].double()
    torch.testing.assert_close(vector, means[0] - means[1], rtol=1e-4, atol=1e-5)


def test_visitors_who_steer_opposite_ways_at_once_stay_apart(studio: Studio):
    recipes = [of_one_example(*PAIR, layer=1, strength=s) for s in (4.0, -4.0, 0.0)]
    recipes.append(of_prompt("Be brief."))

    async def all_at_once() -> list[Pair]:
        return await asyncio.gather(*(answered(studio, recipe) for recipe in recipes))

    pairs = asyncio.run(all_at_once())
    plain = text_of_ids(truth(chat_ids(HELLO), 12))
    for recipe, pair in zip(recipes[:3], pairs[:3], strict=True):
        made = make(recipe, studio.options, studio.model)
        assert pair.steered == expected(HELLO, 12, made.interventions)
    assert pairs[3].steered == text_of_ids(truth(chat_ids(f"Be brief. {HELLO}"), 12))
    assert {pair.unsteered for pair in pairs} == {plain}
    assert len({pair.steered for pair in pairs}) == 4
    assert pairs[2].steered == plain
    assert not pairs[2].layers


def test_a_vector_is_made_while_others_are_answered_and_no_hook_is_on_the_model(studio: Studio):
    recipe = of_one_example(*PAIR, layer=1, strength=4.0)
    seen: list[Any] = []

    async def both() -> Pair:
        answering = asyncio.create_task(answered(studio, recipe, max_new_tokens=40))
        while not answering.done():
            hooks = await studio.answers.alone(lambda: hooks_on(studio.model.model))
            seen.append((len(studio.answers._decoder.running), hooks))
        return await answering

    pair = asyncio.run(both())
    assert any(running for running, _ in seen)
    assert all(hooks == [] for _, hooks in seen)
    made = make(recipe, studio.options, studio.model)
    assert pair.steered == expected(HELLO, 40, made.interventions)


def test_whoever_leaves_frees_the_place(studio: Studio):
    recipe = of_one_example(*PAIR, layer=1, strength=4.0)

    async def leave() -> tuple[int, Pair]:
        made = await studio.make(recipe)
        wish = Wish(question=HELLO, max_new_tokens=40)
        pieces = studio.answers.compare(wish, made.interventions)
        await anext(pieces)
        await pieces.aclose()
        stayed = await answered(studio, recipe)
        return len(studio.answers._decoder.running), stayed

    running, pair = asyncio.run(leave())
    assert running == 0
    assert pair.unsteered == text_of_ids(truth(chat_ids(HELLO), 12))


def test_sampled_answers_depend_on_the_seed_alone(studio: Studio):
    async def with_seeds(*seeds: int) -> list[Pair]:
        how = {"temperature": 1.5, "top_p": 0.9}
        recipe = of_prompt("Be brief.")
        return await asyncio.gather(*(answered(studio, recipe, seed=s, **how) for s in seeds))

    one, again, other = asyncio.run(with_seeds(7, 7, 8))
    assert one == again != other


def test_a_question_that_the_model_cannot_see_whole_is_refused(studio: Studio):
    with pytest.raises(ValueError, match=r"the model sees \d+ tokens: the text has \d+, and 40"):
        asyncio.run(answered(studio, of_prompt("b" * 200), "q" * 4000, max_new_tokens=40))


def test_a_generated_prompt_is_what_autoprompt_writes(studio: Studio):
    async def written() -> str:
        return [text async for text in studio.answers.write("the sea")][-1]

    text = PromptWriter(prompts_file=None).write(studio.model, "the sea")
    assert asyncio.run(written()) == text


# ---- ready vectors and features -----------------------------------------------------------------


def test_only_vectors_of_this_model_are_offered(studio: Studio, caplog: pytest.LogCaptureFixture):
    assert list(studio.ready) == ["mood: caa"]
    ready = studio.ready["mood: caa"]
    assert (ready.method, ready.layers, ready.folder.parent.name) == ("caa", [1], "mood")


@pytest.mark.parametrize(
    "told, strength",
    [
        (None, 2.0),
        ({"layers": [1], "multipliers": [-0.5], "strength": "absolute"}, -0.5),
        # A share of the residual's norm, 5, over the vector's, 2.
        ({"layers": [1], "multipliers": [0.4], "strength": "relative"}, 1.0),
    ],
)
def test_a_ready_vector_begins_at_the_dose_that_was_found_for_it(told: Any, strength: float):
    about = {"residual_norm": 5.0, "norm": 2.0} | ({"recommended": told} if told else {})
    assert ReadyVector("caa", Path("mood/caa_vector"), {1: about}).usual_strength(1) == strength


def test_vectors_of_one_name_are_told_apart_by_their_folders(studio: Studio, ready: Path):
    shutil.copytree(ready / "mood", ready / "runs" / "mood")
    found = ready_vectors(studio.model, [str(ready)])
    assert list(found) == ["mood: caa", "mood: caa (runs/mood/caa_vector)"]


def test_the_vectors_that_come_with_the_project_are_found():
    folder = ROOT / "vectors/examples/SmolLM2-135M-Instruct/sentiment/caa_vector"
    entries = (read_metadata(folder) or {})["vectors"]
    facts = entries["layer_15"]["model"]
    assert _fits("layer_15", entries["layer_15"], facts)
    assert not _fits("layer_15", entries["layer_15"], {**facts, "hidden_size": 16})
    assert not _fits("layer_14", entries["layer_15"], facts)


def test_features_that_fire_on_a_sentence_are_those_of_a_slow_loop(studio: Studio):
    assert not isinstance(studio.features, str)
    text = "The dog ran."
    found = studio.features.firing(text)
    sae = load_sae(TINY_SAE)
    ids = kept("llama").tokenizer(text).input_ids
    with torch.no_grad():
        hidden = (
            kept("llama").model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0]
        )
    best = {
        feature: max(float(sae.encode(hidden[t])[feature]) for t in range(len(ids)))
        for feature in range(sae.n_features)
    }
    wanted = sorted((f for f in best if best[f] > 0), key=lambda f: -best[f])
    assert [one.id for one in found] == wanted
    assert [one.activation for one in found] == pytest.approx([best[f] for f in wanted], rel=1e-4)


def test_a_feature_vector_is_the_sum_of_decoder_rows(studio: Studio):
    recipe = of_features([3, 5], [2.0, -1.5], 0, str(TINY_SAE))
    (edit,) = make(recipe, studio.options, studio.model).interventions
    rows = load_sae(TINY_SAE).W_dec
    assert isinstance(edit, EditLayer)
    assert edit.layer == 0
    torch.testing.assert_close(edit.edit.change(), 2 * rows[3] - 1.5 * rows[5])


def test_an_id_that_the_sae_has_not_is_refused(studio: Studio):
    assert not isinstance(studio.features, str)
    with pytest.raises(ValueError, match="feature ids are 0 to 7 in this sparse autoencoder"):
        studio.features.check(8)


def test_without_a_fitting_sae_the_page_says_so(options: DemoOptions):
    options.sae_path = None
    studio = Studio.of(options)
    assert isinstance(studio.features, str)
    assert "the model has 3 decoder blocks" in studio.features
    assert asyncio.run(drawn(studio)).blocks


# ---- what goes wrong is said in words -----------------------------------------------------------


async def drawn(studio: Studio) -> gr.Blocks:
    """The page; where no loop runs, gradio makes some and leaves them open."""
    return page(studio)


def said(error: Exception) -> str:
    with pytest.raises(gr.Error) as raised, in_words():
        raise error
    return raised.value.message


def test_a_mistake_is_said_in_words_without_places_or_markup():
    message = said(ValueError(f"{ROOT}/vectors/x is <b>broken</b>"))
    assert message == "vectors/x is &lt;b&gt;broken&lt;/b&gt;"


def test_a_fault_of_ours_is_logged_and_not_shown(caplog: pytest.LogCaptureFixture):
    assert said(KeyError("inner")) == OUR_FAULT.replace("'", "&#x27;")
    assert "inner" in caplog.text


def test_an_error_for_the_page_stays_as_it_is():
    assert said(gr.Error("as it is")) == "as it is"


@pytest.mark.parametrize("name", ["HOME", "PATH"])
def test_no_text_of_a_visitors_reads_the_environment(name: str):
    with pytest.raises(ValueError, match="leave it out of the text"):
        of_prompt(f"Say ${{oc.env:{name}}}.")


def test_it_says_what_to_install_where_gradio_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import app

    for module in ("studio", "page"):
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert app.main([]) == 1
    assert "error: the web demo needs gradio: pip install -e '.[demo]'" in capsys.readouterr().err


def test_a_mistake_is_one_line_and_q_and_v_are_known(capsys: pytest.CaptureFixture[str]):
    import app

    assert app.main(["-q", "rows=0", "-v"]) == 1
    assert capsys.readouterr().err.endswith("rows must be above 0: got 0\n")
    assert app.main(["--prot", "9000"]) == 1
    assert "unrecognized arguments: --prot 9000" in capsys.readouterr().err


# ---- the page -----------------------------------------------------------------------------------


def test_the_page_tells_nobody_and_fetches_nothing_from_elsewhere(studio: Studio):
    blocks = asyncio.run(drawn(studio))
    assert blocks.analytics_enabled is False
    assert "theme" in LOOK
    assert LOOK["theme"]._stylesheets == []
    assert "http" not in LOOK["theme"]._font_css


def test_gradio_keeps_no_list_of_what_visitors_asked(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gr.Blocks, "block_thread", lambda _: None)

    async def served() -> tuple[httpx.Response, dict[str, Any]]:
        blocks = await drawn(studio)
        # As gradio's reloader takes it, which does not launch.
        assert blocks.get_config_file()["run_history"] is False
        launch(blocks, "127.0.0.1", free_port())
        try:
            runs = httpx.get(f"{blocks.local_url}gradio_api/runs")
            return runs, httpx.get(f"{blocks.local_url}config").json()
        finally:
            blocks.close(verbose=False)

    runs, told = asyncio.run(served())
    assert runs.status_code == 404
    assert told["run_history"] is False
    assert told["footer_links"] == ["settings"]


def test_the_report_says_whether_the_answers_differ():
    done = Done(of_prompt("x"), Wish(question="q"), Made([], {}))
    layers = {"1": {"passes": 3, "tokens": 9, "tokens_changed": 9, "dose": 0.125}}
    assert "| 1 | 3 | 9 | 9 | 12.5% |" in report_of(Pair("a b c", "a b d", layers), done)
    assert "differ** from word 3 on" in report_of(Pair("a b c", "a b d", layers), done)
    assert "differ** from word 2 on" in report_of(Pair("a", "a b", layers), done)
    assert "the same" in report_of(Pair("a b", "a b", layers), done)
    assert "No activation was changed" in report_of(Pair("a", "b", None), done)


# ---- what a visitor takes along -----------------------------------------------------------------


def recipe_of(way: str, studio: Studio) -> Recipe:
    if way == "one example":
        return of_one_example(*PAIR, layer=1, strength=3.0)
    if way == "ready":
        (name,) = studio.ready
        folder = str(studio.ready[name].folder)
        return of_ready_vector("caa", name, folder, layer=1, strength=-2.0)
    if way == "prompt":
        return of_prompt("Be brief: no more than a word, or 'two'.", concept="brevity")
    return of_features([3, 5], [2.0, -1.5], 0, str(TINY_SAE))


def results(desk: Desk) -> list[dict[str, Any]]:
    path = desk.folder / "steering/answers/questions_results.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "way", slow_but(["one example"], ["one example", "ready", "prompt", "features"])
)
def test_the_scripts_give_the_pages_answer_from_what_is_taken_along(
    way: str, studio: Studio, desk: Desk
):
    recipe, question = recipe_of(way, studio), 'Tell me: "ça va"?'
    made = make(recipe, studio.options, studio.model)
    pair = asyncio.run(answered(studio, recipe, question))
    done = Done(recipe, Wish(question=question, max_new_tokens=12), made)
    yaml, archive = export(done, studio.options, desk.folder / "taken")
    assert yaml.read_text(encoding="utf-8") == text_of(done, studio.options)
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(desk.folder)
    for script in ("vectors_apply.py", "steering.py"):
        desk.bare(script, "--config", "steering/recipe.yaml", "device=cpu", "dtype=float32")
        assert desk.status == 0, desk.said
        (answer,) = results(desk)
        assert (answer["pred"], answer["orig_pred"]) == ([pair.steered], [pair.unsteered])


@pytest.mark.parametrize(
    "key, value",
    [
        ("enable_thinking", False),
        ("load_in_4bit", True),
        ("load_in_8bit", True),
        ("device_map", {"": "cpu"}),
        ("model_kwargs", {"attn_implementation": "eager"}),
        ("trust_remote_code", True),
        ("revision", "v1"),
        ("system_prompt", "Be brief."),
        ("use_chat_template", False),
    ],
)
def test_a_recipe_names_what_the_page_answers_with(options: DemoOptions, key: str, value: Any):
    done = Done(of_prompt("x"), Wish(question="q"), Made([], {}))
    before = safe_load(text_of(done, options))
    usual = {"model_name_or_path", "dtype", "use_chat_template", "device"}
    assert before.keys() & {f.name for f in fields(ModelAndChat)} == usual
    assert before["device"] == "auto"
    setattr(options, key, value)
    assert safe_load(text_of(done, options)) == before | {key: value}


def test_sampled_answers_are_the_scripts_too(studio: Studio, desk: Desk):
    recipe, how = recipe_of("one example", studio), {"temperature": 1.5, "top_p": 0.9, "seed": 7}
    made = make(recipe, studio.options, studio.model)
    pair = asyncio.run(answered(studio, recipe, **how))
    done = Done(recipe, Wish(question=HELLO, max_new_tokens=12, **how), made)
    _, archive = export(done, studio.options, desk.folder / "taken")
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(desk.folder)
    desk.bare("vectors_apply.py", "--config", "steering/recipe.yaml", "device=cpu")
    (answer,) = results(desk)
    assert answer["pred"] == [pair.steered]


def test_the_vector_is_a_folder_that_can_be_used_elsewhere(studio: Studio, tmp_path: Path):
    recipe = recipe_of("one example", studio)
    made = make(recipe, studio.options, studio.model)
    _, archive = export(Done(recipe, Wish(question=HELLO), made), studio.options, tmp_path)
    with zipfile.ZipFile(archive) as packed:
        assert set(packed.namelist()) == {
            "steering/recipe.yaml",
            "steering/pair.jsonl",
            "steering/questions.jsonl",
            "steering/vectors/pair/caa_vector/layer_1.pt",
            "steering/vectors/pair/caa_vector/metadata.json",
        }
        with packed.open("steering/vectors/pair/caa_vector/layer_1.pt") as file:
            vector = torch.load(file, weights_only=True)
    torch.testing.assert_close(vector, made.vectors["caa"]["layer_1"])


def test_prompts_steer_the_same_by_generate(studio: Studio):
    (answer,) = generate(
        studio.model, [f"Be brief. {HELLO}"], chat=studio.options.chat, max_new_tokens=12
    )
    assert asyncio.run(answered(studio, of_prompt("Be brief."))).steered == answer.text
    assert hooks_on(studio.model.model) == []
