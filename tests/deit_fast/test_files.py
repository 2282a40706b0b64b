"""What cannot be written is refused before the work is begun."""

from pathlib import Path

import pytest

from deit_fast.files import check_writable


def test_a_new_file_an_old_file_and_a_folder_of_new_folders_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    check_writable(tmp_path / "new.json", "type another")
    check_writable(tmp_path / "old.json", "type another")
    check_writable(tmp_path, "type another", folder=True)
    check_writable(tmp_path / "a" / "b", "type another", folder=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"], "nothing is made"


@pytest.mark.parametrize(
    ("path", "folder", "reason"),
    [
        ("", False, "it is a folder"),
        ("no/a.json", False, "there is no folder {root}/no"),
        ("file/a.json", False, "{root}/file is not a folder that you may write to"),
        ("file", True, "{root}/file is not a folder that you may write to"),
        ("file/run/a", True, "{root}/file is not a folder that you may write to"),
        ("locked/run", True, "{root}/locked is not a folder that you may write to"),
    ],
)
def test_the_reason_is_named(tmp_path: Path, path: str, folder: bool, reason: str, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "locked").mkdir()
    # Root may write everywhere, so the folder's mode does not count in a container.
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "locked")
    with pytest.raises(ValueError) as refused:
        check_writable(tmp_path / path, "type another --out", folder=folder)
    expected = f"{tmp_path / path} cannot be written ({reason.format(root=tmp_path)}): type another --out"
    assert str(refused.value) == expected
