"""Downloads, against a server on the loopback interface that misbehaves in every way servers do."""

import hashlib
import http.server
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from handful.data import download as download_
from handful.data.download import SOURCES, Source, download, find_source
from handful.errors import DataError, RunError, UsageError

NAME = "Task99_Tiny"


@dataclass
class Behaviour:
    """How the server answers, and what it was asked."""

    content: bytes
    ranges: bool = True
    etag: str | None = '"one"'
    modified: str | None = None
    status: int = 200
    cut_after: int | None = None  # bytes sent before the connection is dropped, once
    lie_about_range: bool = False
    length: bool = True
    asked: list[tuple[str | None, str | None]] = field(default_factory=list)


class _Handler(http.server.BaseHTTPRequestHandler):
    behaviour: Behaviour

    def do_GET(self) -> None:
        b = self.behaviour
        wanted, condition = self.headers.get("Range"), self.headers.get("If-Range")
        b.asked.append((wanted, condition))
        if b.status != 200:
            self.send_error(b.status)
            return
        start = 0
        same = condition in (b.etag, b.modified)
        if wanted and b.ranges and same:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
            if start >= len(b.content):
                self.send_error(416)
                return
        body = b.content[start:]
        self.send_response(206 if start else 200)
        if start:
            first = 0 if b.lie_about_range else start
            self.send_header("Content-Range", f"bytes {first}-{len(b.content) - 1}/{len(b.content)}")
        if b.etag:
            self.send_header("ETag", b.etag)
        if b.modified:
            self.send_header("Last-Modified", b.modified)
        if b.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if b.cut_after is not None:
            body, b.cut_after = body[: b.cut_after], None
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_, "RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def make_tar(**extra: bytes) -> bytes:
    files = {f"{NAME}/dataset.json": b"{}", f"{NAME}/imagesTr/a.nii.gz": bytes(range(256)) * 3000, **extra}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def server() -> Iterator[tuple[Behaviour, Source]]:
    behaviour = Behaviour(make_tar())
    handler = type("Handler", (_Handler,), {"behaviour": behaviour})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        md5 = hashlib.md5(behaviour.content, usedforsecurity=False).hexdigest()
        url = f"http://127.0.0.1:{running.server_port}/{NAME}.tar"
        yield behaviour, Source(name=NAME, url=url, md5=md5, gigabytes=0.001, contents="a test")
        running.shutdown()
        thread.join()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_whole(folder: Path) -> None:
    assert folder.name == NAME
    assert files_of(folder) == {"dataset.json": b"{}", "imagesTr/a.nii.gz": bytes(range(256)) * 3000}
    assert sorted(p.name for p in folder.parent.iterdir()) == [NAME], "nothing but the data set stays"


def test_arrives_whole_and_only_once(server: tuple[Behaviour, Source], tmp_path: Path) -> None:
    behaviour, source = server
    seen: list[tuple[str, int, int | None]] = []
    folder = download(source, tmp_path / "new" / "place", progress=lambda *step: seen.append(step))
    assert_whole(folder)
    size = len(behaviour.content)
    assert {stage for stage, _, _ in seen} == {"downloading", "checking", "unpacking"}
    assert [step for step in seen if step[0] == "downloading"][-1] == ("downloading", size, size)
    assert download(source, folder.parent) == folder
    assert len(behaviour.asked) == 1


def test_overwrite_fetches_again_and_the_archive_can_stay(
    server: tuple[Behaviour, Source], tmp_path: Path
) -> None:
    behaviour, source = server
    folder = download(source, tmp_path)
    (folder / "dataset.json").write_text("changed")
    download(source, tmp_path, overwrite=True, keep_archive=True)
    assert (folder / "dataset.json").read_bytes() == b"{}"
    assert (tmp_path / f"{NAME}.tar").read_bytes() == behaviour.content
    download(source, tmp_path, overwrite=True)  # unpacks the archive that stayed
    assert len(behaviour.asked) == 2
    assert_whole(folder)


@pytest.mark.parametrize("validator", ["etag", "modified"])
def test_a_dropped_connection_is_taken_up_where_it_broke(
    server: tuple[Behaviour, Source], tmp_path: Path, validator: str
) -> None:
    behaviour, source = server
    behaviour.cut_after = 300_001
    if validator == "modified":
        behaviour.etag, behaviour.modified = 'W/"weak"', "Tue, 01 Jun 2021 10:00:00 GMT"
    assert_whole(download(source, tmp_path))
    expected = behaviour.etag if validator == "etag" else behaviour.modified
    assert behaviour.asked == [(None, None), ("bytes=300001-", expected)]


def test_goes_on_after_the_program_was_stopped(server: tuple[Behaviour, Source], tmp_path: Path) -> None:
    behaviour, source = server

    def stop(stage: str, done: int, total: int | None) -> None:
        if done > 250_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(source, tmp_path, progress=stop)
    here = (tmp_path / f"{NAME}.tar.part").stat().st_size
    assert 250_000 < here < len(behaviour.content)
    assert_whole(download(source, tmp_path))
    assert behaviour.asked[1] == (f"bytes={here}-", '"one"')


def test_a_file_that_changed_meanwhile_is_fetched_from_the_start(
    server: tuple[Behaviour, Source], tmp_path: Path
) -> None:
    behaviour, source = server
    (tmp_path / f"{NAME}.tar.part").write_bytes(b"x" * 1000)
    (tmp_path / f"{NAME}.tar.part.json").write_text(
        f'{{"url": "{source.url}", "validator": "\\"old\\"", "total": 9}}'
    )
    assert_whole(download(source, tmp_path))
    assert behaviour.asked == [("bytes=1000-", '"old"')]


@pytest.mark.parametrize(
    "change",
    [{"ranges": False}, {"etag": None}, {"lie_about_range": True}],
    ids=["no ranges", "no validator", "wrong range"],
)
def test_a_server_that_cannot_resume_is_asked_for_everything(
    server: tuple[Behaviour, Source], tmp_path: Path, change: dict[str, object]
) -> None:
    behaviour, source = server
    behaviour.cut_after = 5000
    for name, value in change.items():
        setattr(behaviour, name, value)
    assert_whole(download(source, tmp_path))
    assert len(behaviour.asked) >= 2


def test_a_server_that_does_not_say_how_long(server: tuple[Behaviour, Source], tmp_path: Path) -> None:
    behaviour, source = server
    behaviour.length = False
    assert_whole(download(source, tmp_path))


def test_part_longer_than_the_file_is_begun_anew(server: tuple[Behaviour, Source], tmp_path: Path) -> None:
    behaviour, source = server
    (tmp_path / f"{NAME}.tar.part").write_bytes(b"x" * (len(behaviour.content) + 7))
    (tmp_path / f"{NAME}.tar.part.json").write_text(
        f'{{"url": "{source.url}", "validator": "\\"one\\"", "total": 9}}'
    )
    assert_whole(download(source, tmp_path))


def test_wrong_checksum_is_kept_aside_and_said(server: tuple[Behaviour, Source], tmp_path: Path) -> None:
    _, source = server
    with pytest.raises(DataError, match=r"MD5 [0-9a-f]{32}, expected 0{32}.*\.tar\.bad"):
        download(replace(source, md5="0" * 32), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [f"{NAME}.tar.bad"]
    (tmp_path / f"{NAME}.tar.bad").unlink()
    assert_whole(download(source, tmp_path))


@pytest.mark.parametrize(("status", "times"), [(404, 1), (403, 1), (503, 3)])
def test_what_the_server_refuses_is_said(
    server: tuple[Behaviour, Source], tmp_path: Path, status: int, times: int
) -> None:
    behaviour, source = server
    behaviour.status = status
    with pytest.raises(RunError, match=f"{re.escape(source.url)}.* answered {status}"):
        download(source, tmp_path)
    assert len(behaviour.asked) == times, "what may pass is asked again, what will not is not"


def test_no_network_is_said(tmp_path: Path) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _Handler) as closed:
        port = closed.server_port
    source = Source(name=NAME, url=f"http://127.0.0.1:{port}/x.tar", md5="0" * 32, gigabytes=0, contents="")
    with pytest.raises(RunError, match="Check the network"):
        download(source, tmp_path)


def test_no_room_is_said_before_anything_is_fetched(
    server: tuple[Behaviour, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, source = server
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(download_.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(RunError, match=r"0\.0 GB free.*another --out"):
        download(source, tmp_path)
    assert (tmp_path / f"{NAME}.tar.part").stat().st_size == 0


def test_a_folder_that_cannot_be_written_is_said(server: tuple[Behaviour, Source], tmp_path: Path) -> None:
    _, source = server
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="another --out"):
        download(source, tmp_path / "file" / "inside")


@pytest.mark.parametrize(
    "name", ["../outside", f"{NAME}/../../outside", "/handful-outside", "a\\..\\b", "c:evil"]
)
def test_no_file_is_written_outside(tmp_path: Path, name: str) -> None:
    _assert_refused(tmp_path, make_tar(**{name: b"evil"}))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    buffer = io.BytesIO(make_tar())
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        member = tarfile.TarInfo(f"{NAME}/imagesTr/link")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    _assert_refused(tmp_path, buffer.getvalue())


def _assert_refused(tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    (out / f"{NAME}.tar").write_bytes(content)
    before = files_of(tmp_path)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    with pytest.raises(DataError, match="nothing was unpacked"):
        download(Source(name=NAME, url="", md5=md5, gigabytes=0, contents=""), out)
    assert files_of(tmp_path) == before
    assert not Path("/handful-outside").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"<html>Please log in</html>", "not a whole tar"), (make_tar()[:200_000], "not a whole tar")],
)
def test_what_is_no_archive_is_said(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / f"{NAME}.tar").write_bytes(content)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    with pytest.raises(DataError, match=words):
        download(Source(name=NAME, url="", md5=md5, gigabytes=0, contents=""), tmp_path)
    assert not (tmp_path / NAME).exists()


def test_litter_of_macos_stays_out(tmp_path: Path) -> None:
    content = make_tar(**{f"{NAME}/imagesTr/._a.nii.gz": b"x", f"{NAME}/.DS_Store": b"x", "__MACOSX/y": b"x"})
    (tmp_path / f"{NAME}.tar").write_bytes(content)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    assert_whole(download(Source(name=NAME, url="", md5=md5, gigabytes=0, contents=""), tmp_path))


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    content = make_tar()
    (tmp_path / "Other.tar").write_bytes(content)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    with pytest.raises(DataError, match=r"no Other/dataset\.json"):
        download(Source(name="Other", url="", md5=md5, gigabytes=0, contents=""), tmp_path)


def test_the_decathlon_is_complete() -> None:
    assert len(SOURCES) == 10
    for number, (name, source) in enumerate(SOURCES.items(), start=1):
        assert name.startswith(f"Task{number:02d}_")
        assert source.url.startswith("https://")
        assert source.url.endswith(f"/{name}.tar")
        assert re.fullmatch("[0-9a-f]{32}", source.md5)
    assert len({source.md5 for source in SOURCES.values()}) == 10
    with pytest.raises(UsageError, match="did you mean 'Task04_Hippocampus'"):
        find_source("Task4_hippocampus")
