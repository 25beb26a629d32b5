"""Our SAEs beside those of sae-lens (extra `sae`), whose classes make and save them here."""

import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from sae_files import X, gemma_scope, llama_scope, tensors
from torch import Tensor

from steer.files import project_root
from steer.saes import DEFAULT_SAE, SAE, load_sae

D_MODEL, N_FEATURES = 32, 96

pytestmark = pytest.mark.slow  # sae-lens takes seconds to import


@pytest.fixture(scope="module")
def lens() -> ModuleType:
    """sae-lens; what it and its own libraries warn of on import is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sae_lens", reason="sae-lens (extra `sae`) is not installed")


def randomised(module: torch.nn.Module) -> None:
    """No parameter is 0 or 1 by chance of its start: b_dec, thresholds and gates count."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator) * 0.3
        parameter.data = values.abs() if name == "threshold" else values


def activations(number: int = 200) -> Tensor:
    return torch.randn(number, D_MODEL, generator=torch.Generator().manual_seed(2)) * 3 + 0.5


def distance(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs|."""
    return float((ours - theirs).norm() / theirs.norm())


def agree(ours: SAE, theirs: Any, x: Tensor) -> None:
    with torch.no_grad():
        features, reconstruction = theirs.encode(x), theirs(x)
    assert (features != 0).any()
    assert (features == 0).any()
    assert distance(ours.encode(x), features) <= 1e-5
    assert distance(ours.decode(ours.encode(x), of=x), reconstruction) <= 1e-5


KINDS: list[tuple[str, dict[str, Any]]] = [
    ("Standard", {}),
    ("Standard", {"apply_b_dec_to_input": False}),
    ("Standard", {"normalize_activations": "layer_norm"}),
    ("Standard", {"normalize_activations": "constant_norm_rescale"}),
    ("Gated", {}),
    ("JumpReLU", {}),
    ("TopK", {"k": 7}),
    ("TopK", {"k": 7, "rescale_acts_by_decoder_norm": True}),
]


@pytest.mark.parametrize("kind, cfg", KINDS)
def test_reconstructions_are_those_of_sae_lens(
    kind: str, cfg: dict[str, Any], lens: ModuleType, tmp_path: Path
):
    config = getattr(lens, f"{kind}SAEConfig")(d_in=D_MODEL, d_sae=N_FEATURES, **cfg)
    theirs = getattr(lens, f"{kind}SAE")(config)
    randomised(theirs)
    theirs.save_model(tmp_path)
    ours = load_sae(tmp_path)
    agree(ours, theirs, activations())
    agree(ours, theirs, activations().reshape(4, 50, D_MODEL))


def test_a_trained_batch_top_k_sae_is_used_as_sae_lens_does(lens: ModuleType, tmp_path: Path):
    """With the threshold of its training, which it is saved with for inference."""
    config = lens.BatchTopKTrainingSAEConfig(d_in=D_MODEL, d_sae=N_FEATURES, k=7)
    trained = lens.BatchTopKTrainingSAE(config)
    randomised(trained)
    trained.topk_threshold.fill_(2.5)
    trained.save_inference_model(tmp_path)
    agree(load_sae(tmp_path), lens.SAE.load_from_disk(tmp_path), activations())


def test_the_shipped_sae_is_the_same_both_ways(lens: ModuleType):
    folder = project_root() / DEFAULT_SAE
    theirs = lens.SAE.load_from_disk(str(folder), dtype="float32")
    ours = load_sae()
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    x = torch.randn(64, 576, generator=torch.Generator().manual_seed(3)) * 7
    agree(ours, theirs, x)


FOLDER = "layer_7/width_16k/average_l0_71"
MAKERS = [
    (gemma_scope, "gemma_2_sae_huggingface_loader", "google/gemma-scope-2b-pt-res", 1.0),
    (llama_scope, "llama_scope_sae_huggingface_loader", "any", 6**0.5 / 7.5),
]


@pytest.mark.parametrize("write, loader, repo, scale", MAKERS)
def test_files_of_other_makers_are_the_same_both_ways(
    write: Any,
    loader: str,
    repo: str,
    scale: float,
    lens: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """The loaders of sae-lens are given local files in place of downloads.

    Ours counts Llama Scope's features in the units of x, as the makers do, sae-lens in those of
    training: the same up to `scale`. Decoder rows are of norm 1, which sae-lens takes for granted.
    """
    from sae_lens.loading import pretrained_sae_loaders as loaders

    weights = tensors()
    weights["W_dec"] /= weights["W_dec"].norm(dim=1, keepdim=True)
    folder = write(tmp_path, weights)

    def local(repo_id: str, filename: str, subfolder: str = "", **_: Any) -> str:
        return str(folder / Path(subfolder, filename).relative_to(FOLDER))

    monkeypatch.setattr(loaders, "hf_hub_download", local)
    overrides = {"dtype": "float32", "d_in": 6, "d_sae": 10}
    cfg, state, _ = getattr(loaders, loader)(repo, FOLDER, "cpu", False, overrides)
    theirs = lens.SAE.from_dict(loaders.handle_config_defaulting(cfg))
    theirs.load_state_dict(state)
    theirs.fold_activation_norm_scaling_factor(scale)
    ours = load_sae(folder)
    with torch.no_grad():
        assert distance(ours.encode(X) * scale, theirs.encode(X)) <= 1e-5
        assert distance(ours.decode(ours.encode(X)), theirs(X)) <= 1e-5


# ---- releases ----


def test_a_release_is_what_sae_lens_makes_of_it(lens: ModuleType, monkeypatch: pytest.MonkeyPatch):
    cfg = {"d_in": D_MODEL, "d_sae": N_FEATURES}
    cfg["metadata"] = lens.saes.sae.SAEMetadata(hook_name="blocks.4.hook_resid_post")
    theirs = lens.GatedSAE(lens.GatedSAEConfig(**cfg))
    randomised(theirs)
    asked = []

    def from_pretrained(release: str, sae_id: str, **_: Any) -> Any:
        asked.append((release, sae_id))
        return theirs

    monkeypatch.setattr(lens.SAE, "from_pretrained", from_pretrained)
    ours = load_sae(release="some-release", sae_id="layer_4")
    agree(ours, theirs, activations())
    assert asked == [("some-release", "layer_4")]
    assert (ours.layer, ours.about["source"]) == (4, "some-release/layer_4")
    assert len(ours.about["fingerprint"]) == 64


def test_a_release_that_cannot_be_had_says_so(lens: ModuleType):
    with pytest.raises(
        OSError, match=r"cannot get the SAE gpt2-small-res-jb/blocks.8.hook_resid_pre"
    ):
        load_sae(release="gpt2-small-res-jb", sae_id="blocks.8.hook_resid_pre")


def test_a_release_that_nobody_knows_is_refused(lens: ModuleType):
    with pytest.raises(ValueError, match="no-such-release"):
        load_sae(release="no-such-release", sae_id="layer_4")


def test_without_sae_lens_a_release_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[sae\]'"):
        load_sae(release="some-release", sae_id="layer_4")


def test_half_a_release_is_refused():
    with pytest.raises(ValueError, match="release and sae_id go together"):
        load_sae(release="some-release")


def test_files_are_read_without_sae_lens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    assert load_sae().n_features == 4096
