"""Features of an SAE by what they stand for.

python -m steer.saes search dog -k 3
python -m steer.saes search ocean --sae my/sae/folder
python -m steer.saes search ocean --neuronpedia gemma-2-9b/24-gemmascope-res-16k
"""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from steer.saes.features import describe
from steer.saes.loading import DEFAULT_SAE
from steer.saes.neuronpedia import search_neuronpedia
from steer.saes.search import search_features
from steer.terminal import Parser, command


def main(arguments: Sequence[str] | None = None) -> int:
    """Search as the arguments say; its exit status: 1 after a mistake of the user's."""
    return command(_search, arguments)


def _search(arguments: list[str]) -> None:
    given = _parser().parse_args(arguments)
    hits = (
        search_neuronpedia(given.neuronpedia, given.query, given.k)
        if given.neuronpedia
        else search_features(given.sae, given.query, given.k)
    )
    Console().print(describe(hits, f"{given.query}: {given.neuronpedia or given.sae}"))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m steer.saes", description="Look into sparse autoencoders.")
    tasks = parser.add_subparsers(required=True, metavar="{search}")
    search = tasks.add_parser("search", help="features that fire on a word or phrase")
    search.add_argument("query", metavar="QUERY", help="a word, or a phrase in quotes")
    search.add_argument("--sae", default=DEFAULT_SAE, help="folder with a features.jsonl.gz")
    search.add_argument(
        "--neuronpedia", metavar="MODEL/SAE", help="ask Neuronpedia, online, about this SAE of its"
    )
    search.add_argument("-k", type=int, default=5, help="how many features (default: 5)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
