"""Files that others wrote: whatever is wrong with one is an InputError of one line that names file and key."""

import json

import pytest

from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import parse_json, read_json_object, reading, shorten

ODD = {
    "deeper than the parser goes": ("[" * 10_000 + "]" * 10_000, "nested more than 100 levels"),
    "deeper than is read": ("[" * 150 + "]" * 150, "nested more than 100 levels"),
    "objects, too": ('{"a":' * 10_000 + "1" + "}" * 10_000, "nested more than 100 levels"),
    "an integer of 5,000 digits": ('{"sizes": {"hidden_size": %s}}' % ("9" * 5000), r"sizes\.hidden_size is a number"),
    "an integer beyond floats": ('{"a": 1%s}' % ("0" * 400), "a is a number that no float can hold"),
    "a float beyond floats": ('{"a": [0, 1e400]}', r"a\.1 is a number that no float can hold"),
    "NaN": ('{"rope_theta": NaN}', "rope_theta is a number that no float can hold"),
    "infinity": ('{"rope_theta": -Infinity}', "rope_theta is a number"),
    "half a surrogate pair": (r'{"model": {"eos": "\ud83d"}}', r"model\.eos holds half a surrogate pair"),
    "half a surrogate pair as key": (r'{"\udc00": 1}', r"key '\\udc00' holds half"),
    "torn": ('{"a": ', "is not valid JSON"),
    "empty": ("", "is not valid JSON"),
    "NUL": ("\0", "is not valid JSON"),
    "not UTF-8": (b'{"a": "\xff"}', "is not UTF-8 text"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "is not UTF-8 text"),
}


@pytest.mark.parametrize(("text", "message"), ODD.values(), ids=ODD)
def test_odd_json_is_refused_in_one_line(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_json(text, "config.json")
    line = str(caught.value)
    assert line.startswith("config.json") and len(line) < 300
    line.encode("utf-8")
    assert "\n" not in line


def test_what_json_itself_gives_is_what_is_given():
    content = {"a": [1, -2.5, 1e300, 10**30, True, None, "Grüße 😀 \0"], "b": {"c": {}}}
    for text in (json.dumps(content), json.dumps(content, ensure_ascii=False), "\ufeff" + json.dumps(content)):
        assert parse_json(text, "x") == content
        assert parse_json(text.encode(), "x") == content


def test_objects_are_read_from_files_and_nothing_else_is(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(InputError, match="does not exist"):
        read_json_object(path)
    with pytest.raises(InputError, match="is not a file"):
        read_json_object(tmp_path)
    path.write_text("[]")
    with pytest.raises(InputError, match="must hold a JSON object, got list"):
        read_json_object(path)
    path.write_text('\ufeff{"a": 1}', encoding="utf-8")
    assert read_json_object(path) == {"a": 1}


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2**28 + 1)  # sparse
    with pytest.raises(InputError, match="more than the 256"):
        read_json_object(path)


def test_the_boundary_names_the_file_and_lets_the_programs_end_through():
    class PanicException(BaseException):
        pass

    for error in (KeyError("k"), ZeroDivisionError("z"), MemoryError(), RecursionError(), PanicException("p\nq")):
        with pytest.raises(InputError, match=r"^model\.gguf ") as caught, reading("model.gguf"):
            raise error
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"^as it is$"), reading("model.gguf"):
        raise InputError("as it is")
    for error in (KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(error), reading("model.gguf"):
            raise error


def test_values_are_shown_in_one_short_printable_line():
    assert shorten([1, "a\n"]) == r"[1, 'a\n']"
    assert len(shorten("x" * 10**6)) == 120
    shorten("\ud800").encode("utf-8")
