"""Steering Target Atoms (Wang et al., 2025, https://arxiv.org/abs/2505.20322).

The mean difference of activations, told in features of a sparse autoencoder, of which only those
are kept that differ much, and in many pairs.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer.activations import Contrast, FeatureSums, contrast
from steer.build import pick
from steer.datasets import Row
from steer.files import find, fingerprint
from steer.methods.activation_addition import sta_name
from steer.methods.base import ALONE, Context, Trained
from steer.methods.contrastive import ContrastivePairs, mean_differences
from steer.models import ChatFormat, SteeredModel
from steer.saes import DEFAULT_SAE, SAE, check_fits, features_by_id, has_directory, load_sae
from steer.saes.atoms import MODES, TRIM_OF, Scores, rescaled
from steer.vectors import Vectors, load_vectors, read_metadata

log = logging.getLogger(__name__)

SCORES = "feature_score"
# All that was read of a layer, by fold: what scores and vectors are made of.
SUMS = "feature_sums"
STRONGEST = 10
IDLE = (
    "%s: by %s nothing is trimmed, as fewer features have that score than the trim leaves; %d of "
    "%d active features are kept; trim_of: active trims a share of those that have one"
)


@dataclass(kw_only=True)
class TrainSTA(ContrastivePairs):
    """Vectors `layer_<n>_<mode>_trim<trim>`, as long as caa's, out of the same passes.

    Attributes:
        layers: Decoder blocks to read, counted from 0, one for each of `sae_paths`; where null,
            those that the SAEs were made for.
        sae_paths: Sparse autoencoders of the outputs of `layers`.
        trims: Shares of the features to throw away; a vector for each.
        mode: What a kept feature must pass by: `act_and_freq`, `only_act` (the difference of its
            mean activations) or `only_freq` (in how many more pairs it is active).
        trim_of: Of what a trim is a share: of `all` features, as in EasyEdit2, which trims nothing
            where fewer are active than may be kept; or of those that are `active`.
    """

    sae_paths: list[str] = field(default_factory=lambda: [DEFAULT_SAE])
    trims: list[float] = field(default_factory=lambda: [0.65])
    mode: str = "act_and_freq"
    trim_of: str = "all"
    kind = "sta"

    def __post_init__(self) -> None:
        super().__post_init__()
        pick("mode", self.mode, MODES)
        pick("trim_of", self.trim_of, dict.fromkeys(TRIM_OF))
        paired = self.sae_paths if self.layers is None else self.layers
        if not self.sae_paths or len(paired) != len(self.sae_paths):
            raise ValueError(
                f"layers and sae_paths go in pairs: got {self.layers} and {self.sae_paths}"
            )
        if not self.trims or len(set(self.trims)) != len(self.trims):
            raise ValueError(f"trims must be one or more different numbers: got {self.trims}")
        if not all(0 <= trim <= 1 for trim in self.trims):
            raise ValueError(f"trims are shares, from 0 to 1: got {self.trims}")

    def train(self, model: SteeredModel, rows: Sequence[Row], context: Context = ALONE) -> Trained:
        """STA's vectors and, as `layer_<n>`, caa's; of shape [d_model], float32.

        What an earlier run of the same data, model, SAE and options read is used again, so other
        trims and modes need no pass of the model.

        Raises:
            ValueError: No rows, a row without answers, or an SAE of another layer or width.
            FileNotFoundError: No SAE at one of `sae_paths`.
        """
        saes = self._saes(model)
        keys = {n: self._key(n, sae, context) for n, sae in saes.items()}
        kept = {} if context.folder is None else _kept(context.folder.parent / SUMS, keys)
        found = self._read(model, rows, saes, kept)
        scores = {n: _scores(found, n) for n in saes}
        caa = mean_differences(found, len(rows), self.tokens_read)
        return Trained(
            self._vectors(scores, saes, caa.vectors),
            [
                (self._vectors({n: _scores(found, n, fold) for n in saes}, saes, vectors), numbers)
                for fold, (vectors, numbers) in enumerate(caa.folds)
            ],
            beside={
                self.folder_of("caa"): self._as_caa(caa.vectors),
                SCORES: Vectors({k: v for n in saes for k, v in _by_name(scores[n], n).items()}),
                SUMS: _packed(found, keys),
            },
            report=self._report(scores, saes),
        )

    def _saes(self, model: SteeredModel) -> dict[int, SAE]:
        """The SAE of each layer, on the CPU."""
        found = [load_sae(path) for path in self.sae_paths]
        layers = [sae.layer for sae in found] if self.layers is None else self.layers
        saes = {n: sae for n, sae in zip(layers, found, strict=True) if n is not None}
        if len(saes) != len(found):
            raise ValueError(f"give layers, another one for each SAE: the SAEs say {layers}")
        model.check_layers(saes)
        for n, sae in saes.items():
            check_fits(sae, n, model.d_model)
        return saes

    def _key(self, layer: int, sae: SAE, context: Context) -> str:
        """A hash of all that decides what is read."""
        chat = {f.name: getattr(self, f.name) for f in fields(ChatFormat)}
        run = {key: value for key, value in context.about.items() if key != "seed"}
        own = {"layer": layer, "sae": sae.about.get("fingerprint"), "tokens": self.tokens_read}
        return fingerprint({**run, **chat, **own})

    def _read(
        self,
        model: SteeredModel,
        rows: Sequence[Row],
        saes: Mapping[int, SAE],
        kept: Mapping[int, Contrast],
    ) -> Contrast:
        """What `kept` has, and the other layers in one pass."""
        parts = list(kept.values())
        missing = [n for n in saes if n not in kept]
        if missing:
            sides, encoders = self.sides(model, rows), {n: _Encoder(saes[n]) for n in missing}
            size = self.batch_size
            parts.append(contrast(model, *sides, missing, batch_size=size, encoders=encoders))
        return Contrast(
            {n: sums for part in parts for n, sums in part.sums.items()},
            parts[0].counts,
            {n: norm for part in parts for n, norm in part.residual_norms.items()},
            {n: sums for part in parts for n, sums in part.features.items()},
        )

    def _vectors(
        self, scores: Mapping[int, Scores], saes: Mapping[int, SAE], caa: Vectors
    ) -> Vectors:
        """The vectors `caa`, and STA's."""
        made = Vectors(caa, caa.about)
        for n, sae in saes.items():
            base = f"layer_{n}"
            for trim in self.trims:
                name = sta_name(n, self.mode, trim)
                atoms = scores[n].atoms(self.mode, trim, self.trim_of)
                made[name] = rescaled(atoms @ sae.W_dec, caa[base])
                made.about[name] = {**caa.about[base], "sae": sae.about.get("fingerprint")}
        return made

    def _as_caa(self, vectors: Vectors) -> Vectors:
        """The same, known as what caa makes with these settings."""
        layers = [about["layer"] for about in vectors.about.values()]
        own = {f.name: getattr(self, f.name) for f in fields(ContrastivePairs)}
        known = {"method": "caa", "hparams": {**own, "layers": layers}}
        return Vectors(vectors, {name: {**a, **known} for name, a in vectors.about.items()})

    def _report(self, scores: Mapping[int, Scores], saes: Mapping[int, SAE]) -> dict[str, Any]:
        """By vector's name, how many features are kept, and the strongest of them."""
        report: dict[str, Any] = {}
        for n, sae in saes.items():
            made = {}
            for trim in self.trims:
                name = sta_name(n, self.mode, trim)
                atoms = scores[n].atoms(self.mode, trim, self.trim_of)
                made[name] = {
                    "kept": int(atoms.count_nonzero()),
                    "active": int(scores[n].activation.count_nonzero()),
                    "strongest": _strongest(atoms),
                }
                for by in scores[n].idle(self.mode, trim, self.trim_of):
                    log.warning(IDLE, *(name, by, made[name]["kept"], made[name]["active"]))
            report |= _described(made, sae)
        return report


def _scores(found: Contrast, layer: int, without_fold: int | None = None) -> Scores:
    """Over the pairs outside of one fold where given."""
    sums = found.features[layer]
    counts = (found.total(each, without_fold).float() for each in (sums.wanted, sums.shunned))
    return Scores(found.mean(sums.differences, without_fold), *counts)


def _by_name(scores: Scores, layer: int) -> dict[str, Tensor]:
    """By EasyEdit2's names."""
    return {
        f"layer_{layer}_feature_act": scores.activation,
        f"layer_{layer}_pos_freq": scores.wanted,
        f"layer_{layer}_neg_freq": scores.shunned,
    }


def _strongest(atoms: Tensor) -> list[dict[str, Any]]:
    order = atoms.abs().argsort(descending=True, stable=True)[:STRONGEST].tolist()
    return [{"feature": n, "score": float(atoms[n])} for n in order if atoms[n]]


def _described(report: dict[str, Any], sae: SAE) -> dict[str, Any]:
    """`report` with the tokens that the strongest features fire on, where a directory has them."""
    place = find(sae.about["source"], "SAE")
    folder = place if place.is_dir() else place.parent
    if not has_directory(folder):
        return report
    strongest = [feature for entry in report.values() for feature in entry["strongest"]]
    try:
        known = features_by_id(folder, {feature["feature"] for feature in strongest})
    except ValueError as error:
        # Not worth losing what was read.
        log.warning("features are not described: %s", error)
        return report
    for feature in strongest:
        if feature["feature"] in known:
            feature["fires_on"] = known[feature["feature"]].fires_on()
    return report


class _Encoder:
    """`sae.encode`, on whatever device activations are.

    Another process that it is sent to reads the SAE itself: there are some of gigabytes.
    """

    def __init__(self, sae: SAE) -> None:
        self.sae = sae
        self._on: dict[torch.device, SAE] = {}

    def __call__(self, tokens: Tensor) -> Tensor:
        device = tokens.device
        if device not in self._on:
            self._on[device] = self.sae.to(device)
        return self._on[device].encode(tokens)

    def __reduce__(self) -> tuple[Any, ...]:
        return _encoder_of, (self.sae.about["source"],)


def _encoder_of(path: str) -> _Encoder:
    return _Encoder(load_sae(path))


def _packed(found: Contrast, keys: Mapping[int, str]) -> Vectors:
    """All of `found`: `layer_<n>`, [folds, 1 + d_model + 3 n_features]."""
    packed = Vectors()
    for n, sums in found.features.items():
        parts = [found.counts[:, None], found.sums[n]]
        parts += [sums.differences, sums.wanted, sums.shunned]
        packed[f"layer_{n}"] = torch.cat([part.double() for part in parts], dim=1)
        packed.about[f"layer_{n}"] = {
            "layer": n,
            "d_model": found.sums[n].shape[1],
            "residual_norm": found.residual_norms[n],
            "key": keys[n],
        }
    return packed


def _kept(place: Path, keys: Mapping[int, str]) -> dict[int, Contrast]:
    """What a run of the same keys left at `place`, by layer."""
    kept: dict[int, Contrast] = {}
    try:
        entries = (read_metadata(place) or {}).get("vectors", {})
        for n, key in keys.items():
            entry = entries.get(f"layer_{n}", {})
            if entry.get("key") == key:
                (packed,) = load_vectors(place, [f"layer_{n}"]).values()
                kept[n] = _unpacked(packed, n, entry)
                log.debug("layer %d: what was read is used again, from %s", n, place)
            elif entry:
                log.debug("layer %d: read anew, %s is of other settings or data", n, place)
    except (ValueError, FileNotFoundError) as error:
        log.warning("reading activations anew: %s", error)
    return kept


def _unpacked(packed: Tensor, layer: int, entry: Mapping[str, Any]) -> Contrast:
    """One layer of what `_packed` was given."""
    d_model = entry["d_model"]
    features = (packed.shape[1] - 1 - d_model) // 3
    counts, sums, *of_features = packed.split([1, d_model, *[features] * 3], dim=1)
    norms = {layer: entry["residual_norm"]}
    return Contrast({layer: sums}, counts[:, 0], norms, {layer: FeatureSums(*of_features)})
