"""A run's settings: the top-level config and the method files that it lists, merged and checked.

Where a key is given more than once, the first of these holds: command line, top-level file, the
phase's section of the method file (`generate:` or `apply:`), the rest of the method file, default.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from steer.build import build, pick, unknown
from steer.files import find
from steer.methods import LATER, METHODS_CLASS_DICT
from steer.models import ChatFormat
from steer.models.load import ModelSource

# Other spellings in use -> ours.
ALIASES = {
    "steer_vector_output_dir": "steer_vector_output_dirs",
    "steer_vector_load_dirs": "steer_vector_load_dir",
    "torch_dtype": "dtype",
}
METHOD_ALIASES = {"desities": "densities", "concepts_id": "concept_id"}
# Keys of EasyEdit2's files that nothing here depends on.
WITHOUT_EFFECT = ("save_activations", "use_cache", "max_length")
PHASES = {"generate": "train", "apply": "apply"}
REPORTS = ("off", "basic", "full")
SECRETS = ("api_key", "token", "hf_token", "openai_api_key", "np_api_key", "password")


@dataclass(kw_only=True)
class Settings(ModelSource, ChatFormat):
    """The top of a config; see `ModelSource` and `ChatFormat` for the model and the text.

    Attributes:
        seed: For everything random.
        batch_size: Rows in a pass; `auto` suits the device and halves when memory runs out.
        steer_train_hparam_paths: Method files for generating vectors.
        steer_train_dataset: Names of data sets (`dataset_format.yaml`, section train).
        steer_vector_output_dirs: For each of those method files where its vectors go; one for all.
        save_vectors: Whether vectors are written.
        apply_steer_hparam_paths: Method files for applying.
        steer_vector_load_dir: For each of those where its vectors are; one for all.
        generation_data: Names of data sets (section generation).
        generation_data_size: Only the first so many rows; all where null or not above 0.
        generation_output_dir: Where results go.
        num_responses: Answers to each row.
        generate_orig_output: Whether to answer without steering too.
        generation_params: For `transformers`' `generate`.
        report: `off`, `basic` (hook counts and dose) or `full` (effect, damage) as well.
        resume: Go on where a killed run of the same settings stopped.
        vllm_enable: Not built yet; refused.
    """

    seed: int = 42
    batch_size: str = "auto"
    steer_train_hparam_paths: Any = None
    steer_train_dataset: Any = None
    steer_vector_output_dirs: Any = None
    save_vectors: bool = True
    apply_steer_hparam_paths: Any = None
    steer_vector_load_dir: Any = None
    generation_data: Any = None
    generation_data_size: int | None = None
    generation_output_dir: str | None = None
    num_responses: int = 1
    generate_orig_output: bool = False
    generation_params: dict[str, Any] = field(default_factory=dict)
    report: str = "basic"
    resume: bool = False
    vllm_enable: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in LISTS:
            value = getattr(self, name)
            setattr(self, name, [value] if isinstance(value, str) else list(value or []))
        pick("report", self.report, dict.fromkeys(REPORTS))
        if self.num_responses < 1:
            raise ValueError(f"num_responses must be 1 or more: got {self.num_responses}")
        if self.batch_size != "auto" and not (self.batch_size.isdigit() and int(self.batch_size)):
            raise ValueError(f"batch_size must be auto or 1 and more: got {self.batch_size!r}")
        if self.vllm_enable:
            raise ValueError("vllm_enable: vLLM is not supported yet; set vllm_enable: false")

    @property
    def source(self) -> ModelSource:
        """The model."""
        return ModelSource(**{f.name: getattr(self, f.name) for f in fields(ModelSource)})

    @property
    def chat(self) -> ChatFormat:
        """How text is put before it."""
        return ChatFormat(**{f.name: getattr(self, f.name) for f in fields(ChatFormat)})


LISTS = (
    "steer_train_hparam_paths",
    "steer_train_dataset",
    "steer_vector_output_dirs",
    "apply_steer_hparam_paths",
    "steer_vector_load_dir",
    "generation_data",
)


@dataclass
class MethodSettings:
    """One entry of a list of method files.

    Attributes:
        name: Its row in METHODS_CLASS_DICT.
        half: The dataclass of that row, filled.
        output_dir: Where its vectors go; None when applying.
    """

    name: str
    half: Any
    output_dir: str | None = None


@dataclass
class Run:
    """All settings of a run, and where each came from.

    Attributes:
        settings: The top level.
        methods: By key; the second entry of one method has the key `caa_2`.
        origin: `key`, or `method.key`, -> the file, `command line` or `default`.
    """

    settings: Settings
    methods: dict[str, MethodSettings]
    origin: dict[str, str]

    @classmethod
    def of(cls, cfg: Any, phase: str) -> "Run":
        """Read, merge and check.

        Args:
            cfg: An OmegaConf config, a mapping, or a path to a YAML file. Its key `origin_of`,
                if any, maps keys to where they came from.
            phase: `generate` or `apply`.

        Raises:
            ValueError: An unknown key, a wrong type or value; the message names file and key.
            FileNotFoundError: A file that is named is not there.
        """
        top, origin = _top_level(cfg)
        paths = top.get(f"{'steer_train' if phase == 'generate' else 'apply_steer'}_hparam_paths")
        files = [_MethodFile.read(p, phase) for p in ([paths] if isinstance(paths, str) else paths or [])]
        lent: dict[str, str] = {}
        for file in files:
            file.lend(top, origin, lent)
        _check_top_keys(top, origin)
        known = {f.name for f in fields(Settings)}
        settings = build(Settings, {k: v for k, v in top.items() if k in known}, origin)
        run = cls(settings, {}, {f.name: origin.get(f.name, "default") for f in fields(Settings)})
        for number, file in enumerate(files):
            run._add(file, number, top, origin)
        return run

    def _add(self, file: "_MethodFile", number: int, top: dict[str, Any], origin: dict[str, str]) -> None:
        names = {f.name for f in fields(file.half)}
        here = {k: origin[k] for k in top if k in names}
        values = file.values | {k: top[k] for k in here}
        key = _free_key(file.name, self.methods)
        settings, phase = self.settings, file.phase
        if phase == "apply" and "steer_vector_load_dir" in names and settings.steer_vector_load_dir:
            values["steer_vector_load_dir"] = _nth(settings.steer_vector_load_dir, number)
        sources = {k: file.path for k in file.values} | here
        half = build(file.half, values, sources)
        output = None
        if phase == "generate":
            output = _nth(settings.steer_vector_output_dirs or [file.output_dir], number)
        self.methods[key] = MethodSettings(file.name, half, output)
        self.origin |= {f"{key}.{name}": sources.get(name, "default") for name in sorted(names)}
        _refuse_shared_folder(self.methods, phase)

    def as_dict(self) -> dict[str, Any]:
        """All values, for a saved config or a fingerprint."""
        methods = {k: {"alg_name": m.name, **asdict(m.half)} for k, m in self.methods.items()}
        return {**asdict(self.settings), "methods": methods}


@dataclass
class _MethodFile:
    path: str
    phase: str
    name: str
    half: type
    values: dict[str, Any]
    base: dict[str, Any]
    output_dir: str | None

    @classmethod
    def read(cls, path: str, phase: str) -> "_MethodFile":
        raw = read_yaml(path, "method file")
        name = raw.get("alg_name")
        if not isinstance(name, str):
            raise ValueError(f"{path}: alg_name is missing; it names the method, e.g. alg_name: caa")
        half = _half(path, name, phase)
        merged = "generate" in raw or "apply" in raw
        sections = {p: _section(path, raw, p) for p in PHASES}
        shared = {k: v for k, v in raw.items() if k not in ("alg_name", *PHASES)}
        names = {f.name for f in fields(half)}
        both = names | {f.name for row in METHODS_CLASS_DICT[name].values() for f in fields(row)}  # type: ignore[arg-type]
        for keys, allowed in ((shared, both if merged else names), (sections[phase], names)):
            for key in keys:
                if METHOD_ALIASES.get(key, key) not in allowed | BASE_KEYS:
                    raise ValueError(f"{path}: {unknown(f'key of {name} ({phase})', key, allowed)}")
        values = {METHOD_ALIASES.get(k, k): v for k, v in (shared | sections[phase]).items()}
        own = {k: v for k, v in values.items() if k in names}
        base = {ALIASES.get(k, k): v for k, v in values.items() if k in BASE_KEYS and k not in names}
        return cls(str(path), phase, name, half, own, base, base.pop("steer_vector_output_dirs", None))

    def lend(self, top: dict[str, Any], origin: dict[str, str], lent: dict[str, str]) -> None:
        """Give the top level what it leaves open: the model, its dtype, a seed and the like."""
        for key, value in self.base.items():
            if key not in top:
                top[key], origin[key], lent[key] = value, self.path, self.path
            elif key in lent and top[key] != value:
                raise ValueError(
                    f"{self.path}: {key} is {value!r}, but {top[key]!r} in {lent[key]}: "
                    "give it at the top level"
                )


BASE_KEYS = (
    {f.name for f in fields(Settings)} | set(ALIASES) | set(WITHOUT_EFFECT)
) - set(LISTS)  # fmt: skip


def _half(path: str, name: str, phase: str) -> type:
    if name in LATER:
        raise ValueError(f"{path}: {LATER[name]} ({name}) is not supported yet")
    row = pick("method", name, METHODS_CLASS_DICT)
    if PHASES[phase] not in row:
        raise ValueError(f"{path}: vectors of {name} cannot be generated yet, only applied")
    return row[PHASES[phase]]  # type: ignore[literal-required]


def _section(path: str, raw: Mapping[str, Any], phase: str) -> dict[str, Any]:
    section = raw.get(phase)
    if section is not None and not isinstance(section, dict):
        raise ValueError(f"{path}: {phase} must be a mapping: got {type(section).__name__}")
    return section or {}


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: Broken YAML, or not a mapping.
        FileNotFoundError: No such file, here or in the project.
    """
    place = find(path, what)
    try:
        value = OmegaConf.to_container(OmegaConf.load(place), resolve=True)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a mapping: got {type(value).__name__}")
    return {str(key): item for key, item in value.items()}


def _top_level(cfg: Any) -> tuple[dict[str, Any], dict[str, str]]:
    if isinstance(cfg, str | Path):
        raw, label = read_yaml(cfg, "config"), str(cfg)
    else:
        label = "config"
        resolved = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else cfg
        raw = {str(k): v for k, v in resolved.items()}
    places: dict[str, str] = raw.pop("origin_of", {})
    top: dict[str, Any] = {}
    for key, value in raw.items():
        name = ALIASES.get(key, key)
        if key.lower() in SECRETS:
            raise ValueError(f"{key}: keys and tokens come from the environment only; remove it")
        if name in top and top[name] != value:
            raise ValueError(f"{name} is given twice, as {key} too: {top[name]!r} and {value!r}")
        top[name] = value
    return top, {ALIASES.get(k, k): places.get(k, label) for k in raw}


def _check_top_keys(top: dict[str, Any], origin: Mapping[str, str]) -> None:
    methods = {f.name for row in METHODS_CLASS_DICT.values() for h in row.values() for f in fields(h)}  # type: ignore[arg-type]
    # A key of either phase may stand in a config that serves both.
    allowed = {f.name for f in fields(Settings)} | methods | set(WITHOUT_EFFECT)
    for key in top:
        if key not in allowed and not key.startswith("vllm_"):
            raise ValueError(f"{origin[key]}: {unknown('key', key, allowed)}")


def _free_key(name: str, taken: Mapping[str, Any]) -> str:
    number = 1 + sum(method.name == name for method in taken.values())
    return name if number == 1 else f"{name}_{number}"


def _nth(values: list[Any], number: int) -> Any:
    return values[number] if number < len(values) else values[0]


def _refuse_shared_folder(methods: Mapping[str, MethodSettings], phase: str) -> None:
    if phase != "generate":
        return
    seen: dict[tuple[str | None, str], str] = {}
    for key, method in methods.items():
        place = (method.output_dir, method.half.folder)
        if place in seen and method.output_dir is not None:
            raise ValueError(
                f"{seen[place]} and {key} would both write {place[1]} below {place[0]}: give "
                "each an entry of its own in steer_vector_output_dirs"
            )
        seen[place] = key
