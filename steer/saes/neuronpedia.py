"""Neuronpedia, the public directory of SAE features: search, and descriptions of features.

https://docs.neuronpedia.org/api-and-data/api. Its `modelId` and `saeId` are such as `gemma-2-9b`
and `24-gemmascope-res-16k`. Nothing is asked of it unless a function here is called. `NP_API_KEY`
is sent where it is set; `NEURONPEDIA_URL` names another server with the same API.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from steer.files import locked, read_json, write_json
from steer.progress import progress
from steer.saes.features import Example, Feature, FeatureHit
from steer.secrets import redacted

if TYPE_CHECKING:
    import requests

log = logging.getLogger(__name__)

URL = "https://www.neuronpedia.org"
TIMEOUT = 20.0  # seconds
TRIES = 3
LONGEST_WAIT = 30.0  # seconds; its limits are counted by the hour
BUSY = (429, 502, 503, 504)
LOCAL = ("localhost", "127.0.0.1", "::1")
EXAMPLES, AROUND = 4, 12  # examples kept, and tokens on either side
SHOWN = 200  # characters of an answer in a message

_FOUND = (
    "modelId",
    "layer",
    "index",
    "description",
    "explanationModelName",
    "typeName",
    "cosine_similarity",
)


def search_for_explanations(
    modelId: str,
    saeId: str,
    query: str,
    save_path: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Features of an SAE whose explanation is near `query` in meaning, nearest first.

    Args:
        modelId: Neuronpedia's name of the model.
        saeId: Its name of the SAE, which begins with the layer.
        query: A word or phrase, of three characters or more.
        save_path: A JSON file to keep the result in.

    Returns:
        For each `modelId`, `layer`, `index`, `description`, `explanationModelName`, `typeName` and
        `cosine_similarity`.

    Raises:
        ValueError: It refuses, or its answer is none.
        ConnectionError: It cannot be reached.
    """
    if not query.strip():
        raise ValueError(f"search needs a word or a phrase: got {query!r}")
    body = {"modelId": modelId, "layers": [saeId], "query": query}
    answer = _ask("POST", "/api/explanation/search", body)
    results = answer.get("results") if isinstance(answer, Mapping) else answer
    if not isinstance(results, list) or not all(isinstance(one, Mapping) for one in results):
        raise ValueError(f"Neuronpedia: an answer without results to the search for {query!r}")
    found = [{name: result.get(name) for name in _FOUND} for result in results]
    if save_path is not None:
        write_json(save_path, found)
    return found


def get_feature_description(
    modelId: str,
    saeId: str,
    position_ids: Sequence[int],
    save_path: str | Path | None = None,
) -> dict[int, list[dict[str, Any]]]:
    """The explanations of features, by id.

    Each has `modelId`, `layer`, `feature_id`, `description`, `explanationModelName`, `typeName`.

    Each feature is asked for by itself; what `save_path` holds already is not asked for again.

    Args:
        modelId: Neuronpedia's name of the model.
        saeId: Its name of the SAE.
        position_ids: Ids of the features.
        save_path: A folder, where they are kept in
            `neuronpedia_description_{modelId}_{saeId}.json`.

    Raises:
        ValueError: It refuses, a feature is not there, or the file of `save_path` is broken.
        ConnectionError: It cannot be reached.
    """
    place = None if save_path is None else Path(save_path, cache_name(modelId, saeId))
    kept = {} if place is None else _kept(place)
    missing = [feature for feature in dict.fromkeys(position_ids) if feature not in kept]
    few = len(missing) < TRIES
    for feature in progress(missing, what="Neuronpedia", unit="feature", hidden=few):
        answer = _feature(modelId, saeId, feature)
        kept[feature] = _explanations(modelId, saeId, feature, answer)
    if place is not None and missing:
        with locked(place):
            write_json(place, {**_kept(place), **kept})
    return {feature: kept[feature] for feature in position_ids}


def search_neuronpedia(source: str, query: str, k: int = 5) -> list[FeatureHit]:
    """The `k` features whose explanation on Neuronpedia is nearest to `query` in meaning.

    Args:
        source: `modelId/saeId`, such as `gemma-2-9b/24-gemmascope-res-16k`.
        query: A word or phrase.
        k: How many at most.

    Raises:
        ValueError: As `search_for_explanations`; also where nothing is found.
        ConnectionError: It cannot be reached.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more: got {k}")
    model, sae = parts_of(source)
    nearest: dict[int, Mapping[str, Any]] = {}
    for found in search_for_explanations(model, sae, query):
        nearest.setdefault(int(found["index"]), found)
    if not nearest:
        raise ValueError(f"Neuronpedia knows no feature of {source} for {query!r}: try other words")
    return [
        FeatureHit(
            _as_feature(index, _feature(model, sae, index)),
            float(found["cosine_similarity"] or 0),
            f"is explained as {str(found['description']).strip()!r}",
        )
        for index, found in list(nearest.items())[:k]
    ]


def parts_of(source: str) -> tuple[str, str]:
    """(modelId, saeId) of `modelId/saeId`.

    Raises:
        ValueError: It is not of that form.
    """
    model, _, sae = source.partition("/")
    if not model or not sae or "/" in sae:
        raise ValueError(
            f"neuronpedia must be modelId/saeId, such as gemma-2-9b/24-gemmascope-res-16k: "
            f"got {source!r}"
        )
    return model, sae


def cache_name(model: str, sae: str) -> str:
    """Name of the file of descriptions; a slash in a name would be a folder."""
    return f"neuronpedia_description_{model}_{sae}.json".replace("/", "_")


def _kept(place: Path) -> dict[int, list[dict[str, Any]]]:
    kept = read_json(place) if place.is_file() else {}
    if not isinstance(kept, dict) or not all(
        key.isdecimal() and isinstance(value, list) for key, value in kept.items()
    ):
        raise ValueError(f"{place} does not hold descriptions by feature id: move it away")
    return {int(key): value for key, value in kept.items()}


def _feature(model: str, sae: str, index: int) -> Mapping[str, Any]:
    path = "/".join(quote(part, safe="") for part in (model, sae, str(index)))
    answer = _ask("GET", f"/api/feature/{path}")
    if not isinstance(answer, Mapping):
        raise ValueError(f"Neuronpedia has no feature {index} of {model}/{sae}")
    return answer


def _explanations(
    model: str, sae: str, index: int, answer: Mapping[str, Any]
) -> list[dict[str, Any]]:
    place = {"modelId": model, "layer": sae, "feature_id": index}
    names = ("description", "explanationModelName", "typeName")
    given = answer.get("explanations") or []
    return [{**place, **{name: one.get(name) for name in names}} for one in given]


def _as_feature(index: int, answer: Mapping[str, Any]) -> Feature:
    try:
        return Feature(
            id=index,
            frequency=float(answer.get("frac_nonzero") or 0),
            max_activation=float(answer.get("maxActApprox") or 0),
            mean_activation=None,
            top_logits=tuple(answer.get("pos_str") or ()),
            bottom_logits=tuple(answer.get("neg_str") or ()),
            examples=tuple(_example(one) for one in (answer.get("activations") or [])[:EXAMPLES]),
        )
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"Neuronpedia: feature {index} in an unknown form: {error!r}") from error


def _example(activation: Mapping[str, Any]) -> Example:
    tokens, values = activation["tokens"], activation["values"]
    at = values.index(max(values))
    before, after = tokens[max(at - AROUND, 0) : at], tokens[at + 1 : at + 1 + AROUND]
    return Example(float(values[at]), "".join(before), tokens[at], "".join(after))


def _ask(method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """The JSON that the server answers with; it is asked again where it is busy."""
    base, key = os.environ.get("NEURONPEDIA_URL", URL).rstrip("/"), os.environ.get("NP_API_KEY")
    if key and not base.startswith("https://") and urlsplit(base).hostname not in LOCAL:
        raise ValueError(f"NEURONPEDIA_URL must begin with https://, or the key is open: {base}")
    trial = 1
    while (answer := _answer(method, base, path, body, key)).status_code in BUSY:
        wait = _seconds(answer.headers.get("Retry-After"), 2.0**trial)
        if trial == TRIES or wait > LONGEST_WAIT:
            break
        log.info("Neuronpedia is busy (%d): asking again in %.0f s", answer.status_code, wait)
        time.sleep(wait)
        trial += 1
    if answer.status_code != HTTPStatus.OK:
        raise ValueError(_refusal(answer.status_code, path, bool(key), answer.text))
    try:
        return answer.json()
    except ValueError as error:
        raise ValueError(f"Neuronpedia: what {base}{path} answers is not JSON") from error


def _answer(
    method: str, base: str, path: str, body: Mapping[str, Any] | None, key: str | None
) -> requests.Response:
    import requests  # only for those who go online

    try:
        # A redirection could take the key to another host.
        return requests.request(
            method,
            base + path,
            json=body,
            headers={"X-Api-Key": key} if key else {},
            timeout=TIMEOUT,
            allow_redirects=False,
        )
    except requests.RequestException as error:
        raise ConnectionError(
            f"Neuronpedia cannot be reached at {base} ({type(error).__name__}): are you online?"
        ) from error


def _seconds(given: str | None, otherwise: float) -> float:
    return float(given) if given and given.isdecimal() else otherwise


def _refusal(status: int, path: str, has_key: bool, text: str) -> str:
    reasons = {
        401: "it does not accept the key in NP_API_KEY"
        if has_key
        else "it asks for a key: set NP_API_KEY, from neuronpedia.org/account",
        404: "it does not know that: check modelId and saeId",
        429: "its limit of requests an hour is reached: try again later",
    }
    reasons[403] = reasons[401]
    said = redacted(" ".join(text.split()))[:SHOWN]
    return f"Neuronpedia answers {status} to {path}: {reasons.get(status, said or 'nothing more')}"
