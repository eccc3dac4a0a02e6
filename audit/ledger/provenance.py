"""What made an audit: the program, the packages and the machine, as far as they can change a number."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "numpy", "transformers", "tokenizers", "safetensors", "scipy", "pydantic", "sqlite-utils")


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Recorded once an audit."""

    ulterior: str
    """Version of the distribution."""
    revision: str | None
    """Git commit of the checkout that ran, with ``+changes`` when files differed; None outside a checkout."""
    python: str
    platform: str
    cpus: int
    packages: tuple[tuple[str, str], ...]
    """(name, version) of every package whose version can change a result."""


def collect() -> Provenance:
    """What stands now."""
    return Provenance(
        ulterior=package_version("ulterior") or "not installed",
        revision=_revision(Path(__file__).resolve().parents[2]),
        python=platform.python_version(),
        platform=platform.platform(),
        cpus=os.cpu_count() or 1,
        packages=tuple((name, found) for name in PACKAGES if (found := package_version(name))),
    )


def package_version(name: str) -> str | None:
    """Version of an installed distribution, without importing it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _revision(checkout: Path) -> str | None:
    if not (checkout / ".git").exists():
        return None
    head = _git(checkout, "rev-parse", "HEAD")
    return head and head + ("+changes" if _git(checkout, "status", "--porcelain", "--untracked-files=no") else "")


def _git(checkout: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
