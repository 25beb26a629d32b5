"""Hold features of a sparse autoencoder at values.

Templeton et al., 2024, "Scaling Monosemanticity", "Influence on Behavior",
https://transformer-circuits.pub/2024/scaling-monosemanticity.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steer.build import pick
from steer.methods.activation_addition import AtPositions
from steer.models import EditLayer, Intervention, SteeredModel
from steer.saes import MODES, SAEFeatures, check_fits, clamp
from steer.vectors import Vectors


@dataclass(kw_only=True)
class ClampFeatures(SAEFeatures, AtPositions):
    """Hold features at values: h -> h + sum over features of (value - f(h)) W_dec[feature].

    Only the difference is added, so that what the SAE does not explain of h stays. `strengths` are
    the values; tokens of a larger norm than `max_norm`, attention sinks, stay as they are.

    Attributes:
        mode: `set` to the value, `ceiling` (no more than it) or `floor` (no less than it).
        max_norm: Where null, the largest norm that the SAE was trained on; no token is spared
            where it does not say.
    """

    mode: str = "set"
    max_norm: float | None = None

    def check(self) -> None:
        """Raise a ValueError where values do not go together."""
        super().check()
        self.where()
        self.check_gate()
        pick("mode", self.mode, dict.fromkeys(MODES))

    def load(self, model: SteeredModel) -> Vectors:
        """Nothing: it needs the SAE only."""
        del model
        return Vectors()

    def interventions(self, model: SteeredModel, vectors: Mapping[str, Any]) -> list[Intervention]:
        """One `EditLayer`.

        Raises:
            ValueError: As `choose`; also an SAE of another width than the model.
            OSError: As `choose`.
        """
        del vectors
        chosen = self.choose()
        model.check_layers([chosen.layer])
        check_fits(chosen.sae, chosen.layer, model.d_model)
        sae = chosen.sae.to(model.device)
        edit = clamp(sae, chosen.ids, chosen.strengths, self.mode, self.max_norm)
        return [EditLayer(chosen.layer, edit, self.where(), self.gate_of(model))]
