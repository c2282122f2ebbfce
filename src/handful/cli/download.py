"""``handful download``: a public data set, the only command that uses the network."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from handful.cli.console import next_command, progress, say, say_json, table
from handful.cli.options import Json, Overwrite, Quiet


def _names(incomplete: str) -> list[str]:
    from handful.data.download import SOURCES

    return [name for name in SOURCES if name.startswith(incomplete)]


def download(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", autocompletion=_names, help="Of the data set; without it, list them."),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder that receives the folder NAME.")] = Path(),
    keep_archive: Annotated[bool, typer.Option("--keep-archive", help="Do not delete the archive.")] = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fetch a public data set, checksummed; an interrupted download goes on where it stopped."""
    from handful.data import download as download_

    if name is None:
        sources = download_.SOURCES.values()
        if json:
            say_json([asdict(source) for source in sources])
        else:
            rows = [(s.name, f"{s.gigabytes:g} GB", s.contents, s.licence) for s in sources]
            table(("name", "about", "contents", "licence"), rows)
            next_command("handful", "download", "Task04_Hippocampus", "--out", out)
        return
    source = download_.find_source(name)
    with progress(unit="bytes", quiet=quiet or json) as report:
        folder = download_.download(
            source, out, progress=report, keep_archive=keep_archive, overwrite=overwrite
        )
    if json:
        say_json({"folder": str(folder), **asdict(source)})
    elif not quiet:
        say(f"{folder}: {source.contents} ({source.licence})")
        next_command("handful", "check", folder)
