"""From a question to ranked passages: query, BM25, vectors, fusion, neighbours."""
