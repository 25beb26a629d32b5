"""LM-Steer (Han et al., 2023, https://arxiv.org/abs/2305.12798): steer at the language model head.

With steer values s_k and a small epsilon, what the head reads, h, becomes
`h + epsilon * sum_k s_k (h P1_k) P2_k^T` (multiply, the paper's) or `h + epsilon * sum_k s_k A_k`
(add); or `epsilon * sum_k s_k O_k` is added to the logits (offset). The model is as it was.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from steer.build import check_batch_size, check_value, pick
from steer.datasets import Row
from steer.files import fingerprint
from steer.head_loss import Answers, Example, HeadLoss, PaddedTexts
from steer.methods.activation_addition import AtPositions
from steer.methods.base import ALONE, Context, Trained
from steer.methods.head_adaptors import ADAPTORS, adapted, adaptor_of, check_shapes, initial
from steer.methods.labelled_texts import LabelledTexts
from steer.models import Intervention, SteeredModel
from steer.models.facts import model_facts
from steer.training import Checkpoint, Training, batches
from steer.vectors import Vectors, load_bundle

log = logging.getLogger(__name__)

NAME = "lm_steer_vector"
COMPONENTS = ("final_layer",)
OPTIMIZERS = ("Adam",)
EPSILON = 0.001
BATCH = 32
STRENGTH = 3.0  # of the trained steer, where steer_values leaves it open


@dataclass(kw_only=True)
class TrainLMSteer(LabelledTexts):
    """Learn steers from contrastive pairs, or from labelled texts.

    A text is written under the steer values 0, but its label, from -1 to 1, for `training_steer`,
    and 1 for `dummy_steer`, which learns what all texts share. The loss is their cross-entropy.

    Attributes:
        dummy_steer: The steer that is always on; null is none.
        regularization: Times the sum of squares of all that is learnt, added to the loss.
        optimizer: `Adam`.
        lr: Its learning rate.
        gamma_mean: The running mean of the loss weighs each older value this much less.
        n_steps: Steps of Adam; one pass over the data where null or -1.
        batch_size: Texts in a step; `auto` is 32. The top level's, of passes, does not count.
        log_step: The report has the loss every so many steps.
        training_steer: The steer that the label sets.
        adaptor_class: `multiply`, `add` or `offset`.
        adapted_component: `final_layer`, the language model head.
        epsilon: Times all that is done.
        init_var: Times the normal numbers that `multiply` begins with.
        rank: Of each of `multiply`'s steers.
        num_steers: How many steers there are.
        low_resource_mode: The head runs in bfloat16, which takes half the memory.
        cache_mib: Hidden states are computed once and kept where they need no more than this.
    """

    dummy_steer: int | None = 1
    regularization: float = 0.0
    optimizer: str = "Adam"
    lr: float = 0.001
    gamma_mean: float = 0.99
    n_steps: int | None = 10000
    batch_size: str = "auto"
    log_step: int = 500
    training_steer: int = 0
    adaptor_class: str = "multiply"
    adapted_component: str = "final_layer"
    epsilon: float = EPSILON
    init_var: float = 0.01
    rank: int = 1000
    num_steers: int = 2
    low_resource_mode: bool = False
    cache_mib: int = 1024
    other_at_top: ClassVar[Mapping[str, str]] = {"batch_size": "texts in a step of training"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_batch_size(self.batch_size)
        pick("optimizer", self.optimizer, dict.fromkeys(OPTIMIZERS))
        pick("adaptor_class", self.adaptor_class, ADAPTORS)
        pick("adapted_component", self.adapted_component, dict.fromkeys(COMPONENTS))
        for name in ("lr", "epsilon", "init_var"):
            check_value(name, getattr(self, name), "above 0", getattr(self, name) > 0)
        for name in ("rank", "num_steers", "log_step"):
            check_value(name, getattr(self, name), "1 or more", getattr(self, name) >= 1)
        for name in ("regularization", "cache_mib"):
            check_value(name, getattr(self, name), "0 or more", getattr(self, name) >= 0)
        check_value("gamma_mean", self.gamma_mean, "from 0 to below 1", 0 <= self.gamma_mean < 1)
        some = self.n_steps is None or self.n_steps == -1 or self.n_steps >= 1
        check_value("n_steps", self.n_steps, "1 or more, or null", some)
        steers = f"one of the {self.num_steers} steers (num_steers), counted from 0"
        for name in ("training_steer", "dummy_steer"):
            check_value(name, getattr(self, name), steers, self._is_steer(getattr(self, name)))
        if self.training_steer == self.dummy_steer:
            raise ValueError(
                f"training_steer and dummy_steer must differ: got {self.dummy_steer} for both; "
                "dummy_steer: null is none"
            )

    def _is_steer(self, number: int | None) -> bool:
        return number is None or 0 <= number < self.num_steers

    @property
    def folder(self) -> str:
        """EasyEdit2's name for it."""
        return NAME

    def train(self, model: SteeredModel, rows: Sequence[Row], context: Context = ALONE) -> Trained:
        """`projector1` and `projector2` [steers, d, rank], `add_vec` [steers, d] or `offset_vec`.

        The last is [steers, vocabulary]; all are float32.

        Raises:
            ValueError: No rows, labels of one class only, or a loss that is not finite.
        """
        examples = self.examples(model, rows)
        generator = torch.Generator().manual_seed(context.about.get("seed", 0))
        params = initial(
            *(model, self.adaptor_class, self.num_steers, self.rank, self.init_var, generator)
        )
        training = Training(params, self.lr, self.gamma_mean, self.log_step)
        steps = None if self.n_steps == -1 else self.n_steps
        size = BATCH if self.batch_size == "auto" else int(self.batch_size)
        order = batches(len(examples), size, steps, generator)
        recipe = fingerprint({"about": context.about, "hparams": asdict(self)})
        checkpoint = Checkpoint(context.folder, recipe)
        if context.resume and (state := checkpoint.load()) is not None:
            training.restore(state)
        training.run(order, self.loss(model, examples, order), checkpoint)
        found = {name: p.detach().cpu() for name, p in training.params.items()}
        return Trained(Vectors(found, self._about()), bundle=NAME, report=training.report())

    def loss(
        self, model: SteeredModel, examples: Sequence[Example], order: Sequence[Sequence[int]] = ()
    ) -> HeadLoss:
        """What is made smaller; hidden states are kept of what `order` has."""
        needed = sorted({number for numbers in order for number in numbers})
        tokens = (
            Answers(model, examples, needed, self.cache_mib * 2**20)
            if self.train_on == "answer"
            else PaddedTexts(model, examples)
        )
        edit = partial(adapted, epsilon=self.epsilon)
        return HeadLoss(model, tokens, edit, self.regularization, self.low_resource_mode)

    def examples(self, model: SteeredModel, rows: Sequence[Row]) -> list[Example]:
        """The texts of `rows` under their steer values; see `labelled`."""
        steers = [0.0] * self.num_steers
        if self.dummy_steer is not None:
            steers[self.dummy_steer] = 1.0
        before, behind = steers[: self.training_steer], steers[self.training_steer + 1 :]
        return [
            Example(text.ids, text.start, [*before, text.label, *behind])
            for text in self.labelled(model, rows)
        ]

    def _about(self) -> dict[str, dict[str, Any]]:
        names = ("adaptor_class", "epsilon", "training_steer")
        place = "logits" if self.adaptor_class == "offset" else "what the head reads"
        return {NAME: {name: getattr(self, name) for name in names} | {"hook_point": place}}


@dataclass(kw_only=True)
class ApplyLMSteer(AtPositions):
    """Put learnt steers in force.

    What the vectors know of themselves may be left out; where it is given, it must agree.

    Attributes:
        steer_values: How strongly each steer acts: 3 is three times as far as a text of label 1.
            Where null, 3 for `training_steer` and 0 for the others: the dummy steer only pulls
            towards the style of the training texts.
        adaptor_class: As in training.
        adapted_component: As in training.
        epsilon: As in training.
        init_var: As in training; of no effect here.
        rank: As in training.
        num_steers: As in training.
        steer_vector_load_dir: Folder of the vectors, where they are not handed over in memory.
        allow_mismatch: Use vectors made with another model all the same.
    """

    steer_values: list[float] | None = None
    adaptor_class: str | None = None
    adapted_component: str = "final_layer"
    epsilon: float | None = None
    init_var: float | None = None
    rank: int | None = None
    num_steers: int | None = None
    steer_vector_load_dir: str | None = None
    allow_mismatch: bool = False

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise a ValueError where values do not go together."""
        self.where()
        self.check_gate()
        pick("adapted_component", self.adapted_component, dict.fromkeys(COMPONENTS))
        if self.adaptor_class is not None:
            pick("adaptor_class", self.adaptor_class, ADAPTORS)
        values = self.steer_values
        if values is not None and not all(map(math.isfinite, values)):
            raise ValueError(f"steer_values must be finite numbers: got {values}")

    def load(self, model: SteeredModel) -> Vectors:
        """The vectors in `steer_vector_load_dir`, ours or EasyEdit2's.

        Raises:
            ValueError: No folder is given, or the vectors are of another model.
            FileNotFoundError: No folder there, or no vectors in it.
        """
        self.check()
        if self.steer_vector_load_dir is None:
            raise ValueError(
                "no vectors to apply: give steer_vector_load_dir, or apply_vectors(vectors)"
            )
        facts, allowed = model_facts(model), self.allow_mismatch
        return load_bundle(self.steer_vector_load_dir, NAME, model=facts, allow_mismatch=allowed)

    def interventions(
        self, model: SteeredModel, vectors: Mapping[str, Tensor]
    ) -> list[Intervention]:
        """One edit of what the head reads, or of the logits.

        Raises:
            ValueError: Vectors that are missing, or do not fit the model or the settings.
        """
        self.check()
        about = getattr(vectors, "about", {}).get(NAME, {})
        kind = adaptor_of(vectors, self.adaptor_class)
        steers = check_shapes(model, vectors, kind, self.num_steers, self.rank)
        values, epsilon = self._values(steers, about), self._epsilon(about)
        step = adapted(vectors, values, epsilon, self.where())
        return [replace(step, gate=self.gate_of(model))]

    def _values(self, steers: int, about: Mapping[str, Any]) -> Tensor:
        values = self.steer_values
        if values is None:
            values = [0.0] * steers
            values[about.get("training_steer", 0)] = STRENGTH
        if len(values) != steers:
            raise ValueError(
                f"steer_values has {len(values)} values {values}, the vectors have {steers} steers"
            )
        return torch.tensor(values, dtype=torch.float32)

    def _epsilon(self, about: Mapping[str, Any]) -> float:
        trained = about.get("epsilon")
        if trained is not None and self.epsilon not in (None, trained):
            raise ValueError(
                f"epsilon is {self.epsilon}, the vectors were trained with {trained}: leave it "
                "out, and set the strength by steer_values"
            )
        if trained is None and self.epsilon is None:
            log.warning("nothing says with which epsilon the vectors were trained: %s", EPSILON)
        return trained or self.epsilon or EPSILON
