"""Apply vectors at block outputs: CAA, STA, SAE features, vector prompts and their like."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from steer.build import pick
from steer.methods.gating import Gated
from steer.models import (
    EVERYWHERE,
    FROM_PROMPT_END,
    GENERATED,
    PROMPT,
    Add,
    AddKeepingNorm,
    EditLayer,
    Intervention,
    Positions,
    ProjectOut,
    SteeredModel,
)
from steer.models.facts import model_facts
from steer.saes.atoms import MODES
from steer.vectors import Vectors, load_vectors

POSITIONS = {
    "all": EVERYWHERE,
    "prompt": PROMPT,
    "from_prompt_end": FROM_PROMPT_END,
    "generated": GENERATED,
}
OPERATIONS = {"add": Add, "add_keeping_norm": AddKeepingNorm, "project_out": ProjectOut}
STRENGTHS = ("absolute", "relative")


@dataclass(kw_only=True)
class AtPositions(Gated):
    """Which tokens are steered.

    Attributes:
        positions: Tokens to steer: `all`, `prompt`, `from_prompt_end` (the prompt's last token and
            all that follow) or `generated`.
        steer_from_end_position: EasyEdit2's spelling of `positions: from_prompt_end`.
    """

    positions: str = "all"
    steer_from_end_position: bool = False

    def where(self) -> Positions:
        """The tokens.

        Raises:
            ValueError: An unknown name, or two that exclude each other.
        """
        chosen = pick("positions", self.positions, POSITIONS)
        if not self.steer_from_end_position:
            return chosen
        if self.positions not in ("all", "from_prompt_end"):
            raise ValueError(
                f"steer_from_end_position: true and positions: {self.positions} exclude each other"
            )
        return FROM_PROMPT_END


@dataclass(kw_only=True)
class StoredVectors(AtPositions):
    """Where vectors are found, and whether they fit.

    Attributes:
        steer_vector_load_dir: Folder of the vectors, where they are not handed over in memory.
        allow_mismatch: Use vectors made with another model all the same.
    """

    steer_vector_load_dir: str | None = None
    allow_mismatch: bool = False

    @abstractmethod
    def names(self) -> list[str]:
        """The names of the vectors that are needed, in memory and, with `.pt`, on disk."""

    @abstractmethod
    def check(self) -> None:
        """Raise a ValueError where values do not go together."""

    def __post_init__(self) -> None:
        self.check()

    def load(self, model: SteeredModel) -> Vectors:
        """The vectors in `steer_vector_load_dir`.

        Raises:
            ValueError: No folder is given, or a vector does not fit the model.
            FileNotFoundError: No folder there, or no vector of a name.
        """
        self.check()
        if self.steer_vector_load_dir is None:
            raise ValueError(
                "no vectors to apply: give steer_vector_load_dir, or apply_vectors(vectors)"
            )
        facts, allowed = model_facts(model), self.allow_mismatch
        return load_vectors(
            self.steer_vector_load_dir, self.names(), model=facts, allow_mismatch=allowed
        )

    def check_vectors(self, model: SteeredModel, vectors: Mapping[str, Tensor]) -> None:
        """Raise a ValueError where one of `names` is missing, or is not as wide as the model."""
        missing = [name for name in self.names() if name not in vectors]
        if missing:
            raise ValueError(
                f"no vectors {missing}: there are {sorted(vectors)}; generate those layers first"
            )
        for name in self.names():
            if list(vectors[name].shape) != [model.d_model]:
                raise ValueError(
                    f"vector {name} does not fit: its shape is {list(vectors[name].shape)}, the "
                    f"model is {model.d_model} wide"
                )


@dataclass(kw_only=True)
class AddVectors(StoredVectors):
    """Add `multipliers[i]` times the vector of `layers[i]` to that block's output.

    Attributes:
        layers: Decoder blocks to steer, counted from 0.
        multipliers: Signed strength for each of `layers`; a negative one steers away.
        operation: `add`; `add_keeping_norm`, after which activations are as long as before; or
            `project_out`, which removes `multipliers[i]` of what lies along the vector.
        strength: `absolute`, or `relative`: a multiplier is then a share of the layer's median
            residual norm, whatever the vector's own norm, so that it carries over between layers
            and models.
    """

    layers: list[int]
    multipliers: list[float] = field(default_factory=lambda: [1.0])
    operation: str = "add"
    strength: str = "absolute"

    def check(self) -> None:
        """Raise a ValueError where values do not go together."""
        if len(self.layers) != len(self.multipliers):
            raise ValueError(
                f"layers and multipliers go in pairs: got {len(self.layers)} layers "
                f"{self.layers} and {len(self.multipliers)} multipliers {self.multipliers}"
            )
        if not self.layers:
            raise ValueError("layers is empty: name the decoder blocks to steer, e.g. layers: [12]")
        if len(set(self.layers)) != len(self.layers):
            raise ValueError(f"layers must differ: got {self.layers}")
        if not all(map(math.isfinite, self.multipliers)):
            raise ValueError(f"multipliers must be finite numbers: got {self.multipliers}")
        self.where()
        self.check_gate()
        pick("operation", self.operation, OPERATIONS)
        pick("strength", self.strength, dict.fromkeys(STRENGTHS))
        if self.strength == "relative" and self.operation == "project_out":
            raise ValueError(
                "strength: relative has no meaning for operation: project_out, which removes a "
                "share of what is there: set strength: absolute"
            )

    def names(self) -> list[str]:
        """The name of each layer's vector, in memory and, with `.pt`, on disk."""
        return [f"layer_{layer}" for layer in self.layers]

    def interventions(
        self, model: SteeredModel, vectors: Mapping[str, Tensor]
    ) -> list[Intervention]:
        """One `EditLayer` for each of `layers`.

        Raises:
            ValueError: A layer that the model or `vectors` does not have.
        """
        self.check()
        model.check_layers(self.layers)
        self.check_vectors(model, vectors)
        edit, where, gate = OPERATIONS[self.operation], self.where(), self.gate_of(model)
        strengths = [
            self._strength(multiplier, name, vectors)
            for multiplier, name in zip(self.multipliers, self.names(), strict=True)
        ]
        return [
            EditLayer(layer, edit(vectors[name], strength), where, gate)
            for layer, name, strength in zip(self.layers, self.names(), strengths, strict=True)
        ]

    def _strength(self, multiplier: float, name: str, vectors: Mapping[str, Tensor]) -> float:
        if self.strength == "absolute":
            return multiplier
        usual = getattr(vectors, "about", {}).get(name, {}).get("residual_norm")
        norm = float(vectors[name].float().norm())
        if not usual:
            raise ValueError(
                f"strength: relative needs the residual norm of {name}, which is not known: make "
                "the vector anew from data, or set strength: absolute"
            )
        return multiplier * usual / norm if norm else 0.0


@dataclass(kw_only=True)
class AddSTAVectors(AddVectors):
    """The same for the vectors of STA, which are named for their mode and trim too.

    Attributes:
        trims: For each of `layers`, the share of features that training threw away.
        mode: `act_and_freq`, `only_act` or `only_freq`.
    """

    trims: list[float] = field(default_factory=lambda: [0.65])
    mode: str = "act_and_freq"

    def check(self) -> None:
        """Raise a ValueError where values do not go together."""
        super().check()
        pick("mode", self.mode, MODES)
        if len(self.trims) != len(self.layers):
            raise ValueError(f"layers and trims go in pairs: got {self.layers} and {self.trims}")

    def names(self) -> list[str]:
        """The name of each layer's vector."""
        pairs = zip(self.layers, self.trims, strict=True)
        return [sta_name(layer, self.mode, trim) for layer, trim in pairs]


def sta_name(layer: int, mode: str, trim: float) -> str:
    """EasyEdit2's name for a vector of STA."""
    return f"layer_{layer}_{mode}_trim{trim}"


@dataclass(kw_only=True)
class AddMergedVectors(AddVectors):
    """The same for merged vectors, whose files have a longer name."""

    def names(self) -> list[str]:
        """The name of each layer's vector."""
        return [f"layer_{layer}_merged_vector" for layer in self.layers]

    def interventions(
        self, model: SteeredModel, vectors: Mapping[str, Tensor]
    ) -> list[Intervention]:
        """One `EditLayer` for each of `layers`; EasyEdit2's short names in memory are taken too."""
        short = {name: name.removesuffix("_merged_vector") for name in self.names()}
        given = {name: vectors[s] for name, s in short.items() if s in vectors}
        about = getattr(vectors, "about", {})
        return super().interventions(model, Vectors({**given, **vectors}, about))
