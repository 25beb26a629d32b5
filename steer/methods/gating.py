"""Gates of the methods that edit activations: where a calibrated detector lets them act."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steer.build import pick
from steer.files import find
from steer.models import Gate, SteeredModel
from steer.models.facts import model_facts
from steer.models.gates import ROW, TOKEN
from steer.vectors import load_vectors, read_metadata


@dataclass(kw_only=True)
class Gated:
    """Which rows or tokens are steered; see `steer.models.gates.Gate`.

    Attributes:
        gate: Folder of a vector that was calibrated as a detector (`python -m steer.gates`): only
            what it detects is steered. Of several layers the one that detects best is read.
        gate_by: `row`, decided once on the prompt; or `token`, each for itself.
        gate_threshold: Instead of the calibrated one.
    """

    gate: str | None = None
    gate_by: str = ROW
    gate_threshold: float | None = None

    def check_gate(self) -> None:
        """Raise a ValueError where values do not go together."""
        pick("gate_by", self.gate_by, dict.fromkeys((ROW, TOKEN)))
        if self.gate is None and (self.gate_by != ROW or self.gate_threshold is not None):
            raise ValueError("gate_by and gate_threshold need gate: give the folder of a detector")

    def gate_of(self, model: SteeredModel) -> Gate | None:
        """The gate; None where none is asked for.

        Raises:
            ValueError: The folder's vectors are not calibrated for this, or of another model.
            FileNotFoundError: No such folder.
        """
        self.check_gate()
        if self.gate is None:
            return None
        folder = find(self.gate, "folder of a detector")
        name, entry = self._best(folder)
        found = entry["detector"]
        if found["read"] != "prompts" and self.gate_by == ROW and self.gate_threshold is None:
            raise ValueError(
                f"gate: {self.gate} was calibrated on {found['read']}, and a gate by row reads "
                "prompts: calibrate it with --on and --off, or set gate_by: token"
            )
        threshold = self.gate_threshold
        if threshold is None:
            threshold = float(found[self.gate_by]["threshold"])
        vector = load_vectors(folder, [name], model=model_facts(model))[name]
        return Gate(int(entry["layer"]), vector, threshold, self.gate_by)

    def _best(self, folder: Path) -> tuple[str, Mapping[str, Any]]:
        """The vector that detects best, and its entry."""
        entries: Mapping[str, Any] = (read_metadata(folder) or {}).get("vectors", {})
        able = [name for name, entry in entries.items() if "detector" in entry]
        if not able:
            raise ValueError(
                f"gate: {self.gate} has no vector that was calibrated as a detector: run python -m "
                f"steer.gates calibrate {self.gate} --on FILE --off FILE"
            )
        name = max(able, key=lambda one: entries[one]["detector"][self.gate_by]["quality"])
        return name, entries[name]

    def detection(self) -> Mapping[str, Any] | None:
        """How well the detector does on what it was calibrated on; None where there is no gate.

        Raises:
            ValueError: As `gate_of`, and so is the other.
            FileNotFoundError: As there.
        """
        if self.gate is None:
            return None
        return self._best(find(self.gate, "folder of a detector"))[1]["detector"][self.gate_by]
