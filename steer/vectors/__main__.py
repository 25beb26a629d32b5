"""Vectors to and from other programs; the format is that of the file's ending.

python -m steer.vectors export vectors/SmolLM2-135M-Instruct/sentiment/caa_vector warm.gguf
python -m steer.vectors import warm.gguf vectors/imported
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from steer.vectors.exchange import export_vectors, import_vectors

ENDINGS = ".safetensors or .gguf"


def main(arguments: Sequence[str] | None = None) -> None:
    """Export or import as the arguments say; a mistake of the user's is one line and status 1."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = _parser().parse_args(arguments)
    try:
        names = given.run(given.source, given.target)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"written: {given.target} ({', '.join(names)})\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m steer.vectors",
        description="Take steering vectors to and from other programs.",
    )
    tasks = parser.add_subparsers(required=True, metavar="{export,import}")
    out = tasks.add_parser("export", help="put the vectors of a folder into one file")
    out.add_argument("source", metavar="SOURCE", help="folder of vectors")
    out.add_argument("target", metavar="TARGET", help=f"file to write, {ENDINGS}")
    out.set_defaults(run=export_vectors)
    back = tasks.add_parser("import", help="put the vectors of one file into a folder")
    back.add_argument("source", metavar="SOURCE", help=f"file to read, {ENDINGS}")
    back.add_argument("target", metavar="TARGET", help="folder of vectors to write")
    back.set_defaults(run=import_vectors)
    return parser


if __name__ == "__main__":
    main()
