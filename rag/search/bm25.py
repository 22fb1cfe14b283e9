"""BM25, scored in this process: in SQL the same sum cost a millisecond for every thousand chunks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from rag.analysis.terms import saturation
from rag.search.postings import Ints, Postings
from rag.search.query import Query

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.intp]
Shares = npt.NDArray[np.floating[Any]]

_RECONSIDERED: Final = 200  # beyond those wanted, for what coverage brings up
_MINOR: Final = 0.02  # of a question's weight: a word that says no more is none to be held


class Hit(NamedTuple):
    """What the words of a question say of one chunk: its score, and the share of the question's weight that it holds.

    Half of that share counts where only one of three words or more is held: any text holds some word.
    """

    score: float
    share: float


@dataclass(frozen=True, slots=True)
class Found:
    """What the words of a question say of every live chunk."""

    _query: Query
    _postings: Postings
    _idf: Mapping[str, float]
    _scores: Floats

    def best(self, limit: int) -> list[int]:
        """The chunks with the best scores, best first."""
        places = _best(self._scores, limit + _RECONSIDERED)
        *_, scores = self._at(places)
        order = np.argsort(-scores, kind="stable")[:limit]
        return self._postings.chunks.ids[places[order]].tolist()  # type: ignore[no-any-return]

    def of(self, chunk_ids: Iterable[int]) -> dict[int, Hit]:
        """The hit of each of some chunks; one that is not live shares nothing with the question."""
        hits = dict.fromkeys(chunk_ids, Hit(0.0, 0.0))
        ids, order = self._postings.chunks.ids, self._postings.chunks.order
        if len(ids):
            wanted = np.fromiter(hits, dtype=np.int64)
            places = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)]
            places = places[ids[places] == wanted]
            hits.update(zip(ids[places].tolist(), self._hits(places), strict=True))
        return hits

    def standard(self, hits: Mapping[int, Hit]) -> dict[int, float]:
        """The scores in standard deviations from the mean of all live chunks."""
        mean, spread = float(self._scores.mean()), float(self._scores.std())
        return {id_: (hit.score - mean) / spread if spread else 0.0 for id_, hit in hits.items()}

    def _hits(self, places: Places) -> list[Hit]:
        held, shares, scores = self._at(places)
        least = _MINOR * self._weight(self._idf)
        words = [word for word in self._query.words if self._weight(word) > least]
        is_held = (sum(held[term] for term in word) >= self._weight(word) / 2 for word in words)
        says_little = (sum(is_held, np.zeros(len(places))) < 2) & (len(words) > 2)
        return list(map(Hit, scores.tolist(), np.where(says_little, shares / 2, shares).tolist()))

    def _at(self, places: Places) -> tuple[dict[str, Shares], Shares, Shares]:
        """At some places: the weight of each term that is held, the share of all weight, and the score."""
        rows = self._postings.rows
        held = {term: weight * _holds(rows[term].places, places) for term, weight in self._idf.items()}
        shares = sum(held.values(), np.zeros(len(places))) / max(self._weight(self._idf), 1e-9)
        return held, shares, self._scores[places] * (1 + self._query.coverage * shares)

    def _weight(self, terms: Iterable[str]) -> float:
        return sum(self._idf[term] for term in terms)


def score(postings: Postings, query: Query) -> Found:
    """Score all chunks of an index for a query; a term that the corpus lacks weighs most. Work for a thread."""
    size = postings.live.chunk_count
    weights = {**query.weights, **query.morphemes}
    idf = {term: weight * _idf(size, len(postings.rows[term].places)) for term, weight in weights.items()}
    factors = np.asarray(saturation(round(postings.live.term_count / max(size, 1))), dtype=np.float32)
    scores = np.zeros(size, dtype=np.float32)
    for term, weight in idf.items():
        row = postings.rows[term]
        scores[row.places] += (factors * np.float32(weight))[row.factors]
    return Found(query, postings, {term: idf[term] for term in query.weights}, scores)


def _idf(size: int, frequency: int) -> float:
    return math.log(1 + (size - frequency + 0.5) / (frequency + 0.5))


def _best(scores: Floats, limit: int) -> Places:
    """The places of the highest scores above 0, best first, equal ones in their order."""
    found = np.flatnonzero(scores)
    if len(found) > limit:
        least = np.partition(scores[found], -limit)[-limit]
        found = found[scores[found] >= least]
    return found[np.argsort(-scores[found], kind="stable")][:limit]


def _holds(places: Ints, wanted: Places) -> npt.NDArray[np.bool_]:
    """Of each wanted place, whether it is among `places`, which rise."""
    if not len(places):
        return np.zeros(len(wanted), dtype=np.bool_)
    at = np.minimum(np.searchsorted(places, wanted), len(places) - 1)
    return np.asarray(places[at] == wanted)
