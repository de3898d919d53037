"""Text of others cannot break out of its field."""

from __future__ import annotations

from daybreak_operator.text import plain


def test_a_terminal_only_shows_it() -> None:
    """Escape sequences of a worker's message are no orders to whoever reads the status."""
    assert plain("no\troom\r\n\x1b[2Jleft\u202e", 99) == "no room [2Jleft"


def test_it_is_one_line_of_a_length() -> None:
    """However much there is of it."""
    assert plain("x" * 10**6, 5) == "xxxx…"
    assert plain("x" * 5, 5) == "xxxxx"
