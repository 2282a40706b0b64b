"""Tar members that try to leave their folder: nothing is unpacked, so nothing does."""

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from deit_fast.data.sources.shards import TarShards


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "a/../../outside"])
def test_a_member_outside_of_its_folder_is_bytes_at_an_offset_and_no_file(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "shard.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for suffix, content in ((".png", png()), (".cls", b"0")):
            member = tarfile.TarInfo(name + suffix)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    before = sorted(tmp_path.rglob("*"))
    assert TarShards([folder / "shard.tar"], "hostile").read(0) == png()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_is_not_followed(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = kind, "/etc/passwd"
        tar.addfile(link)
        label = tarfile.TarInfo("0.cls")
        label.size = 1
        tar.addfile(label, io.BytesIO(b"0"))
    with pytest.raises(ValueError, match="sample 0 has no image"):
        TarShards([tmp_path / "shard.tar"], "hostile")
