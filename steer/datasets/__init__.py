"""Rows of data: from files, by the names that configs use, under the fields that methods read."""

from steer.datasets.checking import Finding, check_rows, warnings_of
from steer.datasets.in_memory import named_rows
from steer.datasets.loading import (
    SOURCES,
    DatasetLoader,
    prepare_generation_datasets,
    prepare_train_dataset,
    prepare_train_datasets,
)
from steer.datasets.own import dataset_name, is_file_name
from steer.datasets.rows import (
    SIDES,
    Row,
    answer_of,
    has_answer,
    input_of,
    is_pair,
    label_of,
    optional_text_of,
    question_of,
    text_of,
)
from steer.datasets.single_texts import are_single, sides_of

__all__ = [
    "SIDES",
    "SOURCES",
    "DatasetLoader",
    "Finding",
    "Row",
    "answer_of",
    "are_single",
    "check_rows",
    "dataset_name",
    "has_answer",
    "input_of",
    "is_file_name",
    "is_pair",
    "label_of",
    "named_rows",
    "optional_text_of",
    "prepare_generation_datasets",
    "prepare_train_dataset",
    "prepare_train_datasets",
    "question_of",
    "sides_of",
    "text_of",
    "warnings_of",
]
