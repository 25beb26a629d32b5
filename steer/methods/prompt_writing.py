"""From a concept to a steering prompt, written by a language model.

AxBench (Wu et al., 2025, https://arxiv.org/abs/2501.17148, sec. 4) steers by prompts that a model
writes for a concept; the wording here is our own.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steer.endpoint import Endpoint
from steer.files import check_writable, fingerprint, locked, read_json, write_json
from steer.models import ChatFormat, EditPrompt, Intervention, SteeredModel, generate
from steer.models.facts import model_facts, template_hash
from steer.secrets import redacted

log = logging.getLogger(__name__)

INSTRUCTION = (
    "Write a prompt that makes a language model bring a concept into every answer, even if the "
    "question is about something else. Return the prompt only."
)
EXAMPLES = {
    "the sea": "Talk about the sea in every answer: bring in waves, ships and salt water.",
    "optimism": "Be full of optimism in every answer: say what may turn out well.",
    "gardens": "Talk about gardens in every answer: bring in flowers, trees and soil.",
}
CONCEPT, PROMPT = "Concept:", "Prompt:"
# Greedy. Without a template: behind examples, base models and small chat models write better so.
OWN_PARAMS: dict[str, Any] = {
    "max_new_tokens": 100,
    "do_sample": False,
    "use_chat_template": False,
    "seed": 0,
}
# Without a template nothing else ends what continues a list of examples.
PLAIN_PARAMS = {"stop_strings": ["\n\n"]}
NOT_SENT = ("do_sample", "use_chat_template")
QUOTES = dict.fromkeys(map(ord, '"“”'))


@dataclass(kw_only=True)
class PromptWriter:
    """How steering prompts are written, and where they are kept for the next time.

    Attributes:
        generate_prompt_params: For `transformers`' `generate`, over greedy search; besides
            `use_chat_template` (false) for the instruction, and `seed` (0) for sampling. For an
            endpoint, fields of its request; `max_new_tokens` and `do_sample` are translated.
        instruction: What the writer is told, before examples and concept.
        examples: Concept -> a good prompt for it.
        writer_model: A model's name at an endpoint that speaks OpenAI's API; where null, the model
            that is steered writes, unsteered.
        base_url: The endpoint; see `Endpoint`, also for where its key comes from.
        timeout: Seconds that one request may take.
        prompts_file: Where prompts are kept and found again; null keeps none.
    """

    generate_prompt_params: dict[str, Any] = field(default_factory=dict)
    instruction: str = INSTRUCTION
    examples: dict[str, str] = field(default_factory=EXAMPLES.copy)
    writer_model: str | None = None
    base_url: str | None = None
    timeout: float = 60.0
    prompts_file: str | None = "vectors/generated_prompts.json"

    def __post_init__(self) -> None:
        if self.writer_model is not None:
            self._endpoint(self.writer_model)
        elif self.base_url is not None:
            raise ValueError("base_url needs writer_model, the name of a model there")
        for key in ("seed", "use_chat_template"):
            value = self.generate_prompt_params.get(key, OWN_PARAMS[key])
            if type(value) is not type(OWN_PARAMS[key]):
                kind = "a whole number" if key == "seed" else "true or false"
                raise ValueError(f"generate_prompt_params: {key} must be {kind}: got {value!r}")

    @property
    def is_asked(self) -> bool:
        """Whether settings ask for a prompt to be written, where one may also be given."""
        return bool(self.generate_prompt_params) or self.writer_model is not None

    def write(self, model: SteeredModel, concept: str) -> str:
        """The steering prompt for `concept`: the one that is kept, else a new one.

        Raises:
            ValueError: Nothing usable was written, or `prompts_file` is broken.
            RuntimeError: The endpoint does not answer, or refuses.
            OSError: `prompts_file` cannot be written.
        """
        request = self.request(model, concept)
        key = fingerprint(request)
        prompt = self._kept().get(key, {}).get("prompt")
        if prompt is None:
            if self._place is not None:
                check_writable(self._place.parent)
            try:
                prompt = cleaned(self._answer(model, request))
            except ValueError as error:
                raise ValueError(f"concept {concept!r}: {error}") from error
            prompt = self._keep(key, {**request, "prompt": prompt})
        log.info("concept %r, steering prompt: %s", concept, prompt)
        return prompt

    def _endpoint(self, name: str) -> Endpoint:
        return Endpoint(model=name, base_url=self.base_url, timeout=self.timeout)

    def request(self, model: SteeredModel, concept: str) -> dict[str, Any]:
        """All that decides a prompt; `instruction` is what the writer reads, under `params`."""
        given, concept = self.generate_prompt_params, concept.strip()
        if self.writer_model is None:
            writer = {**model_facts(model), "chat_template_sha256": template_hash(model)}
            plain = {} if given.get("use_chat_template") else PLAIN_PARAMS
            params = OWN_PARAMS | plain | given
        else:
            endpoint = self._endpoint(self.writer_model)
            writer = {"endpoint": endpoint.url, "model": endpoint.model}
            params = _for_endpoint(given)
        pairs = [f"{CONCEPT} {c}\n{PROMPT} {p}" for c, p in self.examples.items()]
        text = "\n\n".join([self.instruction, *pairs, f"{CONCEPT} {concept}\n{PROMPT}"])
        return {"concept": concept, "instruction": text, "writer": writer, "params": params}

    def _answer(self, model: SteeredModel, request: Mapping[str, Any]) -> str:
        text, params = request["instruction"], dict(request["params"])
        if self.writer_model is not None:
            return self._endpoint(self.writer_model).ask(text, params)
        seed, template = params.pop("seed"), params.pop("use_chat_template")
        chat = ChatFormat(use_chat_template=template, enable_thinking=False)
        (answer,) = generate(model, [text], chat=chat, steered=False, seeds=[(seed,)], **params)
        if len(answer.new_ids) == params["max_new_tokens"]:
            log.warning("a steering prompt was cut off at max_new_tokens: %r", answer.text)
        return answer.text

    @property
    def _place(self) -> Path | None:
        return None if self.prompts_file is None else Path(self.prompts_file).expanduser()

    def _kept(self) -> dict[str, dict[str, Any]]:
        """What is in `prompts_file`, by the fingerprint of its request."""
        if self._place is None:
            return {}
        entries = read_json(self._place) if self._place.exists() else {}
        every = entries.values() if isinstance(entries, dict) else [None]
        if not all(isinstance(e, dict) and _is_text(e.get("prompt")) for e in every):
            raise ValueError(
                f"{self._place} does not hold generated prompts: remove it, or give another "
                "prompts_file"
            )
        return entries

    def _keep(self, key: str, entry: dict[str, Any]) -> str:
        """Add an entry, unless another run has done so meanwhile; the prompt that is kept."""
        if self._place is None:
            return entry["prompt"]
        with locked(self._place):
            entries = self._kept()
            kept = entries.setdefault(key, redacted(entry))
            write_json(self._place, entries)
        return kept["prompt"]


@dataclass(kw_only=True)
class PromptApplier(PromptWriter, ABC):
    """The apply half of what steers by text alone; subclasses say which text."""

    @abstractmethod
    def text(self, model: SteeredModel) -> str:
        """What goes before every input."""

    def load(self, model: SteeredModel) -> Mapping[str, Any]:
        """Nothing: a prompt needs no vectors."""
        del model
        return {}

    def interventions(self, model: SteeredModel, vectors: Mapping[str, Any]) -> list[Intervention]:
        """One `EditPrompt`, the same for every row."""
        del vectors
        return [EditPrompt(self.text(model))]


def cleaned(answer: str) -> str:
    """The prompt in a writer's answer, without thoughts, label and double quotes.

    Raises:
        ValueError: There is no word in it.
    """
    text = answer.rpartition("</think>")[2].partition(f"\n{CONCEPT}")[0]
    text = text.strip().removeprefix(PROMPT).translate(QUOTES).strip()
    if text.startswith("<think>") or not any(map(str.isalnum, text)):
        raise ValueError(
            f"no usable steering prompt was written, but {answer!r}; give another concept, "
            "examples or generate_prompt_params"
        )
    return text


def _for_endpoint(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of `transformers`' `generate` as fields of a request; others stay as they are."""
    sent = {k: v for k, v in params.items() if k not in (*NOT_SENT, "max_new_tokens")}
    if "max_new_tokens" in params:
        sent["max_tokens"] = params["max_new_tokens"]
    return sent if params.get("do_sample", True) else {**sent, "temperature": 0}


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
