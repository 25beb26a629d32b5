"""A run's settings: the top-level config and the method files that it lists, merged and checked.

Where a key is given more than once, the first of these holds: command line, top-level file, the
phase's section of the method file (`generate:` or `apply:`), the rest of the method file, default.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from steer.build import (
    COMMAND_LINE,
    build,
    check_batch_size,
    check_value,
    pick,
    plain,
    read_yaml,
    unknown,
)
from steer.datasets import SOURCES, dataset_name
from steer.engines.options import EngineOptions
from steer.method_files import (
    ALIASES,
    WITHOUT_EFFECT,
    MethodFile,
    field_names,
    method_names,
    paths_of,
    respelled,
)
from steer.methods import METHODS_CLASS_DICT
from steer.models.load import ModelAndChat
from steer.places import fill_folders
from steer.secrets import refuse_secrets

REPORTS = ("off", "basic", "full")
LISTS = (
    "methods",
    "steer_train_hparam_paths",
    "steer_train_dataset",
    "steer_vector_output_dirs",
    "apply_steer_hparam_paths",
    "steer_vector_load_dir",
    "generation_data",
    "eval_methods",
)
# At the top of EasyEdit2's files, whatever the methods.
ALWAYS = (*WITHOUT_EFFECT, "steer_from_end_position")


@dataclass(kw_only=True)
class Settings(ModelAndChat, EngineOptions):
    """The top of a config; see `ModelSource`, `ChatFormat` and `EngineOptions` for the rest.

    In folders, `{model}` and `{data}` stand for their names, and where answers go `{methods}` too.

    Attributes:
        seed: For everything random.
        batch_size: Rows in a pass; `auto` suits the device and halves when memory runs out.
        methods: Names of methods: stands for the files that come with the project, in place of the
            two lists of method files.
        steer_train_hparam_paths: Method files for generating vectors.
        steer_train_dataset: Names of data sets (`dataset_format.yaml`, section train), or files:
            every method learns from each of them. `train_data` for short.
        train_fields: Of those files, our name of a field -> theirs; found by name where empty.
        combine: Those names go with the method files line by line instead, one for all or one for
            each, and the vectors of all steer one run together.
        steer_vector_output_dirs: For each of those method files where its vectors go; one for all.
        save_vectors: Whether vectors are written.
        apply_steer_hparam_paths: Method files for applying.
        steer_vector_load_dir: For each of those where its vectors are; one for all.
        generation_data: Names of data sets (section generation), or files.
        generation_fields: As `train_fields`.
        data_source: `file`, `hub`, `sample` (a few rows written for this project) or `auto`: the
            file where it is there, else the Hub.
        generation_data_size: Only the first so many rows; all where null or not above 0.
        generation_output_dir: Where results go.
        num_responses: Answers to each row.
        generate_orig_output: Whether to answer without steering too.
        generation_params: For `transformers`' `generate`.
        report: `off`, `basic` (hook counts and dose) or `full` (effect, damage) as well.
        eval_methods: Metrics that the scripts score the answers by; see `steer.evaluate`.
        eval_options: Options of those metrics.
        resume: Go on where a killed run of the same settings stopped.
    """

    seed: int = 42
    batch_size: str = "auto"
    methods: list[str] = field(default_factory=list)
    steer_train_hparam_paths: list[str] = field(default_factory=list)
    steer_train_dataset: list[str] = field(default_factory=list)
    train_fields: dict[str, Any] = field(default_factory=dict)
    combine: bool = False
    steer_vector_output_dirs: list[str] = field(default_factory=list)
    save_vectors: bool = True
    apply_steer_hparam_paths: list[str] = field(default_factory=list)
    steer_vector_load_dir: list[str | None] = field(default_factory=list)
    generation_data: list[str] = field(default_factory=list)
    generation_fields: dict[str, Any] = field(default_factory=dict)
    data_source: str = "auto"
    generation_data_size: int | None = None
    generation_output_dir: str | None = None
    num_responses: int = 1
    generate_orig_output: bool = False
    generation_params: dict[str, Any] = field(default_factory=dict)
    report: str = "basic"
    eval_methods: list[str] = field(default_factory=list)
    eval_options: dict[str, Any] = field(default_factory=dict)
    resume: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.report == "False":  # what YAML makes of a bare `off`
            self.report = "off"
        pick("report", self.report, dict.fromkeys(REPORTS))
        pick("data_source", self.data_source, dict.fromkeys(SOURCES))
        check_batch_size(self.batch_size)
        check_value("seed", self.seed, "0 or more and below 2**32", 0 <= self.seed < 2**32)
        check_value("num_responses", self.num_responses, "1 or more", self.num_responses >= 1)
        self.check_engine()


# What a method file may say for the top level. The value of a list depends on all method files.
LENDABLE = field_names(Settings) - set(LISTS) | {"steer_train_dataset"}


@dataclass
class MethodSettings:
    """One entry of a list of method files.

    Attributes:
        name: Its row in METHODS_CLASS_DICT.
        half: The dataclass of that row, filled.
        dataset: The one that it learns from; every one that there is where None.
        output_dir: Where its vectors go; None when applying.
    """

    name: str
    half: Any
    dataset: str | None = None
    output_dir: str | None = None


@dataclass
class Run:
    """All settings of a run, and where each came from.

    Attributes:
        settings: The top level.
        methods: By key; the second entry of one method has the key `caa_2`.
        origin: `key`, or `method.key`, -> the file, `command line` or `default`.
        notes: What one should know of them.
    """

    settings: Settings
    methods: dict[str, MethodSettings]
    origin: dict[str, str]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, cfg: Any, phase: str) -> "Run":
        """Read, merge and check.

        Args:
            cfg: An OmegaConf config, a mapping, or a path to a YAML file. Its key `origin_of`,
                if any, maps keys to where they came from; `command` is what was typed.
            phase: `generate` or `apply`.

        Raises:
            ValueError: An unknown key, a wrong type or value; the message names file and key.
            FileNotFoundError: A file that is named is not there.
        """
        top, origin = _top_level(cfg)
        files = [MethodFile.read(path, phase, LENDABLE) for path in paths_of(top, phase)]
        _lend(files, top, origin)
        known = field_names(Settings)
        settings = build(Settings, {k: v for k, v in top.items() if k in known}, origin)
        if phase == "generate" and settings.combine:
            _check_pairing(settings.steer_train_dataset, files)
        run = cls(settings, {}, {k: origin.get(k, "default") for k in sorted(known)})
        places = fill_folders(settings, [file.name for file in files])
        for file in files:
            file.fill_folders(places)
        for number, file in enumerate(files):
            run._add(file, number, top, origin)
        if phase == "generate" and settings.save_vectors:
            _refuse_shared_folder(run.methods)
        return run

    def _add(
        self, file: MethodFile, number: int, top: dict[str, Any], origin: dict[str, str]
    ) -> None:
        names = field_names(file.half)
        theirs = (*LISTS, *file.other_at_top)
        given = {k: v for k, v in top.items() if k in names and k not in theirs}
        folders = self.settings.steer_vector_load_dir
        if "steer_vector_load_dir" in names and _nth(folders, number) is not None:
            given["steer_vector_load_dir"] = _nth(folders, number)
        sources = dict.fromkeys(file.values, file.path) | {k: origin[k] for k in given}
        half = build(file.half, file.values | given, sources, file.path)
        self.notes += file.notes(half, top, origin)
        key = _free_key(file.name, self.methods)
        self.methods[key] = method = MethodSettings(file.name, half)
        if file.phase == "generate":
            output = _nth(self.settings.steer_vector_output_dirs, number)
            method.output_dir = output or file.output_dir
            if self.settings.combine:
                names = list(map(dataset_name, self.settings.steer_train_dataset))
                method.dataset = _nth(names, number)
        self.origin |= {f"{key}.{name}": sources.get(name, "default") for name in sorted(names)}

    def as_dict(self) -> dict[str, Any]:
        """All values, for a saved config or a fingerprint."""
        methods = {k: {"alg_name": m.name, **asdict(m.half)} for k, m in self.methods.items()}
        return {**asdict(self.settings), "methods": methods}


def _top_level(cfg: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Its values under our names, lists as lists, and where each came from."""
    if isinstance(cfg, str | Path):
        raw, label = read_yaml(cfg, "config"), str(cfg)
    else:
        raw, label = plain(cfg, "config"), "config"
    places: dict[str, str] = raw.pop("origin_of", {})
    raw.pop("command", None)
    for key, value in raw.items():
        refuse_secrets({key: value}, places.get(key, label))
    top = respelled(raw, label, places)
    origin = {ALIASES.get(k, k): places.get(k, label) for k in raw}
    origin |= {ALIASES.get(k, k): place for k, place in places.items() if place == COMMAND_LINE}
    values = {k: _listed(k, v, origin[k]) if k in LISTS else v for k, v in top.items()}
    # A key of either phase may stand in a config that serves both.
    halves = [half for name in method_names(values) for half in METHODS_CLASS_DICT[name].values()]
    allowed = field_names(Settings).union(ALWAYS, *(field_names(h) for h in halves))  # type: ignore[arg-type]
    for key in values:
        if key not in allowed:
            raise ValueError(f"{origin[key]}: {unknown('key', key, allowed)}")
    return values, origin


def _listed(key: str, value: Any, where: str) -> list[Any]:
    values = [value] if isinstance(value, str | Path) else [] if value is None else value
    allowed = str | Path | None if key == "steer_vector_load_dir" else str | Path
    if not isinstance(values, list | tuple) or not all(isinstance(one, allowed) for one in values):
        raise ValueError(f"{where}: {key} must be a name or path, or a list of them: got {value!r}")
    return [None if one is None else str(one) for one in values]


def _lend(files: list[MethodFile], top: dict[str, Any], origin: dict[str, str]) -> None:
    """Give the top level what it leaves open: the model, its dtype, a seed and the like."""
    lender: dict[str, str] = {}
    for file in files:
        for key, value in file.lent.items():
            given = _listed(key, value, file.path) if key in LISTS else value
            if key not in top:
                top[key], origin[key], lender[key] = given, file.path, file.path
            elif key in lender and top[key] != given:
                raise ValueError(
                    f"{file.path}: {key} is {value!r}, but {top[key]!r} in {lender[key]}: "
                    "give it at the top level"
                )


def _free_key(name: str, taken: Mapping[str, MethodSettings]) -> str:
    number = 1 + sum(method.name == name for method in taken.values())
    return name if number == 1 else f"{name}_{number}"


def _nth(values: list[Any], number: int) -> Any:
    """The value of a method file; where there are fewer values than files, the first serves."""
    return values[number] if number < len(values) else next(iter(values), None)


def _check_pairing(datasets: list[str], files: list[MethodFile]) -> None:
    if len(datasets) not in (1, len(files)):
        raise ValueError(
            "combine: true takes steer_train_dataset and steer_train_hparam_paths line by line: "
            f"got {len(datasets)} data sets {datasets} for {len(files)} method files; name one "
            "for each (a file may be listed twice), or one for all"
        )


def _refuse_shared_folder(methods: Mapping[str, MethodSettings]) -> None:
    seen: dict[str, str] = {}
    for key, method in methods.items():
        if method.output_dir is None:
            continue
        dataset = method.dataset or "<data set>"
        place = os.path.normpath(Path(method.output_dir, dataset, method.half.folder))
        if place in seen:
            raise ValueError(
                f"{seen[place]} and {key} would both write {place}: give each an entry of its own "
                "in steer_vector_output_dirs"
            )
        seen[place] = key
