"""A server's settings, checked before anything is loaded."""

from dataclasses import dataclass, fields
from ipaddress import ip_address
from typing import Any

from steer.build import build, check_above_zero, check_batch_size, check_value, plain
from steer.engines.options import EngineOptions
from steer.models.load import ModelSource
from steer.secrets import refuse_secrets


@dataclass(kw_only=True)
class Limits:
    """What a client may ask for.

    Attributes:
        max_loaded: Vectors loaded at once.
        max_vector_mb: Size of a vector's files on disk.
        max_vectors: Vectors of one request.
        max_strength: Of a vector, either way.
        max_prompt_tokens: Tokens of a prompt.
        max_answer_tokens: Tokens of an answer; also what a chat gets that does not say.
        max_choices: Answers of one request.
        max_waiting: Answers that wait for a row; more are refused with status 429.
        max_body_kb: Size of a request's JSON.
    """

    max_loaded: int = 64
    max_vector_mb: float = 64.0
    max_vectors: int = 8
    max_strength: float = 20.0
    max_prompt_tokens: int = 4096
    max_answer_tokens: int = 1024
    max_choices: int = 8
    max_waiting: int = 512
    max_body_kb: int = 1024


@dataclass(kw_only=True)
class ServeSettings(ModelSource, EngineOptions, Limits):
    """See `ModelSource`, `EngineOptions` and `Limits` for the rest.

    Attributes:
        batch_size: Answers made at once; `auto` suits the device and halves when memory runs out.
        system_prompt: For conversations that bring none.
        enable_thinking: Handed to the chat template unless null.
        vector_dir: Where vectors are: every folder in it, at any depth, that holds .pt files.
        vectors: Names of those loaded from the start, where None all that fit; the others wait for
            a request to load them.
        allow_mismatch: Load vectors that were made with another model all the same.
        host: Address to listen at.
        port: 0 takes a free one.
        api_key_file: File with one key a line, beside those of STEER_API_KEYS in the environment.
        allow_anonymous: Serve without keys, to this machine alone.
    """

    batch_size: str = "auto"
    system_prompt: str = ""
    enable_thinking: bool | None = None
    vector_dir: str
    vectors: list[str] | None = None
    allow_mismatch: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: str | None = None
    allow_anonymous: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_engine()
        check_above_zero(self, (limit.name for limit in fields(Limits)))
        check_batch_size(self.batch_size)
        check_value(
            *("vllm_data_parallel_size", self.vllm_data_parallel_size),
            *("1: start a server for each instead", self.vllm_data_parallel_size == 1),
        )
        check_value(
            "compile", self.compile, "false: the server has no compiled steps", not self.compile
        )
        wanted = "auto with engine: vllm, where vllm_params={max_num_seqs: 4} says it"
        own = self.engine == "vllm" and self.batch_size != "auto"
        check_value("batch_size", self.batch_size, wanted, not own)
        check_value("port", self.port, "0 to 65535", 0 <= self.port < 65536)
        if self.allow_anonymous and not self.is_local:
            raise ValueError(
                f"allow_anonymous: true and host: {self.host} exclude each other: without keys "
                "only this machine is served; set host: 127.0.0.1, or give keys"
            )

    @property
    def source(self) -> ModelSource:
        """The model."""
        return ModelSource(**{f.name: getattr(self, f.name) for f in fields(ModelSource)})

    @property
    def is_local(self) -> bool:
        """Whether no other machine can reach the server."""
        return is_loopback(self.host)

    @classmethod
    def of(cls, cfg: Any) -> "ServeSettings":
        """Those of an OmegaConf config, or a mapping; `origin_of` says where each came from.

        Raises:
            ValueError: An unknown key, a wrong type or value.
        """
        values = plain(cfg, "config")
        origin: dict[str, str] = values.pop("origin_of", {})
        for key, value in values.items():
            refuse_secrets({key: value}, origin.get(key, "config"))
        return build(cls, values, origin, "config")


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
