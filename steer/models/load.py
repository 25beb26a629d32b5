"""From a name or a path to a model ready to be steered; weights in use are never read twice."""

import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from steer import processes
from steer.build import pick
from steer.files import find, fingerprint
from steer.models.chat import ChatFormat
from steer.models.embedded import EMBEDDED, embedded_checkpoint
from steer.models.steered_model import SteeredModel
from steer.progress import is_shown

DTYPES = {
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float32": torch.float32,
    "fp32": torch.float32,
    "float64": torch.float64,
    "fp64": torch.float64,
}


@dataclass(kw_only=True)
class ModelSource:
    """A causal language model, as `transformers` names it.

    Attributes:
        model_name_or_path: `SmolLM2-135M-Instruct` (embedded), a Hub id, a folder or a .gguf file.
        dtype: `auto` is bfloat16 on a GPU that has it, else float32; or a torch dtype's name.
        device: `auto` is cuda, mps or cpu, whichever is there first; or a torch device.
        device_map: Handed to accelerate (`auto`, or a mapping) to spread over several devices.
            Not where a launcher started several processes: each has the whole model.
        load_in_8bit: Quantise with bitsandbytes.
        load_in_4bit: Quantise with bitsandbytes.
        revision: Of a Hub id.
        trust_remote_code: Whether code that comes with the model may run.
        model_kwargs: More for `from_pretrained`.
    """

    model_name_or_path: str = EMBEDDED
    dtype: str = "auto"
    device: str = "auto"
    device_map: Any = None
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    revision: str | None = None
    trust_remote_code: bool = False
    model_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dtype = str(self.dtype or "auto").removeprefix("torch.")
        if self.dtype != "auto":
            pick("dtype", self.dtype, DTYPES | {"auto": torch.float32})
        if self.load_in_8bit and self.load_in_4bit:
            raise ValueError("load_in_8bit and load_in_4bit exclude each other")
        if self.device_map is not None and processes.count() > 1:
            raise ValueError(
                "device_map spreads one model over the devices, and each of the "
                f"{processes.count()} processes that were launched loads a model of its own: "
                "leave device_map out, or start one process"
            )
        self.device = str(choose_device(self.device))

    def load(self) -> SteeredModel:
        """The model with steering of its own; weights are shared with others of this source.

        Raises:
            ValueError: An encoder-decoder model, or one that is nowhere to be had.
        """
        key = fingerprint(asdict(self) | {"dtype": str(self._dtype())})
        model = _in_use.get(key)
        if model is None:
            model, tokenizer = self._read()
            _in_use[key] = model
            _tokenizers[model] = tokenizer
        _latest[:] = [model]
        return SteeredModel(model, _tokenizers[model])

    def structure(self) -> SteeredModel:
        """The model without weights: what methods and tokens need to know of it.

        Raises:
            ValueError: As for `load`.
        """
        config, tokenizer = self._config(), self.tokenizer()
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config,
                dtype=self._dtype(),
                trust_remote_code=self.trust_remote_code,
                **self._own_code(config),
            )
        place, options = self.place()
        # A model without a file of its own for generation is no error.
        with suppress(OSError):
            model.generation_config = GenerationConfig.from_pretrained(
                place, revision=options["revision"]
            )
        return SteeredModel(model.requires_grad_(False), tokenizer)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer alone: no weights are read.

        Raises:
            ValueError: There is none to be had.
        """
        place, options = self.place()
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(place, **options)
        except (OSError, ValueError) as error:
            raise self._unreadable(place, error) from error
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        # For whoever makes batches by hand: decoder models go on behind the last column.
        tokenizer.padding_side = "left"
        return tokenizer

    def _config(self) -> Any:
        place, options = self.place()
        try:
            config = AutoConfig.from_pretrained(place, **options)
        except (OSError, ValueError) as error:
            raise self._unreadable(place, error) from error
        _refuse_encoder_decoder(self.model_name_or_path, config)
        return config

    def _own_code(self, config: Any) -> dict[str, Any]:
        """Options for code that the model brings itself: it is read at the model's revision."""
        code = getattr(config, "auto_map", {}).get(AutoModelForCausalLM.__name__, "--")
        known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
        # Code that was registered, as after the first time, is not read and takes no revision.
        registered = known is not None and not known.__module__.startswith("transformers.")
        read = self.trust_remote_code and "--" not in code and not registered
        return {"code_revision": self.revision} if read else {}

    def _read(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        place, options = self.place()
        self._config()
        tokenizer = self.tokenizer()
        if not is_shown():
            disable_progress_bar()
        try:
            model = AutoModelForCausalLM.from_pretrained(place, **options, **self._weights())
        except (OSError, ValueError, SafetensorError) as error:
            raise self._unreadable(place, error) from error
        return model.eval().requires_grad_(False), tokenizer

    def _unreadable(self, place: Path | str, error: Exception) -> ValueError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        name = self.model_name_or_path
        if Path(place).exists():
            return ValueError(f"no model can be read from {name!r}: {reason}")
        return ValueError(
            f"no model {name!r}: not {EMBEDDED!r}, not a folder or .gguf file here, and not to be "
            f"had from the Hugging Face Hub ({reason}); a gated model needs HF_TOKEN in the "
            "environment"
        )

    def place(self) -> tuple[Path | str, dict[str, Any]]:
        """The folder or Hub id that holds the weights, and options for who reads it."""
        name = self.model_name_or_path
        options = {"trust_remote_code": self.trust_remote_code, "revision": self.revision}
        if name == EMBEDDED:
            return embedded_checkpoint(), options
        if name.endswith(".gguf"):
            path = find(name, "model file")
            return path.parent, {**options, "gguf_file": path.name}
        if name.startswith((".", "/", "~")) or Path(name).is_absolute() or Path(name).is_dir():
            folder = find(name, "model folder")
            if not (folder / "config.json").is_file():
                raise FileNotFoundError(f"{name} holds no model: there is no config.json in it")
            return folder, options
        return name, options

    def _dtype(self) -> torch.dtype:
        return DTYPES.get(self.dtype) or auto_dtype(torch.device(self.device))

    def _weights(self) -> dict[str, Any]:
        quantised = self.load_in_8bit or self.load_in_4bit
        settings = BitsAndBytesConfig(
            load_in_8bit=self.load_in_8bit, load_in_4bit=self.load_in_4bit
        )
        return {
            "dtype": self._dtype(),
            "device_map": self.device_map or {"": self.device},
            **({"quantization_config": settings} if quantised else {}),
            **self.model_kwargs,
        }


@dataclass(kw_only=True)
class ModelAndChat(ModelSource, ChatFormat):
    """A model, and how text is put before it."""

    @property
    def source(self) -> ModelSource:
        """The model."""
        return ModelSource(**{f.name: getattr(self, f.name) for f in fields(ModelSource)})

    @property
    def chat(self) -> ChatFormat:
        """How text is put before it."""
        return ChatFormat(**{f.name: getattr(self, f.name) for f in fields(ChatFormat)})


# Weights that somebody still holds, and the ones read last: a generator may be gone before the
# applier that goes on with its model is made.
_in_use: weakref.WeakValueDictionary[str, PreTrainedModel] = weakref.WeakValueDictionary()
_tokenizers: weakref.WeakKeyDictionary[PreTrainedModel, PreTrainedTokenizerBase] = (
    weakref.WeakKeyDictionary()
)
_latest: list[PreTrainedModel] = []


def choose_device(device: str | int | torch.device) -> torch.device:
    """The device of that name; for `auto` the best there is.

    Of several processes of a launcher each gets a GPU of its own where none is named by number.

    Raises:
        ValueError: No such device, or none of its kind on this machine.
    """
    named = _best_device() if str(device) == "auto" else device
    try:
        chosen = torch.device(f"cuda:{named}" if str(named).isdecimal() else named)
    except RuntimeError as error:
        raise ValueError(
            f"device {device!r} is not one: use auto, cpu, mps, cuda or cuda:N"
        ) from error
    there = {
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(chosen.type)
    if there is not None and (chosen.index or 0) >= there:
        raise ValueError(
            f"device {str(chosen)!r} is not on this machine ({there} {chosen.type} devices seen "
            f"by torch {torch.__version__}); use device: auto, or device: cpu"
        )
    if there and chosen.type == "cuda" and chosen.index is None and processes.count() > 1:
        return torch.device("cuda", processes.number_here() % there)
    return chosen


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def auto_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU that computes in it, else float32."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def _refuse_encoder_decoder(name: str, config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name} is an encoder-decoder model ({config.model_type}): only decoder models can "
            "be steered; choose a causal language model"
        )


def get_model(hparams: Any) -> tuple[SteeredModel, PreTrainedTokenizerBase]:
    """EasyEdit2's loader: the model that `hparams` (mapping or object) names, and its tokenizer."""
    values = hparams if isinstance(hparams, Mapping) else vars(hparams)
    named = {f.name: values[f.name] for f in fields(ModelSource) if values.get(f.name) is not None}
    if "torch_dtype" in values and "dtype" not in named:
        named["dtype"] = values["torch_dtype"]
    model = ModelSource(**named).load()
    return model, model.tokenizer
