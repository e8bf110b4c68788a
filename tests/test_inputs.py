"""Files within bounds and values in range: what is refused is refused unread, and in one line."""

import os
import socket

import pytest

from stepaudio_jax.inputs import InputError, integer_problem, number_problem, one_line, read_object, read_text, shown
from stepaudio_jax.inputs.files import MAX_DEPTH, MAX_JSON_BYTES, MAX_LINE, parse_json


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_text('{"password": 1}')
    return path


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "downloaded"
    path.mkdir()
    return path


def test_only_ordinary_files_are_opened(folder):
    os.mkfifo(folder / "pipe")  # an open that waits for its writer would never return
    (folder / "folder").mkdir()
    (folder / "zeros").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(folder / "door"))
    for name, kind in (("pipe", "a named pipe"), ("folder", "a folder"), ("door", "a socket"), ("zeros", "a link to")):
        with pytest.raises(InputError, match=kind):
            read_text(folder / name)
    with pytest.raises(FileNotFoundError):
        read_text(folder / "nothing")


def test_links_stay_in_their_folder(folder, secret):
    (folder / "real.json").write_text('{"a": 1}')
    (folder / "inside.json").symlink_to("real.json")
    assert read_object(folder / "inside.json") == {"a": 1}
    (folder.parent / "folder_of_links").symlink_to(folder)  # the way to the folder may be a link
    assert read_object(folder.parent / "folder_of_links" / "real.json") == {"a": 1}
    (folder / "out.json").symlink_to(secret)
    (folder / "relative.json").symlink_to("../secret")
    (folder / "through.json").symlink_to("out.json")
    (folder / "around.json").symlink_to("around.json")
    (folder / "dangling.json").symlink_to("gone.json")
    for name in ("out", "relative", "through"):
        with pytest.raises(InputError, match="outside its folder"):
            read_object(folder / f"{name}.json")
    with pytest.raises(InputError, match=r"a link to gone.json, which is not there"):
        read_object(folder / "dangling.json")
    with pytest.raises(OSError, match="symbolic links"):
        read_object(folder / "around.json")


@pytest.mark.parametrize("inner", ["", "params/d"])
def test_links_of_the_hubs_cache_lead_to_its_blobs(tmp_path, secret, inner):
    """The layout that huggingface_hub documents: REPOSITORY/snapshots/COMMIT/FILE → REPOSITORY/blobs/HASH."""
    repository = tmp_path / "models--owner--name"
    snapshot, blobs = repository / "snapshots" / "0123abcd" / inner, repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "4f5e").write_text('{"a": 1}')
    (snapshot / "config.json").symlink_to(os.path.relpath(blobs / "4f5e", snapshot))
    assert read_object(snapshot / "config.json") == {"a": 1}
    (blobs / "stolen").symlink_to(secret)  # a blob is a file, never a way out
    for name, target in (("one", blobs / "stolen"), ("two", secret), ("three", repository / "other")):
        (repository / "other").write_text("{}")
        (snapshot / name).symlink_to(target)
        with pytest.raises(InputError, match="outside its folder"):
            read_object(snapshot / name)


def test_a_file_may_not_be_larger_than_asked_for(folder):
    with (folder / "sparse.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=r"1,099,511,627,776 bytes; expected at most 16,777,216"):
        read_object(folder / "sparse.json")
    with (folder / "sparse.json").open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(InputError, match="expected at most"):
        read_object(folder / "sparse.json")


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


def test_json_is_no_deeper_than_said():
    parse_json(nested(MAX_DEPTH), "x")
    for deep in (nested(MAX_DEPTH + 1), b"[" * 100_000, b'{"":[' * 50_000, b"[" * (MAX_DEPTH + 1) + b"]" * 2):
        with pytest.raises(InputError, match="x: JSON nested more than 64 deep"):
            parse_json(deep, "x")
    quoted = b'{"a": "' + b"[" * 1000 + b'\\"[{", "b\\\\": ["]]"]}'  # brackets in text are no brackets
    assert parse_json(quoted, "x")["b\\"] == ["]]"]
    with pytest.raises(InputError, match="not JSON"):  # quotes that never close take no longer than others
        parse_json(b'"\\"' * 2_000_000, "x")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" + b"9" * 5000 + b"]", "not JSON"),  # more digits than Python makes an integer of
        (b"[1]", "expected a JSON object"),
        (b"", "not JSON"),
    ],
)
def test_what_is_no_object(folder, data, message):
    (folder / "x.json").write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_object(folder / "x.json")
    assert str(caught.value).startswith(f"{folder / 'x.json'}: ") and "\n" not in str(caught.value)


def test_keys_that_come_twice():
    assert parse_json(b'{"a": 1, "a": 2}', "x") == {"a": 2}
    with pytest.raises(InputError, match="x: a is given twice"):
        parse_json(b'{"b": {"a": 1, "c": 3, "a": 2}}', "x", unique=True)


def test_messages_are_one_line_whatever_is_in_them():
    assert one_line("a\nb\t\x1b[31mred\ud800") == "a b \\x1b[31mred\\xd800"
    assert len(one_line("x" * 10**7)) < MAX_LINE + 10
    assert shown("\n\x1b[31m\u202e") == '"\\x0a\\x1b[31m\\x202e"'
    assert len(shown([[[[[[[[["x" * 1000]]]]]]]]])) < 100 and len(shown("x" * 1000)) < 100


def test_numbers_of_json():
    for value in (1, 5):
        assert integer_problem(value, 1, 5) is None is number_problem(value, 1, 5)
    assert number_problem(1.5, 1, 5) is None and integer_problem(0, 0, 5) is None
    for value in (None, True, "3", [3], {}, 2.0, float("nan"), float("inf"), -1, 0, 6, 10**400, -(10**400)):
        assert integer_problem(value, 1, 5).startswith("expected")
    for value in (None, True, "3", [3], {}, float("nan"), float("inf"), float("-inf"), 0.0, 5.1, 10**400):
        assert number_problem(value, 1, 5).startswith("expected")
