"""STA against numbers by hand, and against one text at a time with hooks of the test's own."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_files import sae_lens
from test_methods import ROWS, generator_of
from tiny import full_logits
from torch import Tensor

import steer.methods.sta
import steer.passages
from steer import BaseVectorGenerator
from steer.methods.caa import TrainCAA
from steer.methods.sta import TrainSTA
from steer.models import SteeredModel
from steer.saes import SAE
from steer.saes.atoms import MODES, Scores, rescaled, signed_min_max
from steer.vectors import annotate, load_vectors, read_metadata

FEATURES = 24
CHOICES = [{**row, "matching": "(A)", "not_matching": "(B)"} for row in ROWS]


# ---- by hand ------------------------------------------------------------------------------------

A = [0.5, -0.2, 0.1, 0.0, 0.9, -0.7, 0.05, 0.3]
WANTED = [4.0, 0.0, 2.0, 1.0, 5.0, 0.0, 1.0, 3.0]
SHUNNED = [1.0, 2.0, 2.0, 1.0, 0.0, 6.0, 3.0, 1.0]


def scores(a: list[float] = A, wanted: Any = WANTED, shunned: Any = SHUNNED) -> Scores:
    return Scores(torch.tensor(a), torch.tensor(wanted), torch.tensor(shunned))


def test_signed_min_max_is_the_references():
    found = signed_min_max(torch.tensor(A))
    wanted = [0.5556, -0.2222, 0.1111, 0, 1, -0.7778, 0.0556, 0.3333]
    assert found.tolist() == pytest.approx(wanted, abs=5e-5)
    found = signed_min_max(torch.tensor(WANTED) - torch.tensor(SHUNNED))
    assert found.tolist() == pytest.approx(
        [0.5, -0.3333, 0, 0, 0.8333, -1, -0.3333, 0.3333], abs=5e-5
    )


def test_signed_min_max_of_equal_numbers_is_0():
    assert signed_min_max(torch.full((4,), -2.0)).tolist() == [0, 0, 0, 0]


def test_frequency_counts_only_where_it_points_as_activation_does():
    # Feature 6 is a little more active on matching, but in fewer pairs.
    assert scores().frequency[6] == 0
    assert scores().frequency[5] == pytest.approx(-1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "trim, kept", [(0.65, [0, 4, 5]), (0.5, [0, 1, 4, 5, 7]), (0.0, list(range(8)))]
)
def test_kept_atoms_are_the_references(mode: str, trim: float, kept: list[int]):
    assert scores().kept(mode, trim, "all").nonzero()[:, 0].tolist() == kept


def sparse() -> Scores:
    """50 of 1000 features are active, by different amounts; half of them in one more pair."""
    a, wanted, shunned = torch.zeros(3, 1000)
    a[:50] = torch.arange(1, 51) * torch.tensor([1.0, -1.0]).repeat(25) / 50
    wanted[0:50:2], shunned[1:50:2] = 1, 1
    return Scores(a, wanted, shunned)


@pytest.mark.parametrize(
    "trim, kept",
    [(0.65, [50, 50, 50]), (0.96, [41, 41, 50])],
)
def test_few_active_features_are_trimmed_as_in_the_reference(trim: float, kept: list[int]):
    found = [int(sparse().atoms(mode, trim, "all").count_nonzero()) for mode in MODES]
    assert found == kept


def test_a_trim_of_the_active_features_trims_them():
    # The rank of the last one kept is int(0.35 * 50), from 0; in one more pair are all alike.
    found = [int(sparse().atoms(mode, 0.65, "active").count_nonzero()) for mode in MODES]
    assert found == [18, 18, 50]
    assert sparse().atoms("only_act", 0.65, "active").nonzero().min() == 32
    assert sparse().kept("only_act", 0.0, "active").sum() == 50


def test_where_nothing_is_active_nothing_is_kept_of_the_active():
    nothing = scores([0.0] * 4, [0.0] * 4, [0.0] * 4)
    assert not nothing.kept("act_and_freq", 0.5, "active").any()
    assert nothing.atoms("act_and_freq", 0.5, "all").tolist() == [0] * 4


def test_scores_by_which_nothing_is_trimmed_are_known():
    assert sparse().idle("act_and_freq", 0.65, "all") == ["activation", "frequency"]
    assert sparse().idle("only_freq", 0.65, "all") == ["frequency"]
    assert sparse().idle("act_and_freq", 0.96, "all") == []
    assert sparse().idle("act_and_freq", 0.65, "active") == []


def test_a_vector_takes_the_length_of_another():
    assert rescaled(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 10.0])).tolist() == [6, 8]
    assert rescaled(torch.tensor([3e-9, 4e-9]), torch.tensor([0.0, 10.0])).tolist() == [0, 0]


# ---- the slow way -------------------------------------------------------------------------------


def sae_folder(folder: Path, layer: int, *, width: int = 16, seed: int = 0) -> str:
    """A JumpReLU SAE of random weights."""
    generator = torch.Generator().manual_seed(100 * layer + seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weights = {
        "W_enc": random(width, FEATURES),
        "b_enc": random(FEATURES),
        "W_dec": random(FEATURES, width),
        "b_dec": random(width),
        "threshold": random(FEATURES).abs(),
    }
    hook = {"hook_name": f"blocks.{layer}.hook_resid_post", "model_name": "tiny"}
    place = folder / f"sae_{layer}_{seed}"
    return str(sae_lens(place, weights, d_in=width, d_sae=FEATURES, metadata=hook))


@pytest.fixture
def saes(tmp_path: Path) -> list[str]:
    """SAEs of layers 0 and 2."""
    return [sae_folder(tmp_path, layer) for layer in (0, 2)]


def features_of(model: SteeredModel, text: str, start: int, layer: int, path: str) -> Tensor:
    """Mean features over the answer's tokens, or, for a start of -2, the last but one."""
    sae: SAE = steer.methods.sta.load_sae(path)
    seen: list[Tensor] = []
    ids = model.tokenizer(text)["input_ids"]
    full_logits(model, ids, {layer: lambda h: seen.append(h) or h})  # type: ignore[func-returns-value]
    read = seen[0][-2:-1] if start == -2 else seen[0][start:]
    z = read @ sae.W_enc + sae.b_enc
    return (z.relu() * (z > sae.threshold)).mean(dim=0)


def slow_atoms(a: Tensor, d: Tensor, mode: str, trim: float) -> list[bool]:
    """The rule of EasyEdit2, in plain Python."""

    def scaled(values: list[float]) -> list[float]:
        low, high = min(map(abs, values)), max(map(abs, values))
        return [(x > 0) * 2 * y - y for x in values for y in [(abs(x) - low) / (high - low + 1e-8)]]

    def top(values: list[float]) -> list[bool]:
        k = min(int((1 - trim) * len(values)), len(values) - 1)
        threshold = sorted(map(abs, values), reverse=True)[k]
        return [abs(x) >= threshold for x in values]

    na, nd = scaled(a.tolist()), scaled(d.tolist())
    s = [y if x * y > 0 else 0.0 for x, y in zip(na, nd, strict=True)]
    masks = {"only_act": top(a.tolist()), "only_freq": top(s)}
    both = [x and y for x, y in zip(*masks.values(), strict=True)]
    return {**masks, "act_and_freq": both}[mode]


def slow_sta(
    model: SteeredModel, layer: int, path: str, mode: str, trim: float, choice: bool
) -> tuple[Tensor, Tensor]:
    """The direction of STA's vector, and its activation scores."""
    pairs = []
    for row in CHOICES if choice else ROWS:
        start = -2 if choice else len(model.tokenizer(row["question"])["input_ids"])
        joint = "\nAnswer: " if choice else " "
        texts = [row["question"] + joint + row[side] for side in ("matching", "not_matching")]
        pairs.append([features_of(model, text, start, layer, path) for text in texts])
    a = torch.stack([wanted - shunned for wanted, shunned in pairs]).mean(dim=0)
    counts = [sum((pair[side] > 0).float() for pair in pairs) for side in (0, 1)]
    kept = torch.tensor(slow_atoms(a, counts[0] - counts[1], mode, trim))
    return (a * kept) @ steer.methods.sta.load_sae(path).W_dec, a


@pytest.mark.parametrize("choice", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_vectors_are_those_of_the_slow_loop(
    model: SteeredModel, saes: list[str], mode: str, choice: bool
):
    trainer = TrainSTA(
        layers=[0, 2], sae_paths=saes, trims=[0.5, 0.8], mode=mode, multiple_choice=choice
    )
    trained = trainer.train(model, CHOICES if choice else ROWS)
    names = {f"layer_{n}_{mode}_trim{trim}" for n in (0, 2) for trim in (0.5, 0.8)}
    assert set(trained.vectors) == names | {"layer_0", "layer_2"}
    for layer, path in zip((0, 2), saes, strict=True):
        for trim in (0.5, 0.8):
            slow, a = slow_sta(model, layer, path, mode, trim, choice)
            found = trained.vectors[f"layer_{layer}_{mode}_trim{trim}"]
            assert torch.cosine_similarity(found, slow, dim=0) > 0.9999
            assert found.norm() == pytest.approx(float(trained.vectors[f"layer_{layer}"].norm()))
            act = trained.beside["feature_score"][f"layer_{layer}_feature_act"]
            torch.testing.assert_close(act, a, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("choice", [False, True])
def test_the_caa_vectors_are_caas_own_to_the_bit(
    model: SteeredModel, saes: list[str], choice: bool
):
    rows = CHOICES if choice else ROWS
    options: dict[str, Any] = {"multiple_choice": choice, "use_chat_template": True}
    ours = TrainSTA(sae_paths=saes, **options).train(model, rows)
    caa = TrainCAA(layers=[0, 2], **options).train(model, rows)
    folder = "caa_vector_multiple_choice" if choice else "caa_vector"
    assert sorted(ours.beside[folder]) == sorted(caa.vectors)
    for name, vector in caa.vectors.items():
        assert torch.equal(ours.vectors[name], vector)
        assert ours.vectors.about[name] == caa.vectors.about[name]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens were encoded at a time."""
    seen: list[int] = []
    encode = SAE.encode

    def counting(self: SAE, x: Tensor) -> Tensor:
        seen.append(len(x))
        return encode(self, x)

    monkeypatch.setattr(SAE, "encode", counting)
    return seen


def test_only_answers_are_encoded_and_never_many_tokens_at_once(
    model: SteeredModel, saes: list[str], encoded: list[int], monkeypatch: pytest.MonkeyPatch
):
    whole = TrainSTA(sae_paths=saes[:1]).train(model, ROWS)
    answers = [" " + row[side] for row in ROWS for side in ("matching", "not_matching")]
    # A token a byte.
    assert sum(encoded) == sum(map(len, answers))
    encoded.clear()
    monkeypatch.setattr(steer.passages, "ENCODED_TOKENS", 7)
    parts = TrainSTA(sae_paths=saes[:1]).train(model, ROWS)
    assert max(encoded) == 7
    for name, vector in whole.vectors.items():
        torch.testing.assert_close(parts.vectors[name], vector)


def test_folds_are_what_the_other_rows_teach(model: SteeredModel, saes: list[str]):
    rows = [*ROWS, *({**row, "question": "And now?"} for row in ROWS)]
    trainer = TrainSTA(sae_paths=saes, trims=[0.7])
    trained = trainer.train(model, rows)
    assert [numbers for _, numbers in trained.folds] == [[0, 5], [1], [2], [3], [4]]
    for vectors, numbers in trained.folds[:2]:
        rest = [row for n, row in enumerate(rows) if n not in numbers]
        wanted = trainer.train(model, rest).vectors
        assert sorted(vectors) == sorted(wanted)
        for name, vector in wanted.items():
            torch.testing.assert_close(vectors[name], vector, rtol=1e-4, atol=1e-4)


def test_a_steered_model_is_asked_on_its_own_device(model: SteeredModel, saes: list[str]):
    where: list[Any] = []
    trainer = TrainSTA(sae_paths=saes)
    to = SAE.to

    def noting(self: SAE, device: Any = None, dtype: Any = None) -> SAE:
        where.append(device)
        return to(self, device, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SAE, "to", noting)
        trainer.train(model, ROWS)
    # Once on loading and once for the activations, each.
    assert [str(device) for device in where] == ["cpu"] * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_vectors(model: SteeredModel, saes: list[str]):
    trainer = TrainSTA(sae_paths=saes)
    wanted = trainer.train(model, ROWS).vectors
    found = trainer.train(SteeredModel(model.model.cuda(), model.tokenizer), ROWS).vectors
    for name, vector in wanted.items():
        torch.testing.assert_close(found[name], vector, rtol=1e-3, atol=1e-3)


# ---- what it says -------------------------------------------------------------------------------


def test_the_report_counts_features_and_names_the_strongest(model: SteeredModel, saes: list[str]):
    trained = TrainSTA(sae_paths=saes[:1], trims=[0.8], mode="only_act").train(model, ROWS)
    entry = trained.report["layer_0_only_act_trim0.8"]
    act = trained.beside["feature_score"]["layer_0_feature_act"]
    # int(0.2 * 24) is the rank of the last one, from 0.
    assert entry["kept"] == 5
    assert entry["active"] == int((act != 0).sum())
    strongest = act.abs().topk(5).indices.tolist()
    assert [feature["feature"] for feature in entry["strongest"]] == strongest
    assert entry["strongest"][0] == {
        "feature": strongest[0],
        "score": pytest.approx(float(act[strongest[0]])),
    }


@pytest.mark.slow
def test_features_are_described_where_a_directory_lies_beside_the_sae(embedded: SteeredModel):
    rows = [
        {"question": "How was it?", "matching": "I love it.", "not_matching": "I hate it."},
        {"question": "And now?", "matching": "We love that.", "not_matching": "We hate that."},
    ]
    trained = TrainSTA(trims=[0.99], mode="only_act").train(embedded, rows)
    strongest = trained.report["layer_15_only_act_trim0.99"]["strongest"]
    assert any("love" in feature["fires_on"] for feature in strongest)


def test_a_broken_feature_directory_costs_only_the_descriptions(
    model: SteeredModel, saes: list[str], caplog: pytest.LogCaptureFixture
):
    wanted = TrainSTA(sae_paths=saes[:1]).train(model, ROWS).vectors
    Path(saes[0], "features.jsonl.gz").write_bytes(b"broken")
    found = TrainSTA(sae_paths=saes[:1]).train(model, ROWS).vectors
    assert all(torch.equal(found[name], vector) for name, vector in wanted.items())
    assert "features are not described" in caplog.text


def test_a_trim_that_trims_nothing_is_said_to(
    model: SteeredModel, saes: list[str], caplog: pytest.LogCaptureFixture
):
    TrainSTA(sae_paths=saes[:1], trims=[0.05], mode="only_freq").train(model, ROWS)
    assert "layer_0_only_freq_trim0.05: by frequency nothing is trimmed" in caplog.text
    caplog.clear()
    TrainSTA(sae_paths=saes[:1], trims=[0.05], mode="only_freq", trim_of="active").train(
        model, ROWS
    )
    assert not caplog.text


BAD = [
    ({"mode": "act"}, r"unknown mode 'act'.*\(allowed: act_and_freq, only_act, only_freq\)"),
    ({"trim_of": "some"}, r"unknown trim_of 'some'.*\(allowed: active, all\)"),
    ({"layers": [0]}, r"layers and sae_paths go in pairs: got \[0\] and \["),
    ({"sae_paths": []}, r"layers and sae_paths go in pairs: got None and \[\]"),
    ({"layers": []}, r"layers and sae_paths go in pairs: got \[\] and \["),
    ({"layers": [0, 0]}, r"layers must differ: got \[0, 0\]"),
    ({"trims": []}, r"trims must be one or more different numbers: got \[\]"),
    ({"trims": [0.5, 0.5]}, r"trims must be one or more different numbers"),
    ({"trims": [65.0]}, r"trims are shares, from 0 to 1: got \[65.0\]"),
    ({"layers": [2, 0]}, r"sae_0_0 is for the output of layer 0 .* not of layer 2"),
    ({"layers": [0, 3]}, r"layers \[3\] do not exist: the model has 3"),
]


@pytest.mark.parametrize("changed, message", BAD)
def test_settings_that_cannot_be_are_refused(
    model: SteeredModel, saes: list[str], changed: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        TrainSTA(**{"sae_paths": saes, **changed}).train(model, ROWS)


def test_saes_that_do_not_fit_are_refused(model: SteeredModel, saes: list[str], tmp_path: Path):
    wide = sae_folder(tmp_path, 1, width=20)
    with pytest.raises(ValueError, match="is for activations 20 wide, the model's are 16"):
        TrainSTA(layers=[1], sae_paths=[wide]).train(model, ROWS)
    with pytest.raises(FileNotFoundError, match="no SAE at nowhere"):
        TrainSTA(layers=[1], sae_paths=["nowhere"]).train(model, ROWS)
    with pytest.raises(ValueError, match="give layers, another one for each SAE"):
        TrainSTA(sae_paths=[saes[0], saes[0]]).train(model, ROWS)


def test_sides_that_are_the_same_are_refused(model: SteeredModel, saes: list[str]):
    alike = [{**row, "not_matching": row["matching"]} for row in ROWS]
    with pytest.raises(ValueError, match="matching and not_matching are the same text in every"):
        TrainSTA(sae_paths=saes).train(model, alike)


# ---- what is kept -------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The layers of each reading of the model."""
    seen: list[list[int]] = []
    contrast = steer.methods.sta.contrast

    def noting(model: Any, wanted: Any, shunned: Any, layers: Any, **options: Any) -> Any:
        seen.append(list(layers))
        return contrast(model, wanted, shunned, layers, **options)

    monkeypatch.setattr(steer.methods.sta, "contrast", noting)
    return seen


def sta(model: SteeredModel, folder: Path, saes: list[str], **changed: Any) -> BaseVectorGenerator:
    folder.mkdir(exist_ok=True)
    settings = {"layers": [0, 2], "sae_paths": saes, "trims": [0.7], **changed}
    return generator_of("sta", model, folder, **settings)


def test_files_lie_where_easyedit2_puts_them(model: SteeredModel, saes: list[str], tmp_path: Path):
    made = sta(model, tmp_path, saes).generate_vectors({"kind": ROWS})["kind"]["sta"]
    place = tmp_path / "out" / "kind"
    name = "layer_0_act_and_freq_trim0.7"
    assert torch.equal(load_vectors(place / "sta_vector", [name])[name], made[name])
    assert torch.equal(load_vectors(place / "caa_vector", ["layer_2"])["layer_2"], made["layer_2"])
    kinds = ("feature_act", "pos_freq", "neg_freq")
    names = {f"layer_{n}_{kind}" for n in (0, 2) for kind in kinds}
    assert {path.stem for path in (place / "feature_score").glob("*.pt")} == names
    act, wanted, shunned = load_vectors(
        place / "feature_score", [f"layer_0_{kind}" for kind in kinds]
    ).values()
    assert act.shape == wanted.shape == shunned.shape == (FEATURES,)
    assert act.dtype == wanted.dtype == torch.float32


def caa_entries(folder: Path) -> dict[str, Any]:
    return (read_metadata(folder / "out/kind/caa_vector") or {})["vectors"]


def test_the_caa_vectors_are_said_to_be_caas(
    model: SteeredModel, saes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MY_API_KEY", "do-not-tell")
    chat = {"use_chat_template": True, "system_prompt": "Be do-not-tell."}
    sta(model, tmp_path, saes, **chat).generate_vectors({"kind": ROWS})
    found = caa_entries(tmp_path)
    alone = tmp_path / "alone"
    alone.mkdir()
    generator_of("caa", model, alone, **chat).generate_vectors({"kind": ROWS})
    # What resuming needs is known to a run of caa only.
    resuming = ("recipe", "made_with", "folds")
    wanted = caa_entries(alone).items()
    assert found == {n: {k: v for k, v in e.items() if k not in resuming} for n, e in wanted}
    assert found["layer_0"]["hparams"]["system_prompt"] == "Be ***."


def test_what_caa_made_of_the_same_stays_as_it_is(
    model: SteeredModel, saes: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    generator_of("caa", model, tmp_path).generate_vectors({"kind": ROWS})
    annotate(tmp_path / "out/kind/caa_vector", {"recommended": {"multipliers": [2]}})
    before = caa_entries(tmp_path)
    assert before["layer_2"].keys() >= {"recipe", "made_with", "folds", "recommended"}
    sta(model, tmp_path, saes).generate_vectors({"kind": ROWS})
    assert caa_entries(tmp_path) == before
    assert "is replaced" not in caplog.text


def test_that_a_vector_of_other_settings_is_replaced_is_said(
    model: SteeredModel, saes: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    generator_of("caa", model, tmp_path).generate_vectors({"kind": ROWS})
    before = caa_entries(tmp_path)
    made = sta(model, tmp_path, saes, use_chat_template=True).generate_vectors({"kind": ROWS})
    for name in ("layer_0", "layer_2"):
        assert f"caa_vector/{name}.pt is replaced" in caplog.text
        (vector,) = load_vectors(tmp_path / "out/kind/caa_vector", [name]).values()
        assert torch.equal(vector, made["kind"]["sta"][name])
        now = caa_entries(tmp_path)[name]
        assert now["hparams"]["use_chat_template"] is True
        assert (now["method"], now["sha256"] == before[name]["sha256"]) == ("caa", False)
    caplog.clear()
    sta(model, tmp_path, saes, use_chat_template=True).generate_vectors({"kind": ROWS})
    assert "is replaced" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{}, {"trims": [0.3, 0.9]}, {"mode": "only_act"}])
def test_what_was_read_serves_other_trims_and_modes(
    model: SteeredModel,
    saes: list[str],
    reads: list[list[int]],
    changed: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.DEBUG)
    fresh = sta(model, tmp_path / "fresh", saes, **changed)
    wanted = fresh.generate_vectors({"kind": ROWS})["kind"]["sta"]
    sta(model, tmp_path, saes).generate_vectors({"kind": ROWS})
    assert reads == [[0, 2], [0, 2]]
    again = sta(model, tmp_path, saes, **changed)
    found = again.generate_vectors({"kind": ROWS})["kind"]["sta"]
    assert reads == [[0, 2], [0, 2]]
    assert "layer 0: what was read is used again" in caplog.text
    assert found.about == wanted.about
    assert sorted(found) == sorted(wanted)
    assert all(torch.equal(found[name], vector) for name, vector in wanted.items())
    for (ours, rows), (theirs, same) in zip(
        again.trained["kind"]["sta"].folds, fresh.trained["kind"]["sta"].folds, strict=True
    ):
        assert rows == same
        assert all(torch.equal(ours[name], vector) for name, vector in theirs.items())


OTHER = [
    {"multiple_choice": True},
    {"use_chat_template": True},
    {"use_chat_template": True, "system_prompt": "Be kind."},
]


@pytest.mark.slow
@pytest.mark.parametrize("changed", OTHER)
def test_other_settings_are_read_anew(
    model: SteeredModel,
    saes: list[str],
    reads: list[list[int]],
    changed: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.DEBUG)
    sta(model, tmp_path, saes).generate_vectors({"kind": CHOICES})
    found = sta(model, tmp_path, saes, **changed).generate_vectors({"kind": CHOICES})
    assert reads == [[0, 2], [0, 2]]
    assert "layer 2: read anew" in caplog.text
    wanted = TrainSTA(sae_paths=saes, trims=[0.7], **changed).train(model, CHOICES).vectors
    for name, vector in found["kind"]["sta"].items():
        assert torch.equal(vector, wanted[name])


@pytest.mark.slow
def test_other_data_weights_and_saes_are_read_anew(
    model: SteeredModel, saes: list[str], reads: list[list[int]], tmp_path: Path
):
    sta(model, tmp_path, saes).generate_vectors({"kind": ROWS})
    changed_rows = [{**ROWS[0], "matching": "Not so well."}, *ROWS[1:]]
    sta(model, tmp_path, saes).generate_vectors({"kind": changed_rows})
    assert reads == [[0, 2]] * 2
    # The other layer's are still right.
    other = [saes[0], sae_folder(tmp_path, 2, seed=1)]
    sta(model, tmp_path, other).generate_vectors({"kind": changed_rows})
    assert reads == [[0, 2]] * 2 + [[2]]
    with torch.no_grad():
        model.model.get_input_embeddings().weight.mul_(2)
    sta(model, tmp_path, other).generate_vectors({"kind": changed_rows})
    assert reads == [[0, 2]] * 2 + [[2], [0, 2]]


@pytest.mark.slow
def test_what_is_broken_or_of_unknown_origin_is_read_anew(
    model: SteeredModel,
    saes: list[str],
    reads: list[list[int]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    wanted = sta(model, tmp_path, saes).generate_vectors({"kind": ROWS})["kind"]["sta"]
    place = tmp_path / "out" / "kind" / "feature_sums"
    (place / "layer_2.pt").write_bytes(b"broken")
    found = sta(model, tmp_path, saes).generate_vectors({"kind": ROWS})["kind"]["sta"]
    assert reads == [[0, 2], [2]]
    assert "reading activations anew" in caplog.text
    assert all(torch.equal(found[name], vector) for name, vector in wanted.items())
    (place / "metadata.json").unlink()
    sta(model, tmp_path, saes).generate_vectors({"kind": ROWS})
    assert reads == [[0, 2], [2], [0, 2]]
