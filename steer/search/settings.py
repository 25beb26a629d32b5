"""Keys of hparams/Steer/search.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from steer.build import build, check_batch_size, check_value, pick, plain
from steer.datasets import SOURCES
from steer.method_files import field_names, respelled
from steer.methods import METHODS_CLASS_DICT
from steer.methods.activation_addition import POSITIONS
from steer.models.load import ModelAndChat
from steer.secrets import refuse_secrets

# Methods that learn from pairs: what a search can compare.
TRAINABLE = [name for name, row in METHODS_CLASS_DICT.items() if hasattr(row.get("train"), "train")]
USUAL = ["caa", "pca", "probe"]
DOSES = [0.04, 0.08, 0.12, 0.17, 0.24, 0.34]
# Keys of methods that a search does not follow, and what to do instead.
LEFT_OUT = {
    "gate": "left out of a search: give it to vectors_apply.py",
    "multipliers": "left out of a search: doses are what it tries",
    "strength": "left out of a search: doses are shares of the residual norm",
    "direction_layer": "left out of a search: layers are what it tries",
}


@dataclass(kw_only=True)
class Limits:
    """The price that steering may have.

    Attributes:
        max_kl: KL(unsteered || steered) on neutral texts, in nats a token.
        max_perplexity_ratio: Of steered over unsteered answers, under the untouched model.
        max_repetition: How much more of an answer's 3-grams are repeats, 0 to 1.
        max_refusal: How many more harmless prompts are refused, 0 to 1.
    """

    max_kl: float = 0.3
    max_perplexity_ratio: float = 1.5
    max_repetition: float = 0.1
    max_refusal: float = 0.1


@dataclass(kw_only=True)
class SearchSettings(ModelAndChat, Limits):
    """What is searched, by what, and how long; see also `ModelSource`, `ChatFormat`, `Limits`.

    Attributes:
        seed: For everything random.
        batch_size: Rows in a pass; `auto` suits the device.
        steer_train_dataset: Names of data sets, or files of pairs: each is searched on its own.
        train_fields: Of those files, our name of a field -> theirs.
        verdict_dataset: A file of pairs that are kept for the verdict; where null the data set's
            own held-out file, else a quarter of the pairs.
        generation_data: Prompts to answer; where null those of the data set, else its questions.
        data_source: `file`, `hub`, `sample` or `auto`.
        methods: To compare, each as its shipped method files say. Null is caa, pca and probe; for
            a bake-off all that learn from pairs.
        layers: Decoder blocks; eight evenly spaced ones where null.
        doses: Strengths, as shares of the layer's residual norm. Methods that do not add a vector
            take multiples of what their method file says instead.
        positions: Tokens to steer, each tried: names as in method files.
        budget_minutes: For each data set.
        budget_tokens: Counts instead of minutes where given.
        max_new_tokens: Of each answer.
        output_dir: Where report and vectors go, in a folder for each data set.
        bake_off: Search for each method by itself, with an equal share of the budget.
        resume: Go on where a killed run of the same settings stopped.
        more: Keys of method files, which hold for every method that has them.
    """

    seed: int = 42
    batch_size: str = "auto"
    steer_train_dataset: list[str] = field(default_factory=list)
    train_fields: dict[str, Any] = field(default_factory=dict)
    verdict_dataset: str | None = None
    generation_data: str | None = None
    data_source: str = "auto"
    methods: list[str] | None = None
    layers: list[int] | None = None
    doses: list[float] = field(default_factory=lambda: list(DOSES))
    positions: list[str] = field(default_factory=lambda: ["all"])
    budget_minutes: float = 10.0
    budget_tokens: int | None = None
    max_new_tokens: int = 28
    output_dir: str = "search"
    bake_off: bool = False
    resume: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        pick("data_source", self.data_source, dict.fromkeys(SOURCES))
        check_batch_size(self.batch_size)
        for name in self.chosen:
            pick("method to search", name, dict.fromkeys(TRAINABLE))
        for name in self.positions:
            pick("positions", name, POSITIONS)
        for name in ("steer_train_dataset", "methods", "doses", "positions"):
            value = getattr(self, name)
            check_value(name, value, "a list of one or more", value is None or bool(value))
        check_value("doses", self.doses, "numbers above 0", all(dose > 0 for dose in self.doses))
        check_value("layers", self.layers, "null or one or more", self.layers != [])
        for name, wanted in LEFT_OUT.items():
            check_value(name, self.more.get(name), wanted, self.more.get(name) is None)
        check_value("budget_minutes", self.budget_minutes, "above 0", self.budget_minutes > 0)
        some = self.budget_tokens is None or self.budget_tokens > 0
        check_value("budget_tokens", self.budget_tokens, "null or above 0", some)
        check_value("max_new_tokens", self.max_new_tokens, "1 or more", self.max_new_tokens >= 1)

    @classmethod
    def of(cls, cfg: Any) -> tuple["SearchSettings", dict[str, str]]:
        """The settings, and where each came from.

        Keys that are of method files go into `more`.

        Raises:
            ValueError: An unknown key, a wrong type or value.
        """
        raw = plain(cfg, "config")
        origin: dict[str, str] = raw.pop("origin_of", {})
        for key, value in raw.items():
            refuse_secrets({key: value}, origin.get(key, "config"))
        values = respelled(raw, "config", origin)
        listed = ("steer_train_dataset", "methods", "positions")
        values |= {k: [values[k]] for k in listed if isinstance(values.get(k), str)}
        known = field_names(cls) - {"more"}
        rows = [METHODS_CLASS_DICT[name] for name in TRAINABLE]
        halves = {key for row in rows for half in row.values() for key in field_names(half)}  # type: ignore[arg-type]
        more = {k: v for k, v in values.items() if k not in known and k in halves}
        given = {k: v for k, v in values.items() if k not in more}
        return build(cls, {**given, "more": more}, origin), origin

    @property
    def chosen(self) -> list[str]:
        """The methods."""
        if self.methods is not None:
            return self.methods
        return TRAINABLE if self.bake_off else USUAL

    @property
    def limits(self) -> Limits:
        """The price that steering may have."""
        return Limits(**{f.name: getattr(self, f.name) for f in fields(Limits)})

    def of_every_run(self) -> Mapping[str, Any]:
        """Keys of a run's config that are the same for every method."""
        names = (*field_names(ModelAndChat), "seed", "batch_size")
        return {name: getattr(self, name) for name in names}
