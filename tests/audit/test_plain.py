from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.plain import plain

ANYTHING = st.text(st.characters())
DANGEROUS = {"Cc", "Cs"}


@given(ANYTHING)
def test_nothing_that_acts_on_a_terminal_is_left(text: str) -> None:
    safe = plain(text)
    assert len(safe) == len(text)
    assert not any(unicodedata.category(character) in DANGEROUS for character in safe)
    assert not any(
        unicodedata.bidirectional(character) in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"} for character in safe
    )


@given(ANYTHING)
def test_making_safe_twice_changes_nothing(text: str) -> None:
    assert plain(plain(text)) == plain(text)


@given(st.text(st.characters(exclude_categories=["C", "Zl", "Zp"])))
def test_ordinary_text_of_any_script_is_kept(text: str) -> None:
    assert plain(text) == text


@pytest.mark.parametrize(
    ("text", "shown"), [("\x1b[2J", "␛[2J"), ("a\rb", "a␍b"), ("\x9b31m", "\ufffd31m"), ("\u202eevil", "\ufffdevil"), ("\x7f", "␡")]
)
def test_controls_are_made_visible(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_lines_are_kept_when_asked() -> None:
    assert plain("a\n\tb\r\x1b", keep_lines=True) == "a\n\tb␍␛"
    assert plain("a\nb") == "a␊b"
