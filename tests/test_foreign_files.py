"""Text and JSON of any origin: what is read, and what is refused in one sentence."""

import codecs
import json
import sys

import pytest

from diamond_diffusers.files import foreign as foreign_files
from diamond_diffusers.files.foreign import ForeignFileError, read_json, read_lines, read_text


def written(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_is_read_whatever_editor_saved_it(tmp_path, mark, encoding, end):
    content = mark + f"größer{end}ein 😀{end}".encode(encoding)
    assert read_text(written(tmp_path, content)) == "größer\nein 😀\n"


def test_lines_end_where_an_editor_ends_them(tmp_path):
    text = "a\u2028b\n\n \nc\x0bd\x0ce\x1cf\x85g\r\nh"
    assert list(read_lines(written(tmp_path, text.encode()))) == [
        (1, "a\u2028b"),
        (4, "c\x0bd\x0ce\x1cf\x85g"),
        (5, "h"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ein\ngrößer".encode("latin-1"), r"^line 2 of '.*file' is not in UTF-8; save the file as UTF-8$"),
        ("a\rb\r\ngrößer".encode("latin-1"), "^line 3 of"),
        ("a\nb".encode("utf-16-le"), r"^line 1 of '.*file' holds a zero byte; save"),
        (b"a\nb\0", "^line 2 of '.*file' holds a zero byte"),
        (codecs.BOM_UTF16_LE + "a\nb".encode("utf-16-le") + b"\x00\xd8", "^line 2 of '.*file' is not in UTF-16-LE"),
        (b"\x89PNG\r\n", "^line 1 of"),
        (b"a\n\xed\xa0\x80", "^line 2 of"),
    ],
)
def test_what_is_no_text_is_refused_with_its_line(tmp_path, content, message):
    with pytest.raises(ForeignFileError, match=message):
        read_text(written(tmp_path, content))


def test_what_is_no_file_and_what_is_too_large_are_refused(tmp_path, monkeypatch):
    for name, reason in ((".", "Is a directory"), ("nowhere", "No such file"), ("a\0b", "embedded null")):
        with pytest.raises(ForeignFileError, match=rf"cannot be read \({reason}.*\); name a file of text"):
            read_text(tmp_path / name)
    monkeypatch.setattr(foreign_files, "MAX_BYTES", 3)
    assert read_text(written(tmp_path, b"abc")) == "abc"
    with pytest.raises(ForeignFileError, match="has more than 3 bytes; split it"):
        read_text(written(tmp_path, b"abcd"))


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028", "\x1b[2J", "\udcff"])
def test_a_name_of_several_lines_is_told_in_one(tmp_path, end):
    with pytest.raises(ForeignFileError, match=r"^'.*a\\.*b' cannot be read \(No such file") as refusal:
        read_text(tmp_path / f"a{end}b")
    assert end not in str(refusal.value)
    assert str(refusal.value).encode() and "größer 😀 " in str(ForeignFileError("größer 😀 \u3000"))


def test_json_is_read(tmp_path):
    value = {"a": [1, -2.5, True, None, "größer\n😀"], "b": {"a": "\\ud800"}}
    for content in (json.dumps(value).encode(), codecs.BOM_UTF8 + json.dumps(value, ensure_ascii=False).encode()):
        assert read_json(written(tmp_path, content), "mend it") == value
    deepest = "[" * foreign_files.MAX_DEPTH + "1" + "]" * foreign_files.MAX_DEPTH
    assert json.dumps(read_json(written(tmp_path, deepest.encode()), "mend it")) == deepest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^'.*file' is no JSON \(Expecting value: line 1 column 1 \(char 0\)\); mend it$"),
        ('{"a": 1,\n}', "line 2|line 1 column 8"),
        ('{"a": {"b": 1, "b": 2}}', "the key 'b' comes twice"),
        (r'{"\ud800": 1, "\ud800": 2}', r"the key '\\\\ud800' comes twice"),
        ('{"a": [1, NaN]}', r"^a\[1\] of '.*file' is nan, which is no number; mend it$"),
        ('{"a": {"b": -Infinity}}', r"^a\.b of '.*file' is -inf"),
        ('{"a": 1e400}', r"^a of '.*file' is inf"),
        ('{"a": ' + "1" * 5000 + "}", "is no JSON .*4300 digits"),
        (r'{"a": "x\ud800y"}', r"^a of '.*file' holds 'x\\\\ud800y', which is no Unicode text"),
        (r'{"a": "x\u0000y"}', r"^a of '.*file' holds 'x\\\\x00y'"),
        (r'{"\udc00": 1}', r"^the value of '.*file' holds"),
        ('{"a\\nb": [NaN]}', r"^a\\nb\[0\] of '.*file' is nan"),
        ('{"a\\u2028\\u001b[31m": NaN}', r"^a\\u2028\\x1b\[31m of"),
        ("[" * 65 + "1" + "]" * 65, "is nested deeper than 64 levels; mend it"),
        ('{"a":' * 900 + "1" + "}" * 900, "is nested deeper than 64 levels"),
        ("[" * 100_000, "is nested deeper than 64 levels"),
    ],
)
def test_json_that_cannot_be_meant_is_refused(tmp_path, text, message):
    limit = sys.getrecursionlimit()
    with pytest.raises(ForeignFileError, match=message) as refusal:
        read_json(written(tmp_path, text.encode()), "mend it")
    # The sentence can be printed, and is one.
    assert str(refusal.value).encode() and "\n" not in str(refusal.value)
    assert sys.getrecursionlimit() == limit
