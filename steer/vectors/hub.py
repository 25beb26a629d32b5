"""Vectors to and from the Hugging Face Hub.

A repository holds `vectors.safetensors` (tensors, and `metadata.json` in its header), the card as
`README.md`, the method file, and `checksums.json`: the SHA-256 of each of them. Nothing else is
written or read, and no pickle: a `.pt` file in a repository is not opened. What is read is read of
one commit, whose hash stands in the metadata that is written here.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo
from huggingface_hub.errors import HfHubHTTPError

from steer.files import file_sha256, find, read_json, sha256, writing
from steer.vectors.cards import card
from steer.vectors.catalogue import Entry
from steer.vectors.exchange import export_safetensors, import_safetensors
from steer.vectors.store import annotate

WEIGHTS, CHECKSUMS, CARD = "vectors.safetensors", "checksums.json", "README.md"
TEXTS = re.compile(r"README\.md|apply_\w+\.yaml")
DENIED = (401, 403)
# huggingface_hub has changed the library that it asks with; that one's errors are bases of this.
FAILURES: tuple[type[BaseException], ...] = (OSError, *HfHubHTTPError.__bases__)


@dataclass(frozen=True)
class Pulled:
    """What came from the Hub.

    Attributes:
        names: Of the vectors.
        revision: Hash of the commit.
    """

    names: list[str]
    revision: str


def push(folder: str | Path, repo: str, *, private: bool = False) -> str:
    """Publish the vectors of `folder`; the hash of the commit.

    The token is the one of `hf auth login` or of `HF_TOKEN`.

    Args:
        folder: With metadata.
        repo: `owner/name`; made where it is not there.
        private: Whether one that is made is private.

    Raises:
        ValueError: The folder has no vectors or no metadata.
        OSError: The Hub refuses, or cannot be reached.
    """
    folder = find(folder, "vector folder")
    files = _published(folder, repo)
    with _naming(f"push to {repo}"):
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        # Of vectors that were pushed there before: the new checksums say nothing of them.
        there = _file_names(api.model_info(repo))
        old = [name for name in there if TEXTS.fullmatch(name) and name not in files]
        operations = [
            *(CommitOperationAdd(name, data) for name, data in files.items()),
            *(CommitOperationDelete(name) for name in old),
        ]
        message = f"Steering vectors: {folder.parent.name}/{folder.name}"
        return str(api.create_commit(repo, operations, commit_message=message).oid)


def _published(folder: Path, repo: str) -> dict[str, bytes]:
    entry = Entry.of(folder, folder.parent.name)
    with tempfile.TemporaryDirectory() as scratch:
        export_safetensors(folder, Path(scratch, WEIGHTS))
        files = {WEIGHTS: Path(scratch, WEIGHTS).read_bytes()}
    files[CARD] = (_front_matter(entry) + card(entry, repo)).encode("utf-8")
    files |= {path.name: path.read_bytes() for path in sorted(folder.glob("apply_*.yaml"))}
    sums = {name: sha256(data) for name, data in files.items()}
    return {**files, CHECKSUMS: (json.dumps(sums, indent=2) + "\n").encode("utf-8")}


def _front_matter(entry: Entry) -> str:
    """What the Hub reads of a card."""
    lines = ["library_name: steer", "tags:", "- steering-vector"]
    # An embedded model's name is no address on the Hub.
    lines += [f"base_model: {entry.model}"] if entry.model.count("/") == 1 else []
    return "\n".join(["---", *lines, "---", "", ""])


def pull(repo: str, folder: str | Path, *, revision: str | None = None) -> Pulled:
    """Write the vectors that `push` published to `repo` into `folder`.

    Args:
        repo: `owner/name`.
        folder: Made where it is not there.
        revision: A commit's hash, a branch or a tag; the newest commit where None. A branch moves:
            only a hash names the same vectors tomorrow.

    Raises:
        ValueError: The repository is not one of `push`, or a file is not what its checksum says.
        OSError: No such repository or revision, or the Hub cannot be reached.
    """
    with _naming(f"pull from {repo}"):
        api = HfApi()
        info = api.model_info(repo, revision=revision)
        commit, there = str(info.sha), _file_names(info)
        _check_names(repo, there)
        names = [name for name in there if TEXTS.fullmatch(name) or name in (WEIGHTS, CHECKSUMS)]
        paths = {n: Path(api.hf_hub_download(repo, n, revision=commit)) for n in sorted(names)}
    sums = _check_sums(repo, paths)
    vectors = import_safetensors(paths[WEIGHTS], folder)
    for name in sums.keys() - {WEIGHTS}:
        with writing(Path(folder, name), "wb") as file:
            file.write(paths[name].read_bytes())
    origin = {"repo": repo, "revision": commit, "sha256": sums[WEIGHTS]}
    annotate(folder, {"hub": origin}, vectors)
    return Pulled(vectors, commit)


def _file_names(info: ModelInfo) -> list[str]:
    return [one.rfilename for one in info.siblings or ()]


def _check_names(repo: str, there: list[str]) -> None:
    if missing := {WEIGHTS, CHECKSUMS} - set(there):
        raise ValueError(
            f"{repo} has no {' and no '.join(sorted(missing))}, so that it was not made by push "
            f"(it has: {', '.join(there) or 'nothing'}). Nothing else is opened; a .pt file of a "
            "tensor can be had by hand: python -m steer.vectors import FILE.pt FOLDER --layer N"
        )


def _check_sums(repo: str, paths: Mapping[str, Path]) -> dict[str, str]:
    """What `checksums.json` says, where it is true of every file."""
    sums = read_json(paths[CHECKSUMS])
    if not isinstance(sums, dict) or sums.keys() != paths.keys() - {CHECKSUMS}:
        raise ValueError(
            f"{repo}: {CHECKSUMS} is of other files than are there: {', '.join(sorted(paths))}"
        )
    for name, wanted in sums.items():
        if (found := file_sha256(paths[name])) != wanted:
            raise ValueError(
                f"{repo}: {name} is not the file that {CHECKSUMS} describes (SHA-256 {found}, "
                f"expected {wanted}): nothing was written; ask its owner, or take another revision"
            )
    return sums


@contextmanager
def _naming(task: str) -> Iterator[None]:
    """Say of what goes wrong at the Hub what was to be done, in one line."""
    try:
        yield
    except FAILURES as error:
        why = " ".join(str(error).split()) or type(error).__name__
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = "; is a token with that right in HF_TOKEN, or `hf auth login` done?"
        raise OSError(f"cannot {task}: {why}{hint if status in DENIED else ''}") from error
