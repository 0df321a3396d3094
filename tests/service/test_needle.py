"""Tests of service/needle.py."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.needle import Needle, folded, is_alike


@pytest.mark.parametrize(
    ("text", "line", "is_there"),
    [
        ("nan", "loss is NaN", True),
        ("NAN", "loss is nan", True),
        ("nan", "loss is n an", False),
        ("ÄRGER", "viel ärger", True),
        ("οδος", "ΟΔΟς", True),
        ("ΟΔΟΣ A", "οδοσ a", True),
        ("50%", "at 50% of it", True),
        ("50%", "at 500 of it", False),
        ("a.c", "abc", False),
        ("", "anything", True),
    ],
)
def test_a_text_is_found_as_it_stands(text, line, is_there):
    """Capitals or not; no character has a meaning of its own."""
    assert Needle(text).is_in(line) is is_there


def test_folding_keeps_the_length_and_the_two_kinds_of_letters_apart():
    """Of every character there is: so what is found here lies at the same place in the line, and databases that fold only ASCII agree."""
    letters = [chr(code) for code in range(sys.maxunicode + 1)]

    assert [letter for letter in letters if len(folded(letter)) != 1] == []
    assert [letter for letter in letters if letter > "\x7f" and folded(letter) <= "\x7f"] == []


@given(st.text(max_size=6), st.text(max_size=3), st.text(max_size=3))
def test_every_line_with_the_text_in_it_is_found(text, before, behind):
    """Whatever stands around it."""
    assert Needle(text).is_in(before + text + behind)


@pytest.mark.parametrize(
    ("text", "core"), [("abc", "abc"), ("über alles", "ber alles"), ("äöü", ""), ("aéb\ncd", "b\ncd"), ("é損失", "損失"), ("", "")]
)
def test_a_database_is_asked_for_what_all_compare_alike(text, core):
    """The longest stretch of it."""
    assert Needle(text).core == core


def test_no_other_letter_is_found_by_one_that_all_databases_compare_alike():
    """Beyond ASCII."""
    letters = map(chr, range(0x80, sys.maxunicode + 1))
    assert [letter for letter in letters if folded(letter) != letter and is_alike(folded(letter))] == []
