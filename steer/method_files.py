"""Method files: the settings of one method, flat, or merged with a section for each phase.

A merged file has the sections `generate:` and `apply:`; what stands beside them is shared.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from steer.build import COMMAND_LINE, pick, read_yaml, unknown
from steer.files import project_root, writing
from steer.methods import LATER, METHODS_CLASS_DICT
from steer.places import filled
from steer.secrets import refuse_secrets

# Other spellings in use -> ours.
ALIASES = {
    "steer_vector_output_dir": "steer_vector_output_dirs",
    "steer_vector_load_dirs": "steer_vector_load_dir",
    "torch_dtype": "dtype",
    "train_data": "steer_train_dataset",
}
METHOD_ALIASES = {"desities": "densities"}
# Keys of EasyEdit2's files that nothing here depends on.
WITHOUT_EFFECT = (
    "save_activations",
    "use_cache",
    "max_length",
    "vllm_enable_v1_multiprocessing",
)
SHIPPED = "hparams/Steer/{method}_hparams/{file}.yaml"
PATHS = {"generate": "steer_train_hparam_paths", "apply": "apply_steer_hparam_paths"}
PHASES = {"generate": "train", "apply": "apply"}


@dataclass
class MethodFile:
    """What a method file says for one phase.

    Attributes:
        path: As it was given.
        phase: `generate` or `apply`.
        name: The method's row in METHODS_CLASS_DICT.
        half: The dataclass of that row.
        values: Its fields.
        lent: Top-level keys that the file gives, for where the top level leaves them open.
        output_dir: Where its vectors go, if the file says so.
    """

    path: str
    phase: str
    name: str
    half: type
    values: dict[str, Any]
    lent: dict[str, Any]
    output_dir: str | None

    @classmethod
    def read(cls, path: str, phase: str, lendable: Collection[str]) -> "MethodFile":
        """Read the file at `path` for `phase`; it may hold the top-level keys `lendable` too.

        Raises:
            ValueError: No method, an unknown one or key, broken YAML; the message names the file.
            FileNotFoundError: There is no such file.
        """
        raw = read_yaml(path, "method file")
        refuse_secrets(raw, path)
        name = _method(path, raw.pop("alg_name", None))
        half = _half(path, name, phase)
        merged = "generate" in raw or "apply" in raw
        sections = {p: _section(path, p, raw.pop(p, None)) for p in PHASES}
        row: Mapping[str, Any] = METHODS_CLASS_DICT[name]
        own = {p: field_names(row.get(key)) for p, key in PHASES.items()}
        _check_keys(
            path, name, raw, own["generate"] | own["apply"] if merged else own[phase], lendable
        )
        for part, section in sections.items():
            _check_keys(f"{path}: {part}", name, section, own[part], lendable)
        values = respelled(raw, path) | respelled(sections[phase], f"{path}: {phase}")
        lent = {k: v for k, v in values.items() if k in lendable and k not in own[phase]}
        mine = {k: v for k, v in values.items() if k in own[phase]}
        return cls(path, phase, name, half, mine, lent, _folder(path, values))

    @property
    def other_at_top(self) -> Mapping[str, str]:
        """Fields that mean something else at the top level -> what they mean here."""
        return getattr(self.half, "other_at_top", {})

    def notes(self, half: Any, top: Mapping[str, Any], places: Mapping[str, str]) -> list[str]:
        """Where the top level has other values for such fields of `half`."""
        return [
            f"{self.path}: {key} stays {getattr(half, key)}, {meaning}: {top[key]} "
            f"({places[key]}) does not change that"
            for key, meaning in self.other_at_top.items()
            if str(top.get(key, "auto")) not in ("auto", getattr(half, key))
        ]

    def fill_folders(self, names: Mapping[str, str]) -> None:
        """Fill `names` into the folders of vectors that the file gives; see `steer.places`."""
        if self.output_dir:
            self.output_dir = filled(self.output_dir, names, self.path)
        if folder := self.values.get("steer_vector_load_dir"):
            self.values["steer_vector_load_dir"] = filled(str(folder), names, self.path)


def shipped_file(name: str, phase: str) -> str:
    """The method file that comes with the project: that of both phases, else the phase's own."""
    both, own = (SHIPPED.format(method=name, file=file) for file in (name, f"{phase}_{name}"))
    return both if (project_root() / both).is_file() else own


def write_method_file(folder: Path, name: str, values: Mapping[str, Any]) -> None:
    """`apply_<name>.yaml` in `folder`, beside the vectors that it is for."""
    with writing(folder / f"apply_{name}.yaml") as file:
        file.write(OmegaConf.to_yaml({"alg_name": name, **values}))


def paths_of(top: Mapping[str, Any], phase: str) -> list[str]:
    """The method files of a phase; of a method that is named without one, those of the project."""
    names = _listed(top.get("methods"))
    if not names:
        return _listed(top.get(PATHS[phase]))
    rows = [(name, pick("method", name, METHODS_CLASS_DICT)) for name in names]
    return [shipped_file(name, phase) for name, row in rows if PHASES[phase] in row]


def _listed(value: Any) -> list[str]:
    """A list that may be written as the one name in it."""
    return [str(value)] if isinstance(value, str | Path) else list(map(str, value or []))


def method_names(top: Mapping[str, Any]) -> set[str]:
    """The methods that a config uses in either phase; all there are where that is not known."""
    try:
        files = [read_yaml(path, "method file") for phase in PATHS for path in paths_of(top, phase)]
    except FileNotFoundError:  # refused where that phase is run, if it is
        files = []
    named = {str(file.get("alg_name")) for file in files} & METHODS_CLASS_DICT.keys()
    return named or set(METHODS_CLASS_DICT)


def field_names(half: type | None) -> set[str]:
    """The keys of a method's half; none where there is no such half."""
    return {f.name for f in fields(half)} if half else set()


def respelled(
    values: Mapping[str, Any], where: str, places: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """`values` under our spelling of each key.

    Args:
        values: As they were written.
        where: Said in the message.
        places: Where each came from: of two spellings, the one on the command line holds.

    Raises:
        ValueError: Two spellings of one key with different values.
    """
    places = places or {}
    found: dict[str, Any] = {}
    spelling: dict[str, str] = {}
    for key, value in values.items():
        ours = ALIASES.get(key, METHOD_ALIASES.get(key, key))
        other = spelling.get(ours)
        if other and found[ours] != value:
            now, before = (places.get(k) == COMMAND_LINE for k in (key, other))
            if now == before:
                raise ValueError(
                    f"{where}: {other} and {key} are one key, but {other} is {found[ours]!r} and "
                    f"{key} is {value!r}: remove one"
                )
            if before:
                continue
        found[ours], spelling[ours] = value, key
    return found


def _method(path: str, name: object) -> str:
    if not isinstance(name, str):
        said = "is missing" if name is None else f"must be text: got {name!r}"
        raise ValueError(f"{path}: alg_name {said}; it names the method, e.g. alg_name: caa")
    if name in LATER:
        raise ValueError(f"{path}: {LATER[name]} ({name}) is not supported yet")
    if name not in METHODS_CLASS_DICT:
        raise ValueError(f"{path}: {unknown('method', name, METHODS_CLASS_DICT)}")
    return name


def _half(path: str, name: str, phase: str) -> type:
    row = pick("method", name, METHODS_CLASS_DICT)
    if PHASES[phase] not in row:
        can = [n for n, r in METHODS_CLASS_DICT.items() if PHASES[phase] in r]
        raise ValueError(
            f"{path}: {name} has no vectors to generate here, it can only be applied "
            f"(methods that generate: {', '.join(can)})"
        )
    return row[PHASES[phase]]  # type: ignore[literal-required]


def _section(path: str, phase: str, section: object) -> dict[str, Any]:
    if section is not None and not isinstance(section, dict):
        raise ValueError(f"{path}: {phase} must be a mapping of keys: got {section!r}")
    return section or {}


def _check_keys(
    where: str, name: str, keys: Mapping[str, Any], own: set[str], lendable: Collection[str]
) -> None:
    also = {*lendable, *ALIASES, *ALIASES.values(), *WITHOUT_EFFECT}
    for key in keys:
        if METHOD_ALIASES.get(key, key) not in own | also:
            raise ValueError(f"{where}: {unknown(f'key of {name}', key, own, also)}")


def _folder(path: str, values: Mapping[str, Any]) -> str | None:
    folder = values.get("steer_vector_output_dirs")
    if folder is not None and not isinstance(folder, str):
        raise ValueError(f"{path}: steer_vector_output_dir must be one folder: got {folder!r}")
    return folder
