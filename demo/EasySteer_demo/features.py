"""Features of a sparse autoencoder: found by a word, by id, or by what fires on a sentence."""

import math
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from options import DemoOptions

from steer.files import find
from steer.models import SteeredModel
from steer.saes import (
    DEFAULT_SAE,
    Feature,
    check_fits,
    has_directory,
    load_sae,
    read_features,
    search_features,
)

SHOWN = 10
REMEMBERED = 256
# Of a feature of which it is not known; and the least, so that no logarithm is infinite.
RAREST = 1e-4
# Strength of a feature of which no activation is known.
USUAL = 30.0


@dataclass(frozen=True)
class Firing:
    """A feature that is active in a sentence.

    Attributes:
        id: The feature.
        activation: Its largest.
        token: Where that was.
    """

    id: int
    activation: float
    token: str


class Features:
    """Those of one SAE.

    Args:
        path: Of the SAE.
        model: It must fit this model.

    Raises:
        ValueError: It does not, or is broken, or does not say which layer it is for.
        FileNotFoundError: It is not there.
    """

    def __init__(self, path: str, model: SteeredModel) -> None:
        sae = load_sae(path)
        if sae.layer is None:
            raise ValueError(f"{path} does not say which layer it is for")
        model.check_layers([sae.layer])
        check_fits(sae, sae.layer, model.d_model)
        self.sae, self.layer, self.model = sae.to(model.device), sae.layer, model
        place = find(path, "SAE")
        self.directory = place if place.is_dir() else place.parent
        self.known: dict[int, Feature] = {}
        # A search takes a second, and the page's own examples are clicked again and again.
        self._hits = lru_cache(REMEMBERED)(partial(search_features, self.directory, k=SHOWN))
        if has_directory(self.directory):
            self.known = {one.id: one for one in read_features(self.directory)}

    def search(self, word: str) -> list[int]:
        """Features that fire on a word, best first.

        Raises:
            ValueError: None does; the message names near ones.
        """
        if not self.known:
            raise ValueError(
                "no feature directory lies beside this sparse autoencoder: add features by id"
            )
        return [hit.feature.id for hit in self._hits(word)]

    @torch.inference_mode()
    def firing(self, text: str) -> list[Firing]:
        """The features that are most active in a text, each at its best token.

        What fires on every other token says little: activations are weighed by how rare they are,
        -log(frequency). Tokens that the SAE was not trained on are left out.
        """
        tokenizer = self.model.tokenizer
        ids: list[int] = tokenizer(text)["input_ids"]  # type: ignore[assignment]
        inputs = {"input_ids": torch.tensor([ids], device=self.model.device)}
        hidden = self.model.read(inputs, [self.layer])[self.layer][0]
        active = self.sae.encode(hidden)
        norms = hidden.float().norm(dim=-1)
        active[norms > (self.sae.about.get("max_norm") or torch.inf)] = 0
        weights = [-math.log(max(self._frequency(n), RAREST)) for n in range(self.sae.n_features)]
        best, tokens = active.max(dim=0)
        order = (best * torch.tensor(weights, device=best.device)).argsort(descending=True)
        found = [n for n in order[:SHOWN].tolist() if best[n] > 0]
        said = {n: str(tokenizer.decode([ids[int(tokens[n])]])).strip() for n in found}
        return [Firing(n, float(best[n]), said[n]) for n in found]

    def _frequency(self, number: int) -> float:
        """The share of tokens that a feature is active on."""
        return self.known[number].frequency if number in self.known else RAREST

    def check(self, number: int) -> int:
        """`number`, unless the SAE has no such feature: a ValueError then."""
        if not 0 <= number < self.sae.n_features:
            raise ValueError(
                f"feature ids are 0 to {self.sae.n_features - 1} in this sparse autoencoder: "
                f"got {number}"
            )
        return number

    def label(self, number: int) -> str:
        """A feature in a line."""
        known = self.known.get(number)
        if known is None:
            return f"{number} (nothing is known of it)"
        return f"{number}: fires on {known.fires_on()}, up to {known.max_activation:.0f}"

    def usual_strength(self, number: int) -> float:
        """Its largest activation known."""
        known = self.known.get(number)
        return round(known.max_activation, 1) if known and known.max_activation else USUAL


def features_of(options: DemoOptions, model: SteeredModel) -> Features | str:
    """The features that can be steered, or why there are none.

    Raises:
        ValueError: The SAE that the options name does not fit.
        FileNotFoundError: It is not there.
    """
    if options.sae_path is not None:
        return Features(options.sae_path, model)
    try:
        return Features(DEFAULT_SAE, model)
    except (ValueError, FileNotFoundError) as error:
        return (
            f"The project's sparse autoencoder does not fit this model ({error}). Start the demo "
            "with `sae_path=` and one that does."
        )
