"""BM25, scored in this process: in SQL the same sum cost a millisecond for every thousand chunks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from rag.search.postings import Ids, Ints, Postings
from rag.search.postings_draft import saturation
from rag.search.query import WEAK_WEIGHT, Query, Word

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.intp]
Shares = npt.NDArray[np.floating[Any]]

_RECONSIDERED: Final = 200  # beyond those wanted, for what coverage brings up
_LONG_WORD: Final = 6
"""A Korean word of so many syllables is often several that were typed without spaces: a part of it counts as it is."""
_HALF: Final = 0.5
_NOUN: Final = 0.8
_ALTERNATIVE_SHARE: Final = 0.85


class Hit(NamedTuple):
    """The words of a question in one chunk: its score, and the share of the question's importance that it has."""

    score: float
    share: float


@dataclass(frozen=True)
class Found:
    """What the words of a question say of every live chunk."""

    _query: Query
    _postings: Postings
    _idf: Mapping[str, float]
    _scores: Floats

    @property
    def chunk_ids(self) -> Ids:
        """All chunks that were scored."""
        return self._postings.chunks.ids

    def best(self, limit: int) -> list[int]:
        """The chunks with the best scores, best first."""
        return list(self.ranked(limit))

    def ranked(self, limit: int) -> dict[int, Hit]:
        """The chunks with the best scores and their hits, best first."""
        places = _best(self._scores, limit + _RECONSIDERED)
        shares, scores = self._at(places)
        order = np.argsort(-scores, kind="stable")[:limit]
        ids = self._postings.chunks.ids[places[order]].tolist()
        return dict(zip(ids, map(Hit, scores[order].tolist(), shares[order].tolist()), strict=True))

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

    @cached_property
    def _content(self) -> list[Word]:
        return [word for word in self._query.words if word.importance > WEAK_WEIGHT]

    @cached_property
    def _content_terms(self) -> frozenset[str]:
        return frozenset(
            term for word in self._content for term in (*word.terms, *chain.from_iterable(word.alternatives))
        )

    @cached_property
    def _content_weights(self) -> list[float]:
        return self._weights(self._content)

    @cached_property
    def rarest(self) -> list[Word]:
        """The noun of the question that is rarest in the corpus, or those that are equally rare."""
        words = [word for word in self._content if word.importance >= _NOUN] or self._query.words
        rarities = [self._rarity(word) for word in words]
        return [word for word, rarity in zip(words, rarities, strict=True) if rarity >= max(rarities) - 1e-9]

    def share_in(self, terms: Set[str]) -> float:
        """The share of the question's importance whose words some terms, of a heading say, have whole."""
        if self._content_terms.isdisjoint(terms):
            return 0.0
        weights = self._content_weights
        held = sum(weight for word, weight in zip(self._content, weights, strict=True) if word.is_in(terms))
        return held / max(sum(weights), 1e-9)

    def _hits(self, places: Places) -> list[Hit]:
        shares, scores = self._at(places)
        return list(map(Hit, scores.tolist(), shares.tolist()))

    def _at(self, places: Places) -> tuple[Shares, Shares]:
        """At some places: the share of the question's importance that is there, and the score.

        Question words and phrases of politeness have no share.
        """
        shares = _shares(self._content, self._content_weights, self._postings, places)
        return shares, self._scores[places] * (1 + self._query.coverage * shares)

    def _weights(self, words: Sequence[Word]) -> list[float]:
        """The weight of each word: a verb that the corpus lacks weighs no more than the rarest noun that it has."""
        rarities = [self._rarity(word) for word in words]
        known = [
            rarity
            for word, rarity in zip(words, rarities, strict=True)
            if word.importance >= _NOUN and any(map(self._is_known, word.terms))
        ]
        most = max(known, default=math.inf)
        return [
            word.importance * (rarity if word.importance >= _NOUN else min(rarity, most))
            for word, rarity in zip(words, rarities, strict=True)
        ]

    def _rarity(self, word: Word) -> float:
        """How rare a word is in the corpus, under the spelling that the corpus has."""
        own = [self._idf[term] for term in word.terms if self._is_known(term)]
        if own:
            return max(own)
        others = [
            max(self._idf[term] for term in other) for other in word.alternatives if all(map(self._is_known, other))
        ]
        return min(others, default=max((self._idf[term] for term in word.terms), default=0.0))

    def _is_known(self, term: str) -> bool:
        return len(self._postings.rows[term].places) > 0


def _shares(words: Sequence[Word], weights: Sequence[float], postings: Postings, places: Places) -> Shares:
    """Of each place, the share of all words that is there, by their weights."""
    known: dict[str, int] = {}
    for term in {term for word in words for term in (*word.terms, *chain.from_iterable(word.alternatives))}:
        if len(postings.rows[term].places):
            known[term] = len(known)
    held = np.array([_holds(postings.rows[term].places, places) for term in known], dtype=np.float32)
    total = np.zeros(len(places))
    for word, weight in zip(words, weights, strict=True):
        units = [[known[term] for term in unit if term in known] for unit in word.units]
        total += weight * _coverage(units, list(_places_of(word.alternatives, known)), held, len(places))
    return total / max(sum(weights), 1e-9)


def _places_of(alternatives: Sequence[frozenset[str]], known: Mapping[str, int]) -> Iterable[list[int]]:
    """The rows of the alternatives all of whose terms the corpus has."""
    return ([known[term] for term in other] for other in alternatives if all(term in known for term in other))


def _coverage(units: Sequence[Sequence[int]], alternatives: Sequence[Sequence[int]], held: Shares, size: int) -> Shares:
    """Of each place, the share of a word that is there: its parts, or another spelling of it."""
    share = np.zeros(size)
    for rows in units:
        if rows:
            share += held[rows[0]] if len(rows) == 1 else np.maximum(held[rows[0]], held[rows[1]])
    share /= max(len(units), 1)
    if len(units) < _LONG_WORD:
        # Less than half of a short word is there by chance.
        share[share < _HALF] *= _HALF
    for rows in alternatives:
        share = np.maximum(share, _ALTERNATIVE_SHARE * held[rows].min(axis=0))
    return share


def score(postings: Postings, query: Query) -> Found:
    """Score all chunks of an index for a query; a term that the corpus lacks weighs most. Work for a thread."""
    size = postings.live.chunk_count
    idf = {term: _idf(size, len(row.places)) for term, row in postings.rows.items()}
    weights = {**query.weights, **query.morphemes}
    factors = np.asarray(saturation(round(postings.live.term_count / max(size, 1))), dtype=np.float32)
    scores = np.zeros(size, dtype=np.float32)
    for term, weight in weights.items():
        row = postings.rows[term]
        scores[row.places] += (factors * np.float32(weight * idf[term]))[row.factors]
    return Found(query, postings, idf, scores)


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
