"""Files and the directories above them."""

import files


def test_directories_come_first_and_once() -> None:
    found = files.below({"b/c/two.py": "2", "b/one.txt": "1"}, "/opt/a")
    assert [(entry["path"], entry["mode"], entry.get("content")) for entry in found] == [
        ("/opt/a", "0755", None),
        ("/opt/a/b", "0755", None),
        ("/opt/a/b/c", "0755", None),
        ("/opt/a/b/c/two.py", "0644", "2"),
        ("/opt/a/b/one.txt", "0644", "1"),
    ]


def test_what_is_above_the_root_is_left_alone() -> None:
    assert [entry["path"] for entry in files.below({"x": ""}, "/opt/a/b")] == ["/opt/a/b", "/opt/a/b/x"]
