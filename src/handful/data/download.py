"""Fetch a public data set: resumable, checksummed, unpacked whole or not at all.

The ten tasks of the Medical Segmentation Decathlon come from the copy its organisers and MONAI keep as open data.

References:
    Antonelli et al., 2022, The Medical Segmentation Decathlon. https://doi.org/10.1038/s41467-022-30695-9
"""

import hashlib
import http.client
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from handful.artefacts import read_json, write_json
from handful.errors import DataError, HandfulError, RunError, UsageError, nearest

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, the bytes done so far, and how many there are (None: the server did not say)."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a data set is to be had.

    Attributes:
        name: what the user calls it; also the folder inside the archive.
        url: of the tar archive.
        md5: of the archive, 32 hexadecimal digits.
        gigabytes: about how large the archive is, to decide by; the server is asked for the exact size.
        contents: what is in it, in a few words.
        licence: under which it may be used.
    """

    name: str
    url: str
    md5: str
    gigabytes: float
    contents: str
    licence: str = "CC BY-SA 4.0"


def _decathlon(name: str, md5: str, gigabytes: float, contents: str) -> Source:
    url = f"https://msd-for-monai.s3-us-west-2.amazonaws.com/{name}.tar"
    return Source(name=name, url=url, md5=md5, gigabytes=gigabytes, contents=contents)


# The MD5 sums are those MONAI's DecathlonDataset publishes for these very files.
SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        _decathlon(
            "Task01_BrainTumour",
            "240a19d752f0d9e9101544901065d872",
            7.1,
            "brain MR, 4 channels: tumour parts",
        ),
        _decathlon("Task02_Heart", "06ee59366e1e5124267b774dbd654057", 0.4, "cardiac MR: left atrium"),
        _decathlon("Task03_Liver", "a90ec6c4aa7f6a3d087205e23d4e6397", 27.0, "abdominal CT: liver, tumour"),
        _decathlon(
            "Task04_Hippocampus", "9d24dba78a72977dbd1d2e110310f31b", 0.03, "brain MR: hippocampus, 2 parts"
        ),
        _decathlon(
            "Task05_Prostate", "35138f08b1efaef89d7424d2bcc928db", 0.2, "prostate MR, 2 channels: 2 zones"
        ),
        _decathlon("Task06_Lung", "8afd997733c7fc0432f71255ba4e52dc", 8.5, "chest CT: lung tumour"),
        _decathlon(
            "Task07_Pancreas", "4f7080cfca169fa8066d17ce6eb061e4", 11.5, "abdominal CT: pancreas, tumour"
        ),
        _decathlon(
            "Task08_HepaticVessel", "641d79e80ec66453921d997fbf12a29c", 8.7, "abdominal CT: vessels, tumour"
        ),
        _decathlon("Task09_Spleen", "410d4a301da4e5b2f6f86ec3ddba524e", 1.5, "abdominal CT: spleen"),
        _decathlon("Task10_Colon", "bad7a188931dc2f6acf72b08eb6202d0", 5.8, "abdominal CT: colon tumour"),
    )
}

RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0)
"""Waits after a connection broke off; the count starts again whenever bytes have arrived."""

_CHUNK = 1 << 18


def find_source(name: str) -> Source:
    """Return the source called ``name``; an unknown name is a ``UsageError`` that names the nearest."""
    if name not in SOURCES:
        raise UsageError(f"There is no data set '{name}' to download; {nearest(name, list(SOURCES))}")
    return SOURCES[name]


def download(
    source: Source,
    out: Path,
    *,
    progress: Progress | None = None,
    keep_archive: bool = False,
    overwrite: bool = False,
) -> Path:
    """Put the data set into ``out / source.name`` and return that folder.

    An interrupted download goes on where it stopped when the same call is made again. The folder appears only when
    the archive's checksum agreed and all of it was unpacked; if it is already there, nothing is fetched.

    Args:
        source: what to fetch, see ``find_source``.
        out: folder that receives the data set's folder and, while it lasts, the archive.
        progress: told how far it is.
        keep_archive: leave the archive in ``out`` after unpacking.
        overwrite: fetch and unpack again, replacing the folder that is there.

    Raises:
        RunError: no network, no such file on the server, disk full; a partial download is kept.
        DataError: the checksum does not agree (the file is kept aside) or the archive is not what it should be.
    """
    report = progress or (lambda *_: None)
    target = out / source.name
    if target.exists() and not overwrite:
        if not (target / "dataset.json").exists():
            raise RunError(f"{target} exists but holds no dataset.json; move it away or use --overwrite.")
        return target
    try:
        out.mkdir(parents=True, exist_ok=True)
        archive = fetch(source, out, progress=report)
        _extract(archive, target, progress=report)
        if not keep_archive:
            archive.unlink()
    except HandfulError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            f"{out}: {reason}. What was downloaded is kept; make room or choose another --out, then run it again."
        ) from error
    return target


def fetch(source: Source, out: Path, *, progress: Progress) -> Path:
    """Return the archive in ``out``, checked against its MD5; download what is missing of it.

    Bytes are collected in ``<name>.tar.part``; beside it, ``<name>.tar.part.json`` says which version of the file on
    the server they belong to, so that two versions are never glued together.
    """
    archive = out / f"{source.name}.tar"
    if not archive.exists():
        part = _Part(source.url, archive.with_name(archive.name + ".part"))
        _receive(part, progress)
        part.path.replace(archive)
        part.forget()
    found = _md5(archive, progress)
    if found != source.md5:
        aside = archive.with_name(archive.name + ".bad")
        archive.replace(aside)
        raise DataError(
            f"{source.url} did not arrive as published: MD5 {found}, expected {source.md5}. "
            f"The file is kept as {aside}: if it is small, it may be a message of your network's gateway. "
            "Delete it and run the command again."
        )
    return archive


class _Part:
    """A file that is only partly here, and which version of the remote file it is a part of."""

    def __init__(self, url: str, path: Path) -> None:
        self.url = url
        self.path = path
        self.note = path.with_name(path.name + ".json")
        self.total: int | None = None
        self.validator: str | None = None
        if path.exists() and self.note.exists():
            known = read_json(self.note)
            if known.get("url") == url:
                self.validator = known.get("validator")
                self.total = known.get("total")

    @property
    def size(self) -> int:
        """Bytes that are here."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def complete(self) -> bool:
        return self.total is not None and self.validator is not None and self.size == self.total

    def start(self, *, total: int | None, validator: str | None) -> None:
        """Begin anew, as a part of the version of the remote file that ``validator`` names."""
        self.path.write_bytes(b"")
        self.total, self.validator = total, validator
        write_json(self.note, {"url": self.url, "validator": validator, "total": total})

    def forget(self) -> None:
        self.note.unlink(missing_ok=True)


def _receive(part: _Part, progress: Progress) -> None:
    """Complete ``part``, asking again where a connection breaks off."""
    attempt = 0
    while not part.complete:
        before = part.size
        try:
            if _ask(part, progress):
                return
            reason = "the connection broke off"
        except urllib.error.HTTPError as error:
            if error.code not in (429, 500, 502, 503, 504):
                raise RunError(
                    f"{part.url}: the server answered {error.code} ({error.reason}). "
                    "The file may have moved; download it by hand, unpack it, and point handful at the folder."
                ) from None
            reason = f"the server answered {error.code} ({error.reason})"
        except urllib.error.URLError as error:
            reason = str(error.reason)
        except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
        if part.size > before:
            attempt = 0
        if attempt == len(RETRY_SECONDS):
            raise RunError(
                f"{part.url} could not be fetched: {reason}. Check the network and, if there is one, the proxy; "
                f"{part.size / 1e6:.1f} MB are kept, and the same command goes on from there."
            )
        time.sleep(RETRY_SECONDS[attempt])
        attempt += 1


def _ask(part: _Part, progress: Progress) -> bool:
    """Make one request and append what it yields; return whether the file is complete."""
    # without a validator nobody can say whether the rest belongs to the same file: begin again
    resume = part.size if part.validator else 0
    request = urllib.request.Request(
        part.url, headers={"Accept-Encoding": "identity", "User-Agent": "handful"}
    )
    if resume and part.validator:
        request.add_header("Range", f"bytes={resume}-")
        request.add_header("If-Range", part.validator)
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the file on the server is not longer than what is here: not the same file
            part.start(total=None, validator=None)
            return False
        raise
    with response:
        if not (
            response.status == 206 and _continues(response.headers.get("Content-Range"), resume, part.total)
        ):
            if response.status == 206:
                part.start(total=None, validator=None)
                return False
            length = response.headers.get("Content-Length")
            part.start(total=int(length) if length else None, validator=_validator(response.headers))
        _require_space(part)
        with open(part.path, "ab") as file:
            while chunk := _read(response):
                file.write(chunk)
                progress("downloading", file.tell(), part.total)
    if part.total is None:
        return True  # the server closed the connection: that is how it says it is all
    return part.size == part.total


def _read(response: http.client.HTTPResponse) -> bytes:
    """Read some bytes; whatever goes wrong here is the network's doing, not the disk's."""
    try:
        return response.read(_CHUNK)
    except OSError as error:
        raise ConnectionError(str(error)) from error


def _validator(headers: http.client.HTTPMessage) -> str | None:
    """Return what names this version of the file exactly; a weak ETag does not."""
    etag: str | None = headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return etag
    modified: str | None = headers.get("Last-Modified")
    return modified


def _continues(content_range: str | None, offset: int, total: int | None) -> bool:
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", content_range or "")
    return found is not None and int(found[1]) == offset and (total is None or int(found[2]) == total)


def _require_space(part: _Part) -> None:
    """Refuse at once what would fill the disk after an hour: the rest of the archive, and all of it unpacked."""
    if part.total is None:
        return
    needed = part.total - part.size + part.total
    free = shutil.disk_usage(part.path.parent).free
    if needed > free:
        raise RunError(
            f"{part.path.parent} has {free / 1e9:.1f} GB free; the archive and its contents need "
            f"{needed / 1e9:.1f} GB. Make room or choose another --out."
        )


def _md5(path: Path, progress: Progress) -> str:
    total = path.stat().st_size
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
            progress("checking", file.tell(), total)
    return digest.hexdigest()


def _extract(archive: Path, target: Path, *, progress: Progress) -> None:
    """Unpack the folder ``target.name`` of ``archive`` beside ``target``, then put it in place by one rename."""
    temporary = target.parent / f".unpacking-{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)  # of an earlier attempt that was killed
    try:
        with tarfile.open(archive) as tar:
            paths = [(member, _inside(member, archive)) for member in tar.getmembers()]
            wanted = [(member, path) for member, path in paths if member.isfile() and not _is_litter(path)]
            total = sum(member.size for member, _ in wanted)
            done = 0
            for member, path in wanted:
                place = temporary / path
                place.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                assert content is not None  # it is a file
                # written as plain bytes: modes, owners and times of the archive are of no use here
                with content, open(place, "wb") as file:
                    shutil.copyfileobj(content, file)
                done += member.size
                progress("unpacking", done, total)
        whole = temporary / target.name
        if not (whole / "dataset.json").is_file():
            raise DataError(
                f"{archive} holds no {target.name}/dataset.json: it is not the data set it should be."
            )
        if target.exists():
            target.replace(temporary / "previous")
        whole.replace(target)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{archive} is not a whole tar archive: {error}. Delete it and run the command again."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _inside(member: tarfile.TarInfo, archive: Path) -> PurePosixPath:
    """Return the member's path if it stays inside the folder it is unpacked to, whatever it is called."""
    path = PurePosixPath(member.name)
    ordinary = member.isfile() or member.isdir()
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in member.name or not ordinary:
        raise DataError(
            f"{archive} holds '{member.name}', which would be written outside the data set's folder or is no plain "
            "file; nothing was unpacked."
        )
    return path


def _is_litter(path: PurePosixPath) -> bool:
    """Tell the files that macOS puts into archives; read as images they are damaged ones."""
    return path.name.startswith("._") or path.name in {".DS_Store", "Thumbs.db"} or "__MACOSX" in path.parts
