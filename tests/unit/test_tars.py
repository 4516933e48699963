"""Tars of every kind: damaged, truncated, concatenated, sparse, with links, and as other programs write them."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_ray.config import ObjectStoreConfig, SourceConfig
from mpa_ray.corpus.index import Selection, check_source
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.read import Reader
from mpa_ray.corpus.sources.left_out import LeftOut
from mpa_ray.corpus.sources.tar import DamagedTar, Kind, TarReader
from mpa_ray.errors import ConfigError
from mpa_ray.records import ImageRef
from tests.sources import as_saved_dataset

PLACES = Places(ObjectStoreConfig())
READER = Reader(ObjectStoreConfig())
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
BLOCK = 512


def tar_of(members: Iterable[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, content in members:
            add(tar, name, content)
    return out.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(content))


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """A header with any size field and a valid checksum."""
    member = tarfile.TarInfo(name)
    member.type = kind
    block = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size.ljust(12, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def listing(path: Path, after: ImageRef | None = None, **settings: Any) -> list[ImageRef | LeftOut]:
    config = SourceConfig.model_validate({"path": str(path), **settings})
    return list(Selection(config, PLACES).listing(after))


def listed(path: Path, content: bytes | None = None, **settings: Any) -> list[ImageRef]:
    if content is not None:
        path.write_bytes(content)
    return [item for item in listing(path, **settings) if isinstance(item, ImageRef)]


def left_out(path: Path, **settings: Any) -> dict[str, int]:
    return dict(Counter(item.label for item in listing(path, **settings) if isinstance(item, LeftOut)))


def names(refs: Iterable[ImageRef]) -> list[str]:
    return [ref.image_id.partition("/")[2] for ref in refs]


def read(refs: Iterable[ImageRef]) -> list[object]:
    return list(READER.read([ref.uri for ref in refs]))


SAMPLES = [(f"{n}.png", b"image %d" % n * (n * 50 + 1)) for n in range(6)]


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=130), st.binary()
        ),
        max_size=5,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_members_are_those_that_tarfile_finds(members: list[tuple[str, bytes]], form: int) -> None:
    content = tar_of(members, form)
    read = [(m.name, m.first, m.num_bytes) for m in TarReader(io.BytesIO(content), len(content)).members()]
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert read == [(m.name, m.offset_data, m.size) for m in tar]


@pytest.mark.parametrize("form", FORMATS)
def test_tars_of_every_format_are_read(form: int, tmp_path: Path) -> None:
    long = "d" * 90 + "/" + "f" * 90 + ".png"
    members = [*SAMPLES, (long, b"long"), ("caf\u00e9.png", b"accent")]
    refs = listed(tmp_path / "a.tar", tar_of(members, form))
    assert names(refs) == [name for name, _ in members]
    assert read(refs) == [content for _, content in members]


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the command tar")
@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_tars_of_the_command_tar_are_read(form: str, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.png").write_bytes(b"first")
    (folder / "sub/b.png").write_bytes(b"second" * 400)
    os.link(folder / "a.png", folder / "c.png")
    (folder / "sub/d.png").symlink_to("../a.png")
    with (folder / "e.png").open("wb") as file:
        file.truncate(2**20)
        file.seek(2**19)
        file.write(b"between holes")
    sparse = [] if form in ("v7", "ustar") else ["--sparse"]
    path = tmp_path / "a.tar"
    command = ["tar", f"--format={form}", *sparse, "--sort=name", "-cf", str(path), "-C", str(folder), "."]
    subprocess.run(command, check=True)
    contents = dict(zip(names(refs := listed(path)), read(refs), strict=True))
    expected = {
        "./a.png": b"first",
        "./c.png": b"first",
        "./sub/b.png": b"second" * 400,
        "./sub/d.png": b"first",
    }
    if sparse:
        assert left_out(path) == {"sparse files (in tars)": 1}
    else:
        expected["./e.png"] = (folder / "e.png").read_bytes()
    assert contents == expected


def test_the_member_after_a_sparse_file_with_many_holes_is_found(tmp_path: Path) -> None:
    # More than four parts need blocks after the header.
    with (tmp_path / "a.png").open("wb") as file:
        for number in range(60):
            file.seek(number * 65536)
            file.write(b"part")
    (tmp_path / "b.png").write_bytes(b"after")
    command = ["tar", "--format=gnu", "--sparse", "-cf", "a.tar", "a.png", "b.png"]
    subprocess.run(command, check=True, cwd=tmp_path)
    refs = listed(tmp_path / "a.tar")
    assert names(refs) == ["b.png"]
    assert read(refs) == [b"after"]


@pytest.mark.parametrize(
    "size",
    [
        b"\xff" * 10 + b"\xfe\x00",
        b"\xff" * 12,
        b"-1000\0",
        b"-0000001000",
        b"\x80" + b"\xff" * 11,
        b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7,
        b"77777777777\0",
        b"12x\0",
        b"1_0\0",
        b"+10\0",
    ],
)
@pytest.mark.parametrize("kind", [b"0", b"L", b"x", b"g", b"K", b"S", b"7", b"Z"])
def test_a_wrong_size_is_refused_at_once(size: bytes, kind: bytes, tmp_path: Path) -> None:
    content = tar_of(SAMPLES[:1])[:1024] + header("b.png", size, kind) + bytes(1024)
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.tar cannot be read as a tar .*(valid size|is cut|extended header of)"):
        listed(tmp_path / "a.tar")


@pytest.mark.parametrize("size", ["-512", "1e3", "9" * 30, "", "\u0663"])
def test_a_wrong_size_in_an_extended_header_is_refused(size: str, tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        add(tar, "a.png", b"abc", pax_headers={"size": size})
    with pytest.raises(ConfigError, match=r"a\.png has no valid size|is cut"):
        listed(tmp_path / "a.tar", out.getvalue())


def test_a_size_in_an_extended_header_is_used(tmp_path: Path) -> None:
    record = b"13 size=1000\n"
    content = header("x", b"%o" % len(record), b"x") + record.ljust(BLOCK, b"\0") + header("a.png", b"0")
    refs = listed(tmp_path / "a.tar", content + b"i" * 1000 + bytes(24 + 1024))
    assert read(refs) == [b"i" * 1000]


@pytest.mark.parametrize("record", [b"5 a=b\n", b"99 path=a\n", b"path=a\n", b"0 path=a\n", b"6 a=bc", b"12 path=ab\n"])
def test_a_damaged_extended_header_is_refused(record: bytes, tmp_path: Path) -> None:
    content = header("x", b"%o" % len(record), b"x") + record.ljust(BLOCK, b"\0") + header("a.png", b"0") + bytes(1024)
    with pytest.raises(ConfigError, match="damaged extended header"):
        listed(tmp_path / "a.tar", content)


def test_an_extended_header_is_not_held_in_memory_whatever_its_size(tmp_path: Path) -> None:
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(header("x", b"%o" % 2**32, b"L"))
        file.truncate(2**33)
    with pytest.raises(ConfigError, match="extended header of 4294967296 bytes"):
        listed(tmp_path / "a.tar")


def test_a_tar_that_is_cut_anywhere_is_named_or_reported(tmp_path: Path) -> None:
    whole = tar_of(SAMPLES)
    end = len(whole.rstrip(b"\0")) // BLOCK * BLOCK + BLOCK
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        spans = [range(m.offset_data + m.size, -(-(m.offset_data + m.size) // BLOCK) * BLOCK + 1) for m in tar]
    # Truncated between two members, or in the zeros that fill a block.
    whole_members = {size for span in spans for size in span}
    path = tmp_path / "a.tar"
    for size in [*range(0, end, 100), *range(0, end + 1, BLOCK)]:
        path.write_bytes(whole[:size])
        with (
            pytest.raises(ConfigError, match=r"a\.tar cannot be read as a tar")
            if size not in whole_members
            else nullcontext()
        ):
            refs = listed(path)
            assert [content for _, content in SAMPLES[: len(refs)]] == read(refs)
            assert left_out(path) == {"ends of tars that may be truncated (no end mark)": 1}


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    content = bytearray(tar_of(SAMPLES))
    position = content.index(b"3.png")
    content[position + 3] ^= 1
    with pytest.raises(ConfigError, match=rf"a\.tar cannot be read as a tar \(it is damaged at byte {position}, "):
        listed(tmp_path / "a.tar", bytes(content))


def test_bytes_after_the_end_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it is damaged at byte"):
        listed(tmp_path / "a.tar", tar_of(SAMPLES) + b"garbage" * 100)


@pytest.mark.parametrize("end", [b"", bytes(BLOCK), bytes(100 * BLOCK)])
def test_joined_tars_are_read_to_the_last(end: bytes, tmp_path: Path) -> None:
    parts = [tar_of(SAMPLES, form) for form in FORMATS]
    refs = listed(tmp_path / "a.tar", end.join(parts))
    assert len({ref.image_id for ref in refs}) == 3 * len(SAMPLES)
    assert names(refs)[: len(SAMPLES)] == [name for name, _ in SAMPLES]
    assert read(refs) == 3 * [content for _, content in SAMPLES]
    for position in (0, 7, 12):
        rest = listing(tmp_path / "a.tar", refs[position])
        assert rest == refs[position + 1 :]


def test_samples_of_joined_tars_do_not_mix(tmp_path: Path) -> None:
    parts = [tar_of([("a.png", b"image"), ("a.txt", caption)]) for caption in (b"one", b"two")]
    refs = listed(tmp_path / "a.tar", b"".join(parts), metadata=["txt"])
    assert [json.loads(ref.metadata or "")["txt"] for ref in refs] == ["one", "two"]


def test_names_stay_unique_whatever_they_are(tmp_path: Path) -> None:
    members = [("a.png", b"1"), ("a.png@1536", b"2"), ("a.png", b"3"), ("a.png@1536@2560", b"4"), ("a.png", b"5")]
    refs = listed(tmp_path / "a.tar", tar_of(members), extensions=[])
    assert len({ref.image_id for ref in refs}) == 5
    assert read(refs) == [b"1", b"2", b"3", b"4", b"5"]


def test_links_are_the_images_that_they_lead_to(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        add(tar, "a/1.png", b"image")
        add(tar, "a/2.png", type=tarfile.LNKTYPE, linkname="a/1.png")
        add(tar, "b/3.png", type=tarfile.SYMTYPE, linkname="../a/1.png")
        add(tar, "a/4.png", type=tarfile.SYMTYPE, linkname="1.png")
        add(tar, "a/5.png", type=tarfile.LNKTYPE, linkname="a/4.png")
        add(tar, "a/6.png", type=tarfile.SYMTYPE, linkname="7.png")
        add(tar, "a/7.png", type=tarfile.SYMTYPE, linkname="6.png")
        add(tar, "a/8.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "a/9.png", type=tarfile.LNKTYPE, linkname="../../etc/passwd")
    refs = listed(tmp_path / "a.tar", out.getvalue())
    assert names(refs) == ["a/1.png", "a/2.png", "b/3.png", "a/4.png", "a/5.png"]
    assert read(refs) == [b"image"] * 5
    assert left_out(tmp_path / "a.tar") == {
        "symbolic links (to no image before them in the tar)": 3,
        "hard links (to no image before them in the tar)": 1,
    }


def test_other_members_are_left_out(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        add(tar, "folder", type=tarfile.DIRTYPE)
        add(tar, "folder.png", type=tarfile.DIRTYPE)
        add(tar, "pipe.png", type=tarfile.FIFOTYPE)
        add(tar, "device.png", type=tarfile.CHRTYPE)
        add(tar, "1.png", b"image")
        add(tar, "2.mp4", b"image")
        add(tar, "3", b"text")
    assert names(listed(tmp_path / "a.tar", out.getvalue())) == ["1.png"]
    labels = left_out(tmp_path / "a.tar")
    assert labels["other members (in tars)"] == 2
    assert labels["no ending"] == 1
    assert sum(labels.values()) == 4


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it has no bytes"),
        (b"\xff\xd8\xff\xe0" + bytes(2000), "it does not begin with a header"),
        (b"\xff\xd8\xff", "it is cut off at byte 3, in a header"),
        (gzip.compress(os.urandom(5000)), "it is compressed with gzip"),
        (b"BZh9" + b"1" * 600, "it is compressed with bzip2"),
        (b"\x28\xb5\x2f\xfd" + b"1" * 600, "it is compressed with zstd"),
    ],
)
def test_what_is_no_tar_is_named(content: bytes, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"a\.tar cannot be read as a tar \({problem}"):
        listed(tmp_path / "a.tar", content)


def test_an_empty_tar_holds_no_images(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of([]))
    assert listing(tmp_path / "a.tar") == []
    with pytest.raises(ConfigError, match="holds no images"):
        check_source(SourceConfig(path=str(tmp_path / "a.tar")), PLACES)


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("content", "label"),
    [
        (b"{", ".json (damaged metadata)"),
        (DEEP, ".json (damaged metadata)"),
        (b'{"caption": ' + b"1" * 10_000 + b"}", ".json (damaged metadata)"),
        (b'{"caption": "' + b"x" * 2**20 + b'"}', ".json (metadata larger than 1 MiB)"),
    ],
)
def test_a_bad_json_member_is_counted_and_its_image_has_no_caption(content: bytes, label: str, tmp_path: Path) -> None:
    members = [("0.png", b"0"), ("0.json", b'{"caption": "c"}'), ("1.png", b"1"), ("1.json", content)]
    refs = listed(tmp_path / "a.tar", tar_of(members), metadata=["caption"])
    assert [json.loads(ref.metadata or "")["caption"] for ref in refs] == ["c", None]
    assert left_out(tmp_path / "a.tar", metadata=["caption"]) == {label: 1}


@pytest.mark.parametrize("ending", ["tar", "parquet"])
def test_one_cut_file_does_not_affect_the_others(ending: str, tmp_path: Path) -> None:
    for number in range(3):
        path = tmp_path / f"{number}.{ending}"
        if ending == "tar":
            path.write_bytes(tar_of(SAMPLES))
        else:
            pq.write_table(pa.table({"image": [content for _, content in SAMPLES]}), path)
    bad = tmp_path / f"1.{ending}"
    bad.write_bytes(bad.read_bytes()[: 2600 if ending == "tar" else -20])
    with pytest.raises(ConfigError, match=rf"1\.{ending} cannot be read as .*source\.skip_damaged") as caught:
        listed(tmp_path)
    assert "\n" not in str(caught.value)
    refs = listed(tmp_path, skip_damaged=True)
    assert read(refs) == 2 * [content for _, content in SAMPLES]
    assert left_out(tmp_path, skip_damaged=True) == {"damaged files (source.skip_damaged)": 1}
    rest = listing(tmp_path, refs[7], skip_damaged=True)
    assert [item for item in rest if isinstance(item, ImageRef)] == refs[8:]


def test_a_damaged_file_of_a_saved_dataset_is_left_out(tmp_path: Path) -> None:
    folder = as_saved_dataset([b"image"] * 30, tmp_path)
    files = sorted(folder.glob("*.arrow"))
    files[0].write_bytes(b"\0" * 1000)
    with pytest.raises(ConfigError, match=r"cannot be read as an Arrow stream .*skip_damaged"):
        listed(folder)
    assert left_out(folder, skip_damaged=True) == {"damaged files (source.skip_damaged)": 1}


def test_a_file_that_cannot_be_opened_is_not_damaged(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar_of(SAMPLES))
    (tmp_path / "1.tar").symlink_to("gone")
    with pytest.raises(ConfigError, match=r"1\.tar cannot be read \(No such file or directory\)"):
        listed(tmp_path, skip_damaged=True)


def flips(content: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 3, 20])):
        content[chance.randrange(len(content))] ^= chance.randrange(1, 256)


def valid_headers_with_other_fields(content: bytearray, chance: random.Random) -> None:
    first = chance.randrange(len(content) // BLOCK) * BLOCK
    block = content[first : first + BLOCK]
    at = chance.choice([0, 124, 156, 257, 345, 482])
    block[at : at + 4] = chance.randbytes(4)
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    content[first : first + BLOCK] = block


@pytest.mark.parametrize("damage", [flips, valid_headers_with_other_fields])
def test_reading_ends_whatever_is_damaged(damage: Callable[[bytearray, random.Random], None]) -> None:
    chance = random.Random(7)
    whole = tar_of([*SAMPLES, ("n" * 300 + ".png", b"x")], tarfile.GNU_FORMAT)
    outcomes: Counter[str] = Counter()
    for _ in range(2000):
        content = bytearray(whole)
        damage(content, chance)
        try:
            members = list(TarReader(io.BytesIO(content), len(content)).members())
        except DamagedTar:
            outcomes["damaged"] += 1
        else:
            outcomes["read"] += 1
            assert len(members) <= len(content) // BLOCK
            assert all(m.first + m.num_bytes <= len(content) for m in members if m.kind is Kind.FILE)
    assert min(outcomes.values()) > 10
