from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remote_tasks.output import LineSplitter, MarkerFilter, TailBuffer

CHUNKS = st.lists(st.binary(max_size=50), max_size=30)


@given(CHUNKS, st.integers(1, 60))
def test_the_tail_is_the_end_whatever_the_pieces(chunks: list[bytes], limit: int) -> None:
    tail = TailBuffer(limit)
    for chunk in chunks:
        tail.feed(chunk)
    whole = b"".join(chunks)
    assert tail.total == len(whole)
    assert tail.cut == max(0, len(whole) - limit)
    if not tail.cut:
        assert tail.text() == whole.decode(errors="replace")
    else:
        assert tail.text().startswith("[... the first ")
        kept = tail.text().split("\n", 1)[1]
        assert whole.decode(errors="replace").endswith(kept.lstrip("\ufffd"))


def test_a_cut_says_how_much_and_falls_between_characters() -> None:
    tail = TailBuffer(5)
    tail.feed("äöü".encode())
    assert tail.text() == "[... the first 2 of 6 bytes are cut ...]\nöü"


@given(CHUNKS)
def test_lines_are_those_of_the_whole_text(chunks: list[bytes]) -> None:
    splitter = LineSplitter()
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    lines += splitter.feed(b"", final=True)
    text = b"".join(chunks).decode(errors="replace")
    expected = text.split("\n")
    if not expected[-1]:
        expected.pop()
    assert lines == [line.removesuffix("\r") for line in expected]


def test_a_line_without_end_does_not_pile_up() -> None:
    splitter = LineSplitter(max_line=10)
    assert splitter.feed(b"x" * 25) == ["x" * 10, "x" * 10]
    assert splitter.feed(b"y\nz") == ["xxxxxy"]
    assert splitter.feed(b"", final=True) == ["z"]


@given(st.binary(max_size=40), st.binary(max_size=40), st.integers(1, 20))
def test_what_comes_before_the_marker_is_dropped(noise: bytes, data: bytes, size: int) -> None:
    marker = MarkerFilter("TOKEN-12345")
    stream = noise + b"TOKEN-12345 17 99\n" + data
    out = b"".join(marker.feed(stream[i : i + size]) for i in range(0, len(stream), size))
    assert out == data
    assert marker.words == ["17", "99"]


def test_without_a_marker_the_end_of_the_noise_is_kept() -> None:
    marker = MarkerFilter("TOKEN")
    for _ in range(1000):
        assert marker.feed(b"noise " * 100) == b""
    marker.feed(b"This account is not available.")
    assert marker.words is None
    assert marker.preface.endswith("This account is not available.")
    assert len(marker.preface) <= 4096
