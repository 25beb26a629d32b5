"""What the demo is started with, and what its visitors may ask for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from steer.build import build, check_above_zero, check_value, read_config
from steer.models.load import ModelAndChat
from steer.terminal import Parser

CONFIG = "hparams/Steer/demo.yaml"


@dataclass(kw_only=True)
class Limits:
    """What a visitor may ask for.

    Attributes:
        max_text: Characters of one field.
        max_new_tokens: Tokens of an answer.
        max_strength: Of a vector, either way.
        max_features: Of the sparse autoencoder at once.
        max_feature_strength: Of each, either way, in units of its activation.
        max_waiting: Answers that wait for a place; more are refused.
        rows: Answers made at once.
    """

    max_text: int = 2000
    max_new_tokens: int = 256
    max_strength: float = 20.0
    max_features: int = 8
    max_feature_strength: float = 400.0
    max_waiting: int = 64
    rows: int = 16

    def written(self, name: str, given: str | None) -> str:
        """What a visitor wrote, without space around it.

        Raises:
            ValueError: Nothing, or too much.
        """
        text = (given or "").strip()
        if not text:
            raise ValueError(f"{name} is empty: write some text there, or click an example")
        if len(text) > self.max_text:
            raise ValueError(
                f"{name} has {len(text)} characters, and {self.max_text} are allowed: shorten it"
            )
        return text


def number(name: str, given: float | None, least: float, most: float) -> float:
    """A number of a visitor's.

    Raises:
        ValueError: None is given, or it is out of bounds.
    """
    if given is None or not math.isfinite(given) or not least <= given <= most:
        raise ValueError(f"{name} must be a number from {least:g} to {most:g}: got {given}")
    return given


def whole(name: str, given: float | None, least: int, most: int) -> int:
    """A whole number of a visitor's.

    Raises:
        ValueError: As for `number`; also where it is not whole.
    """
    found = number(name, given, least, most)
    if found != int(found):
        raise ValueError(f"{name} must be a whole number: got {given}")
    return int(found)


@dataclass(kw_only=True)
class DemoOptions(ModelAndChat, Limits):
    """See `ModelSource`, `ChatFormat` and `Limits` for the rest.

    Attributes:
        vector_dirs: Folders in which ready vectors are looked for, at any depth.
        sae_path: A sparse autoencoder; the project's where null, if it fits the model.
        host: Address to listen at.
        port: Port there.
    """

    use_chat_template: bool = True
    vector_dirs: list[str] = field(default_factory=lambda: ["vectors"])
    sae_path: str | None = None
    host: str = "127.0.0.1"
    port: int = 8088

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(self, (limit.name for limit in fields(Limits)))
        check_value("port", self.port, "1 to 65535", 0 < self.port < 65536)


def read_options(arguments: Sequence[str]) -> DemoOptions:
    """Those of the command line, over those of the config file.

    Raises:
        ValueError: An unknown key, a wrong type or value.
        FileNotFoundError: No such config.
    """
    given, settings = _parser().parse_with_settings(arguments)
    named = {"host": given.host, "port": given.port, "model_name_or_path": given.model}
    told = [f"{key}={value}" for key, value in named.items() if value is not None]
    values = read_config(given.config, [*settings, *told])
    origin = values.pop("origin_of")
    return build(DemoOptions, values, origin, given.config)


def _parser() -> Parser:
    parser = Parser(
        description="Steer a language model in the browser.",
        epilog=f"Every key of {CONFIG} can be given as key=value.",
    )
    parser.add_argument("--model", help="the embedded model's name, a Hub id, folder or .gguf file")
    parser.add_argument("--host", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", help="port to listen at (default: 8088)")
    parser.add_argument(
        "--config", default=CONFIG, help="file of all settings (default: %(default)s)"
    )
    return parser
