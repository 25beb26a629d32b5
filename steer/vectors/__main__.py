"""Steering vectors: the library of ready ones, the Hugging Face Hub, other programs.

python -m steer.vectors list
python -m steer.vectors show sentiment
python -m steer.vectors verify sentiment
python -m steer.vectors push vectors/library/SmolLM2-135M-Instruct/sentiment/caa_vector me/sentiment
python -m steer.vectors pull me/sentiment my/sentiment --revision 0123abc
python -m steer.vectors export vectors/SmolLM2-135M-Instruct/sentiment/caa_vector warm.gguf
python -m steer.vectors import warm.gguf vectors/imported
python -m steer.vectors build
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from steer.terminal import FAILED, Parser, command, say_error
from steer.vectors.catalogue import LIBRARY, Entry, library_entry, list_library, own_names

if TYPE_CHECKING:
    from rich.table import Table

ENDINGS = ".safetensors or .gguf"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; its exit status.

    1 after a mistake of the user's, and where `verify` does not reproduce a verdict.
    """
    return command(_run, arguments)


def _run(arguments: list[str]) -> int | None:
    given = _parser().parse_args(arguments)
    return given.run(given)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m steer.vectors",
        description="Steering vectors: the library of ready ones, the Hub, other programs.",
    )
    tasks = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_library, _add_hub, _add_exchange):
        add(tasks)
    return parser


def _add_library(tasks: "argparse._SubParsersAction[Parser]") -> None:
    listing = tasks.add_parser("list", help="what the library has, and what each vector does")
    listing.set_defaults(run=_list)
    one = tasks.add_parser("show", help="the card of a vector")
    one.set_defaults(run=_show)
    again = tasks.add_parser("verify", help="check files and data, and measure the verdict anew")
    again.set_defaults(run=_verify)
    build = tasks.add_parser("build", help="make vectors of the library anew, with their verdicts")
    build.set_defaults(run=_build)
    for task in (listing, one):
        task.add_argument("--json", action="store_true", help="print JSON")
    one.add_argument("name", metavar="NAME", help="in the library, or a folder of vectors")
    for task, none in ((again, "all of the library"), (build, "all")):
        task.add_argument("names", nargs="*", metavar="NAME", help=f"default: {none}")
    for task in (listing, one, again, build):
        task.add_argument(
            "--library", default=LIBRARY, metavar="FOLDER", help="default: %(default)s"
        )


def _add_hub(tasks: "argparse._SubParsersAction[Parser]") -> None:
    push = tasks.add_parser("push", help="publish a folder of vectors on the Hugging Face Hub")
    push.add_argument("folder", metavar="FOLDER", help="of vectors, or a name in the library")
    push.add_argument("repo", metavar="REPO", help="owner/name; made where it is not there")
    push.add_argument("--private", action="store_true", help="a repository that is made is private")
    push.set_defaults(run=_push)
    pull = tasks.add_parser("pull", help="fetch vectors that were pushed")
    pull.add_argument("repo", metavar="REPO", help="owner/name")
    pull.add_argument("folder", metavar="FOLDER", help="folder of vectors to write")
    pull.add_argument("--revision", metavar="COMMIT", help="its hash; default: the newest")
    pull.set_defaults(run=_pull)


def _add_exchange(tasks: "argparse._SubParsersAction[Parser]") -> None:
    out = tasks.add_parser("export", help="put the vectors of a folder into one file")
    out.add_argument("source", metavar="SOURCE", help="folder of vectors")
    out.add_argument("target", metavar="TARGET", help=f"file to write, {ENDINGS}")
    out.set_defaults(run=_export)
    back = tasks.add_parser("import", help="put the vectors of one file into a folder")
    back.add_argument("source", metavar="SOURCE", help=f"file to read, {ENDINGS}, or .pt")
    back.add_argument("target", metavar="TARGET", help="folder of vectors to write")
    back.add_argument("--layer", type=int, metavar="N", help="of a bare tensor in a .pt file")
    back.set_defaults(run=_import)


# ---- the library --------------------------------------------------------------------------------


def _list(given: argparse.Namespace) -> None:
    entries = _all_of(given.library)
    if given.json:
        facts = map(_facts, entries)
        _write_json(dict(zip(own_names(entries), facts, strict=True)))
        return
    from rich.console import Console  # not needed for JSON

    for model in dict.fromkeys(entry.model for entry in entries):
        Console().print(_table(model, [entry for entry in entries if entry.model == model]))


def _all_of(library: str) -> list[Entry]:
    if entries := list_library(library):
        return entries
    raise ValueError(
        f"{library} has no vectors in folders <model>/<name>/<method>_vector: give the folder "
        "that the models' folders are in"
    )


def _table(model: str, entries: Sequence[Entry]) -> "Table":
    from rich.table import Table

    from steer.vectors.cards import interval

    columns = ("name", "method", "block", "effect (nats a pair)", "KL")
    table = Table(*columns, box=None, title=model, title_justify="left")
    for entry in entries:
        effect, price = entry.verdict.get("effect"), entry.verdict.get("damage")
        table.add_row(
            entry.name,
            str(entry.facts.get("method", "")),
            ",".join(map(str, entry.layers)),
            interval(effect) if effect else "not judged",
            f"{price['kl']:.2f}" if price else "",
        )
    return table


def _show(given: argparse.Namespace) -> None:
    entry = library_entry(given.name, given.library)
    if given.json:
        _write_json(_facts(entry))
        return
    from steer.vectors.cards import card

    sys.stdout.write(f"{card(entry)}\nfolder: {entry.folder}\n")


def _facts(entry: Entry) -> dict[str, object]:
    return {"name": entry.name, "folder": str(entry.folder), "vectors": dict(entry.about)}


def _write_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _verify(given: argparse.Namespace) -> int:
    from steer.library.verifying import verify

    found = [library_entry(n, given.library) for n in given.names] or _all_of(given.library)
    good = True
    for entry in found:
        try:
            verified = verify(entry, given.library)
        except (ValueError, OSError) as error:
            say_error(error)
            good = False
        else:
            sys.stdout.write(f"{entry.name}: {verified}\n")
            good = good and verified.reproduced
    return 0 if good else FAILED


def _build(given: argparse.Namespace) -> None:
    from steer.library.building import build

    for line in build(given.library, given.names):
        sys.stdout.write(f"{line}\n")


# ---- the Hub, and other programs ----------------------------------------------------------------


def _push(given: argparse.Namespace) -> None:
    from steer.vectors.hub import push

    commit = push(library_entry(given.folder).folder, given.repo, private=given.private)
    sys.stdout.write(f"published: {given.repo}, revision {commit}\n")


def _pull(given: argparse.Namespace) -> None:
    from steer.vectors.hub import pull

    found = pull(given.repo, given.folder, revision=given.revision)
    names = ", ".join(found.names)
    sys.stdout.write(f"written: {given.folder} ({names}), revision {found.revision}\n")


def _export(given: argparse.Namespace) -> None:
    from steer.vectors.exchange import export_vectors

    names = export_vectors(given.source, given.target)
    sys.stdout.write(f"written: {given.target} ({', '.join(names)})\n")


def _import(given: argparse.Namespace) -> None:
    from steer.vectors.exchange import import_vectors

    names = import_vectors(given.source, given.target, given.layer)
    sys.stdout.write(f"written: {given.target} ({', '.join(names)})\n")


if __name__ == "__main__":
    sys.exit(main())
