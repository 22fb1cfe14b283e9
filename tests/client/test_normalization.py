"""Normalization in pieces gives what `unicodedata` gives, also for texts of many pieces."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protostar_client.normalization import Form, normalize

mixed = st.text(st.sampled_from("가나 abc\u1100\u1161\u11a8é\u0301e\u0300中文がか\u3099ﬁ①Ａ"), max_size=200)


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@given(mixed)
def test_a_long_text_is_normalized_as_unicodedata_does_it(form: Form, text: str) -> None:
    repeated = text * 10
    assert normalize(form, repeated) == unicodedata.normalize(form, repeated)
