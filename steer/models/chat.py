"""From a user's text to what the model reads: steering prompt, system prompt, chat template."""

import logging
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ChatFormat:
    """How text is put before the model.

    Attributes:
        use_chat_template: Whether to use the tokenizer's chat template, where it has one.
        system_prompt: Text before everything; folded into the user's turn where the template
            refuses a system turn.
        enable_thinking: Handed to the template unless null.
    """

    use_chat_template: bool = False
    system_prompt: str = ""
    enable_thinking: bool | None = None

    def text(self, tokenizer: PreTrainedTokenizerBase, user_input: str) -> str:
        """What the model reads for `user_input`."""
        return build_model_input(
            user_input,
            tokenizer,
            system_prompt=self.system_prompt,
            use_chat_template=self.use_chat_template,
            enable_thinking=self.enable_thinking,
        )

    def encode(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        """Token ids of what `text` gave; special tokens are added where no template wrote them."""
        templated = self.use_chat_template and has_template(tokenizer)
        return tokenizer(text, add_special_tokens=not templated)["input_ids"]  # type: ignore[return-value]


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer brings a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def build_model_input(
    user_input: str,
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None = None,
    use_chat_template: bool | None = None,
    model_output: str | None = None,
    suffix: str | None = None,
    enable_thinking: bool | None = None,
) -> str:
    """The string a model reads for one turn of a user, and of the model where given.

    Args:
        user_input: The user's text; stripped, as are `suffix` and `model_output`.
        tokenizer: Its chat template is used if `use_chat_template` and it has one.
        system_prompt: As in `ChatFormat`.
        use_chat_template: As in `ChatFormat`.
        model_output: What the model answered.
        suffix: Put behind the user's text.
        enable_thinking: Handed to the template unless None.
    """
    text = " ".join(part.strip() for part in (user_input, suffix) if part)
    answer = None if model_output is None else model_output.strip()
    if not (use_chat_template and has_template(tokenizer)):
        if use_chat_template:
            _note_missing_template(tokenizer)
        # EasyEdit2's system prompt brings its space along, also where no text follows it.
        start = f"{system_prompt} " if system_prompt else ""
        return start + " ".join(part for part in (text, answer) if part)
    turns = [{"role": "user", "content": text}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    return conversation(turns, tokenizer, system_prompt, enable_thinking)


def conversation(
    turns: list[dict[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None = None,
    enable_thinking: bool | None = None,
) -> str:
    """The string that a model with a chat template reads before its own turn.

    Args:
        turns: `role` and `content` of each, the system's left out.
        tokenizer: Has a chat template.
        system_prompt: As in `ChatFormat`.
        enable_thinking: Handed to the template unless None.
    """
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
    if enable_thinking is not None:
        options["enable_thinking"] = enable_thinking
    if not system_prompt:
        return tokenizer.apply_chat_template(turns, **options)  # type: ignore[return-value]
    system = {"role": "system", "content": system_prompt}
    # A template refuses a system turn by raising whatever it likes; the fallback below then
    # raises again if the system turn was not the reason.
    try:
        return tokenizer.apply_chat_template([system, *turns], **options)  # type: ignore[return-value]
    except Exception as error:  # noqa: BLE001
        log.info("the chat template refuses a system turn (%s): put into the user's turn", error)
    first = {**turns[0], "content": f"{system_prompt} {turns[0]['content']}"}
    return tokenizer.apply_chat_template([first, *turns[1:]], **options)  # type: ignore[return-value]


_noted: set[str] = set()


def _note_missing_template(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.name_or_path not in _noted:
        _noted.add(tokenizer.name_or_path)
        log.warning("%s has no chat template: plain text is used", tokenizer.name_or_path)
