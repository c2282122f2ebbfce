"""Looking at a written page: its tags and text, and what a browser makes of it."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = {"meta", "img", "br", "hr", "link", "input", "source"}


class Walk(HTMLParser):
    """Tags in order, every attribute, and the text outside styles; unbalanced tags are an assertion."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += text


def read(page: Path) -> Walk:
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    return Walk(text)


def browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed")
    return found


def visit(page: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    flags: Sequence[str] = (
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-extensions",
        "--disable-dev-shm-usage", "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr", "--v=0", f"--user-data-dir={folder / 'profile'}",
    )  # fmt: skip
    environment = {
        **os.environ,
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "XDG_CACHE_HOME": str(folder),
    }
    done = subprocess.run(
        [browser(), *flags, *options, page.as_uri()],
        capture_output=True, text=True, timeout=120, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def requests_of(page: Path, log: Path) -> list[str]:
    """Return what a visit asked the network for, by the browser's own log."""
    traffic = log.read_text(encoding="utf-8", errors="replace")
    ours = [url for url in re.findall(r'"url":"([^"]*)"', traffic) if url.startswith(("http", "ws", "ftp"))]
    # the browser itself may ask its maker for updates; nothing may come from the page
    asked = [url for url in ours if "google" not in url and "gvt1" not in url]
    return asked + re.findall(re.escape(f'"initiator":"{page.as_uri()}'), traffic)
