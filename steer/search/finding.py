"""What a search found, as `search.json` holds it and the report shows it."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from steer.models.facts import model_facts
from steer.search.candidates import Workshop
from steer.search.choosing import Chosen
from steer.search.halving import Tried
from steer.search.splitting import Splits
from steer.search.verdict import Verdict

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Found:
    """All parts of it.

    Attributes:
        tried: Every setting.
        finalists: Those compared on all pairs.
        chosen: What was made of them.
        verdict: On the pick.
        examples: See `shifts.examples`.
        folder: Where the pick's vectors are; None without one.
    """

    tried: Sequence[Tried]
    finalists: Sequence[Tried]
    chosen: Chosen
    verdict: Verdict
    examples: Sequence[dict[str, Any]]
    folder: str | None

    def as_dict(self, workshop: Workshop, splits: Splits, budget: dict[str, Any]) -> dict[str, Any]:
        """JSON-like."""
        settings, pick = workshop.settings, self.chosen.pick
        verdict = asdict(self.verdict)
        return {
            "format_version": FORMAT_VERSION,
            "dataset": workshop.dataset,
            "model": model_facts(workshop.model),
            "settings": asdict(settings),
            "data": {
                "train": len(splits.train),
                "select": len(splits.select),
                "verdict": len(splits.verdict),
                "source": splits.source,
            },
            "budget": budget,
            "limits": asdict(settings.limits),
            "tried": [_tried(one) for one in self.tried],
            "finalists": [self._finalist(one) for one in self.finalists],
            "pick": pick and asdict(pick) | {"values": workshop.values(pick)},
            "verdict": verdict,
            "examples": list(self.examples),
            "folder": self.folder,
            "peak_mib": peak_mib(),
        }

    def _finalist(self, one: Tried) -> dict[str, Any]:
        low, high = one.interval()
        damage = self.chosen.damages.get(one.candidate)
        return _tried(one) | {
            "low": low,
            "high": high,
            "damage": damage and asdict(damage),
            "in_band": one.candidate in self.chosen.band,
        }


def _tried(one: Tried) -> dict[str, Any]:
    return asdict(one.candidate) | {
        "name": str(one.candidate),
        "pairs": len(one.changes),
        "effect": one.mean,
        "kl": one.kl,
    }


def peak_mib() -> float | None:
    """The most memory that this process has held, the model included; None on Windows."""
    if sys.platform == "win32":
        return None
    # Python for Windows does not have it.
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
