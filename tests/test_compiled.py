"""Compiled steps: what hooks say, in graphs that follow every change and are made once."""

import gc
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from tiny import SPECIAL, byte_tokenizer, hooks_on, ids_of, kept, steered, tiny_config
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from transformers import AutoConfig, AutoModelForCausalLM

from steer.applier import BaseVectorApplier
from steer.engines import compiled, of_run
from steer.engines.compiled import CompiledEngine, bucket, layout_for
from steer.engines.recipes import Recipe
from steer.models import (
    FROM_PROMPT_END,
    GENERATED,
    PROMPT,
    Add,
    AddKeepingNorm,
    EditHeadInput,
    EditLayer,
    EditLogits,
    LowRank,
    Positions,
    ProjectOut,
    SteeredModel,
    TokenMask,
    generate_batches,
)
from steer.models.banks import summed
from steer.models.compiled import CompiledModel
from steer.models.tally import Tally
from steer.saes import SAE
from steer.saes.clamping import Clamp

PROMPTS = ids_of([4, 9, 2, 7, 30, 1, 5, 12])
# Tokens that some unsteered answers of the tiny Llama have early: rows come and go.
GREEDY = {"do_sample": False, "max_new_tokens": 10, "eos_token_id": [102, 251, 218]}
_DICE = torch.Generator().manual_seed(1)
V = 3 * torch.randn(10, 16, generator=_DICE)
PLAIN: Recipe = []
VECTORS: dict[str, Recipe] = {
    "none": PLAIN,
    "add": [EditLayer(1, Add(V[0]))],
    "add the other way": [EditLayer(1, Add(V[0], -2.0))],
    "all layers": [EditLayer(n, Add(V[n])) for n in range(3)],
    "keep norm": [EditLayer(2, AddKeepingNorm(V[3], 2.0), FROM_PROMPT_END)],
    "project out": [EditLayer(0, ProjectOut(V[4]))],
    "two of a layer": [EditLayer(1, Add(V[5]), PROMPT), EditLayer(1, ProjectOut(V[5]))],
    "some tokens": [EditLayer(1, Add(V[6]), GENERATED), EditLayer(2, Add(V[7]), Positions(-2, 3))],
}


def clamp() -> Clamp:
    enc, dec = torch.randn(16, 20, generator=_DICE), torch.randn(20, 16, generator=_DICE)
    return Clamp(SAE(enc, torch.zeros(20), dec, torch.zeros(16)), [1, 4], torch.tensor([9.0, -9.0]))


OTHERS: dict[str, Recipe] = {
    "none": PLAIN,
    "clamp": [EditLayer(2, clamp())],
    "head": [EditHeadInput(LowRank(V[:3].T, V[3:6].T, torch.full((3,), 0.5)))],
    "logits": [EditLogits(Add(torch.linspace(-60, 60, 258)), GENERATED)],
}


def engine_of(
    model: SteeredModel, recipes: Sequence[Recipe], backend: Any = "eager", size: int = 3
) -> CompiledEngine:
    layout = layout_for(recipes, model.depth)
    return CompiledEngine(model, layout, batch_size=size, backend=backend)


@pytest.fixture(scope="module")
def llama() -> SteeredModel:
    return steered(tiny_config("llama"))


@pytest.fixture(scope="module")
def shared(llama: SteeredModel) -> CompiledEngine:
    """An engine that has answered once: whatever it compiles from now on, it compiles again."""
    made = engine_of(llama, list(VECTORS.values()), CompileCounter())
    answers(made, [PLAIN])
    return made


@pytest.fixture
def engine(shared: CompiledEngine) -> Iterator[CompiledEngine]:
    yield shared
    counter: Any = shared.compiled.backend
    assert counter.frame_count == 1


def answers(
    engine: CompiledEngine, recipes: Sequence[Recipe], tally: Tally | None = None, **params: Any
) -> list[list[int]]:
    """The new tokens of each prompt; recipes are given in turn."""
    given = [recipes[row % len(recipes)] for row in range(len(PROMPTS))]
    seeds = [(7, row) for row in range(len(PROMPTS))]
    found: dict[int, list[int]] = {}
    for rows, some in engine.batches(PROMPTS, GREEDY | params, given, seeds, tally):
        found |= {row: one.new_ids for row, one in zip(rows, some, strict=True)}
    return [found[row] for row in range(len(PROMPTS))]


def truths(
    model: SteeredModel, recipes: Sequence[Recipe], tally: Tally | None = None, **params: Any
) -> list[list[int]]:
    """The same by transformers and hooks, a prompt at a time."""
    found = []
    for row, prompt in enumerate(PROMPTS):
        recipe = recipes[row % len(recipes)]
        options: Any = {"interventions": recipe, "seeds": [(7, row)], "tally": tally}
        ((_, (answer,)),) = generate_batches(model, [prompt], GREEDY | params, **options)
        found.append(answer.new_ids)
    return found


# ---- it says what hooks say ----


@pytest.mark.slow
def test_rows_of_mixed_recipes_say_what_each_says_alone(engine: CompiledEngine):
    plain, mixed = truths(engine.model, [PLAIN]), truths(engine.model, list(VECTORS.values()))
    assert answers(engine, list(VECTORS.values())) == mixed
    assert len({len(answer) for answer in mixed}) > 1
    assert sum(a != b for a, b in zip(mixed, plain, strict=True)) >= 6
    assert mixed[0] == plain[0]


KINDS = ["gemma3_text"]
SLOW = ["gpt2", "qwen2", "qwen3", "gemma2", "gpt_neox", "mistral", "phi", "opt", "mixtral"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]
)
def test_every_architecture(kind: str):
    model, recipes = kept(kind), list(VECTORS.values())
    assert answers(engine_of(model, recipes), recipes) == truths(model, recipes)


# torch's own code, when it compiles.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("recipes", [VECTORS, OTHERS], ids=["vectors", "others"])
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_inductor(kind: str, recipes: dict[str, Recipe]):
    model, chosen = kept(kind), list(recipes.values())
    engine = engine_of(model, chosen, "inductor")
    assert answers(engine, chosen) == truths(model, chosen)
    assert answers(engine, chosen[::-1]) == truths(model, chosen[::-1])


@pytest.mark.filterwarnings("default")
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_replays_graphs():
    model, recipes = steered(tiny_config("llama")), list(VECTORS.values())
    model.model.cuda()
    engine = engine_of(model, recipes, "inductor")
    assert answers(engine, recipes) == truths(model, recipes)
    assert answers(engine, recipes[::-1]) == truths(model, recipes[::-1])
    assert all(frame._graph is not None for frame in engine.frames.values())


@pytest.mark.slow
def test_a_row_that_overflows_leaves_nothing_to_the_next_in_its_place(llama: SteeredModel):
    # In float32 that is infinity, and no number in keys and values of the blocks behind it.
    recipes: list[Recipe] = [PLAIN, [EditLayer(0, Add(torch.full((16,), 3e38), 10.0))]]
    engine, plain = engine_of(llama, recipes), truths(llama, [PLAIN])
    for given in (recipes, recipes[::-1], [PLAIN]):  # frames are kept between calls
        found = answers(engine, given)
        rows = [row for row in range(len(PROMPTS)) if given[row % len(given)] is PLAIN]
        assert [found[row] for row in rows] == [plain[row] for row in rows]


@pytest.mark.slow
def test_edits_that_are_called_from_the_graph(llama: SteeredModel):
    recipes = list(OTHERS.values())
    found = answers(engine_of(llama, recipes), recipes)
    assert found == truths(llama, recipes)
    plain = truths(llama, [PLAIN])
    assert all(found[row] != plain[row] for row in (1, 2, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "params",
    [
        {"do_sample": True, "top_k": 40},
        {"repetition_penalty": 1.8},
        {"min_new_tokens": 6},
        {"stop_strings": ["H", ")"]},
    ],
    ids=str,
)
def test_tokens_are_chosen_as_ever(engine: CompiledEngine, params: dict[str, Any]):
    recipes = [PLAIN, VECTORS["add"]]
    found = answers(engine, recipes, **params)
    assert found == truths(engine.model, recipes, **params) != truths(engine.model, recipes)


# ---- it follows every change, in the same graph ----


@pytest.mark.slow
def test_vectors_strengths_layers_positions_and_off_change_without_compiling(
    engine: CompiledEngine,
):
    frames = list(engine.frames.values())
    for where in (Positions(), FROM_PROMPT_END, GENERATED, PROMPT):
        for layer, vector, strength in ((0, 8, 1.0), (2, 8, 1.0), (2, 8, -3.0), (1, 9, 2.0)):
            recipe = [EditLayer(layer, Add(V[vector], strength), where)]
            assert answers(engine, [recipe]) == truths(engine.model, [recipe])
    assert answers(engine, [PLAIN]) == truths(engine.model, [PLAIN])
    assert list(engine.frames.values()) == frames


@pytest.mark.slow
def test_a_vector_of_zeros_leaves_every_bit(engine: CompiledEngine):
    (frame,) = engine.frames.values()
    model = engine.compiled

    def step(slot: int) -> Tensor:
        frame.lengths[:] = torch.tensor([3, 1, 0])
        frame.tokens[:] = torch.tensor([5, 6, 7])
        model.place(torch.full((3, 1), slot).numpy())
        frame.step()
        return frame.logits.clone()

    zeros: Recipe = [EditLayer(n, Add(torch.zeros(16))) for n in range(3)]
    model.book.add("zeros", zeros)
    model.book.add("vector", [EditLayer(1, Add(V[0]))])
    nothing, vector = step(0), step(model.book.slots_of("vector")[0])
    assert torch.equal(nothing, step(model.book.slots_of("zeros")[0]))
    assert not torch.equal(nothing, vector)
    frame.lengths.zero_()
    for name in ("zeros", "vector"):
        model.book.remove(name)


def test_lengths_that_are_nearly_alike_share_a_graph():
    assert [bucket(n) for n in (64, 65, 200, 256, 257, 300, 600, 1025)] == [
        *(64, 128, 256, 256, 384, 384, 768, 1536)
    ]


@pytest.mark.slow
def test_recipes_wait_where_all_slots_are_taken(
    llama: SteeredModel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compiled, "SLOTS", 3)
    recipes: list[Recipe] = [[EditLayer(1, Add(vector))] for vector in V[: len(PROMPTS)]]
    engine, tally = engine_of(llama, recipes), Tally()
    assert answers(engine, recipes, tally) == truths(llama, recipes)
    read = [len(p) + len(a) - 1 for p, a in zip(PROMPTS, truths(llama, recipes), strict=True)]
    assert tally[1].summary()["tokens"] == sum(read)


# ---- it is never silent ----


@pytest.mark.slow
def test_graphs_count_what_hooks_count(engine: CompiledEngine):
    recipes = list(VECTORS.values())
    found: Tally = {}
    wanted: Tally = {}
    assert answers(engine, recipes, found) == truths(engine.model, recipes, wanted)
    assert found.keys() == wanted.keys()
    for place in wanted:
        mine, theirs = found[place].summary(), wanted[place].summary()
        assert mine["tokens"] == theirs["tokens"] > 0
        assert mine["tokens_changed"] == theirs["tokens_changed"]
        if not theirs["sinks"]:
            assert mine["dose"] == pytest.approx(theirs["dose"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("compiled_before", [False, True])
def test_a_bank_that_is_gone_is_noticed(llama: SteeredModel, compiled_before: bool):
    engine = engine_of(llama, [VECTORS["add"]])
    if compiled_before:
        answers(engine, [VECTORS["add"]])
    engine.compiled.twin.blocks[1]._forward_hooks.clear()
    noticed = r"^1 was to steer \d+ tokens, its graph steered \d+: |^Recompilation triggered"
    with pytest.raises(RuntimeError, match=noticed):
        answers(engine, [VECTORS["add"]])


@pytest.mark.slow
def test_a_step_that_leaves_a_bank_out_is_noticed(llama: SteeredModel):
    engine = engine_of(llama, [VECTORS["add"]])
    hooks = engine.compiled.twin.blocks[1]._forward_hooks
    there = dict(hooks)
    hooks.clear()
    engine._frame(len(PROMPTS), 40)
    hooks.update(there)
    with pytest.raises(RuntimeError, match=r"^1 was to steer \d+ tokens, its graph steered"):
        answers(engine, [VECTORS["add"]])


@pytest.mark.slow
def test_a_run_that_stops_early_leaves_nothing_behind(engine: CompiledEngine):
    given: Any = ([VECTORS["add"]] * len(PROMPTS), [(0,)] * len(PROMPTS))
    for _ in engine.batches(PROMPTS, GREEDY, *given):
        break
    tally: Tally = {}
    recipes = [VECTORS["add"], PLAIN]
    assert answers(engine, recipes, tally) == truths(engine.model, recipes)
    assert not any(engine.admission.room.requests.values())
    assert hooks_on(engine.model.model) == []


@pytest.mark.slow
def test_prompts_are_read_in_smaller_passes_when_memory_runs_out(
    llama: SteeredModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    whole = CompiledModel.logits

    def small(self: CompiledModel, ids: Tensor, *args: Any) -> Tensor:
        logits = whole(self, ids, *args)
        if ids.shape[1] > 1 and len(ids) > 2:
            raise torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory.")
        return logits

    monkeypatch.setattr(CompiledModel, "logits", small)
    recipes, tally = [VECTORS["add"]], Tally()
    layout = layout_for(recipes, llama.depth)
    engine = CompiledEngine(llama, layout, backend="eager")
    engine.size = 4
    assert answers(engine, recipes, tally) == truths(llama, recipes)
    assert "out of memory with 4 prompts: going on with 2" in caplog.messages


# ---- what is kept ----


@pytest.mark.slow
def test_an_engine_that_is_gone_keeps_no_edit(llama: SteeredModel):
    recipes = [OTHERS["clamp"]]
    engine = engine_of(llama, recipes)
    answers(engine, recipes)
    bank: Any = engine.compiled.book.banks[2]
    (edit,) = [weakref.ref(one) for one in bank.stages[0].edits if one is not None]
    assert edit() is not None
    del engine, bank
    gc.collect()
    assert edit() is None


def test_additions_of_one_place_are_summed_in_float32_in_any_order():
    low, high = V[0].to(torch.bfloat16), V[1]
    for vectors in ((low, high), (high, low)):
        (one,) = summed([Add(vector, 0.5) for vector in vectors])
        assert isinstance(one, Add)
        assert one.vector.dtype == torch.float32
        assert torch.equal(one.vector, 0.5 * low.float() + 0.5 * high)


# ---- what it cannot do ----


def test_what_cannot_be_followed_is_refused(engine: CompiledEngine):
    with pytest.raises(ValueError, match=r"^num_beams: not possible with compile: true; "):
        answers(engine, [PLAIN], num_beams=2)
    mask = EditLayer(1, Add(V[0]), TokenMask(torch.ones(1, 4, dtype=torch.bool)))
    with pytest.raises(ValueError, match=r"^a compiled graph steers ranges of positions"):
        answers(engine, [[mask]])


def refused(kind: str, **more: Any) -> SteeredModel:
    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 258} | more
    with torch.device("meta"):
        config = AutoConfig.for_model(kind, **(small | SPECIAL))
        model = AutoModelForCausalLM.from_config(config)
    return SteeredModel(model, byte_tokenizer())


def test_models_that_cannot_be_compiled_are_refused():
    with pytest.raises(ValueError, match=r"^MambaForCausalLM cannot be compiled: .*another state"):
        CompiledEngine(refused("mamba"), {})
    with pytest.raises(ValueError, match=r"^BloomForCausalLM cannot be compiled: .*by position; "):
        CompiledEngine(refused("bloom", n_head=2), {})


def test_a_model_that_the_compiler_does_not_know_is_named(
    llama: SteeredModel, monkeypatch: pytest.MonkeyPatch
):
    engine = engine_of(llama, [PLAIN])
    block = engine.compiled.twin.blocks[1]
    monkeypatch.setattr(block, "forward", torch.compiler.disable(block.forward))
    with pytest.raises(RuntimeError, match=r"^LlamaForCausalLM cannot be compiled \(.*\): set com"):
        answers(engine, [PLAIN])


# ---- in a run ----


def settings(folder: Any, **more: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": str(folder),
        "device": "cpu",
        "dtype": "float32",
        "compile": True,
        "generation_params": {"max_new_tokens": 5},
        "generate_orig_output": True,
        **more,
    }


@pytest.mark.slow
def test_a_run_answers_and_reports_by_its_graphs(tiny_folder: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(of_run, "CompiledEngine", partial(CompiledEngine, backend="eager"))
    texts = ["Tell me.", "And of the rest?", "No"]
    found = {}
    for on in (True, False):
        applier = BaseVectorApplier(settings(tiny_folder, compile=on))
        applier.model.steer("given", [EditLayer(1, Add(V[0]))])
        found[on] = applier.generate({"texts": texts}, save_results=False)["texts"]
        assert (applier.engine.started is not None) == on
        layers = applier.reports["texts"].layers
        assert layers[1]["tokens"] == layers[1]["tokens_changed"] > 0
    assert found[True] == found[False]
    assert any(record["pred"] != record["orig_pred"] for record in found[True])


def test_vllm_compiles_by_itself(tiny_folder: Any):
    with pytest.raises(ValueError, match=r"compile is for engine: hf"):
        BaseVectorApplier(settings(tiny_folder, engine="vllm"))
