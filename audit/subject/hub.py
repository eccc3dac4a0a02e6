"""Models and dictionaries on the Hugging Face Hub: names of them, and their files on this machine, downloaded at most once.

Nothing here runs code of a repository. Where files are kept and whether the network is used follow ``HF_HOME``, ``HF_HUB_CACHE`` and
``HF_HUB_OFFLINE``, as in every program that uses the hub.

A download that was interrupted leaves a part of its files. What is cached is used without a network where it is known to be whole, by the
library's listing of the repository or by a list of our own (``fetched``); otherwise the hub is asked for the rest, if it can be reached.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from urllib.parse import parse_qs, unquote

from audit.errors import SubjectError
from audit.subject.fetched import Download
from audit.subject.formats.reading import read_config

URI = "hf://"
Progress = Callable[[str], None]
"""Told, in a few words, what is being downloaded."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_PART = re.compile(r"[^/\\:@?#\s\0]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MODEL_FILES = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "tokenizer*", "vocab.*", "merges.txt", "*.model", "chat_template*", "additional_chat_templates/*"),
    *("*.safetensors", "*.safetensors.index.json"),
)
_NEVER_OF_A_MODEL = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.py", "consolidated*")
_WEIGHTS = (".safetensors", ".npz", ".pt", ".pth", ".bin", ".gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a hub name says."""

    org: str
    repo: str
    subfolder: str = ""
    """Path of a folder or file in the repository; empty for all of it."""
    revision: str | None = None
    """Branch, tag or commit; None for the newest of the main branch."""

    @property
    def repo_id(self) -> str:
        """``org/repo``."""
        return f"{self.org}/{self.repo}"

    def __str__(self) -> str:
        """As ``parse`` reads it."""
        path = f"{self.repo_id}/{self.subfolder}".rstrip("/")
        return path if self.revision is None else f"{path}@{self.revision}"

    @property
    def page(self) -> str:
        """Where a person finds the repository."""
        return f"https://huggingface.co/{self.repo_id}"

    @property
    def command(self) -> str:
        """The shell command that downloads it, on a machine that has a network."""
        is_file = Path(self.subfolder).suffix in (*_WEIGHTS, ".yaml", ".json")
        what = [] if not self.subfolder else [self.subfolder] if is_file else ["--include", f"{self.subfolder}/*"]
        return _command(self.repo_id, what, self.revision)

    @classmethod
    def parse(cls, text: str) -> Reference | None:
        """Read ``org/repo``, ``org/repo/sub/folder``, either with ``@revision``, or ``hf://org/repo/…?revision=…``; None for anything else.

        A text that is a local path, lies in an existing folder, or looks like a path (it begins with ``.``, ``/`` or ``~``, or has no
        ``/``), is none: a mistyped path is no reason to ask the hub. ``hf://`` always means the hub.
        """
        if text.startswith(URI):
            path, _, query = text.removeprefix(URI).partition("?")
            return _reference(*_at_repository(path, (parse_qs(query).get("revision") or [""])[0]))
        if text.startswith((".", "/", "~")) or "/" not in text or _exists(text) or _exists(text.split("/")[0]):
            return None
        path, at, revision = text.partition("@")
        return None if at and not revision else _reference(path, revision)


def _command(repo_id: str, what: Sequence[str], revision: str | None) -> str:
    return shlex.join(["hf", "download", repo_id, *what, *(["--revision", revision] if revision else [])])


def _at_repository(path: str, revision: str) -> tuple[str, str]:
    """(path, revision) of ``org/repo@revision/path``, the other way that a URI may name a revision."""
    match = re.fullmatch(r"([^/@]+/[^/@]+)@([^/]+)(/.*)?", path)
    return (unquote(match[1] + (match[3] or "")), revision or unquote(match[2])) if match else (unquote(path), revision)


def _reference(path: str, revision: str) -> Reference | None:
    org, *rest = path.rstrip("/").split("/")
    names_are_valid = bool(rest) and all(_NAME.fullmatch(name) for name in (org, rest[0]))
    if not names_are_valid or not all(_PART.fullmatch(part) and part not in (".", "..") for part in rest[1:]):
        return None
    if revision and not all(_PART.fullmatch(part) and part != ".." for part in revision.split("/")):
        return None
    return Reference(org=org, repo=rest[0], subfolder="/".join(rest[1:]), revision=revision or None)


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def commit_of(path: Path) -> str | None:
    """The commit of a file or folder in the hub's cache (40 hexadecimal digits), None elsewhere."""
    parts = path.absolute().parts
    pairs = zip(parts, parts[1:], strict=False)
    return next((after for before, after in pairs if before == "snapshots" and _COMMIT.fullmatch(after)), None)


def cached_file(reference: Reference) -> Path | None:
    """A file of a repository that is already on this machine; the network is not used."""
    try:
        found = _library().try_to_load_from_cache(reference.repo_id, reference.subfolder, revision=reference.revision)
    except (OSError, ValueError):  # a name that the cache cannot hold
        return None
    return Path(found) if isinstance(found, str) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What is fetched of a repository."""

    reference: Reference
    allow: tuple[str, ...] | None
    """Patterns of paths; None for all."""
    ignore: tuple[str, ...]
    """Patterns of paths that are left out."""
    lacks: Callable[[Path], str | None]
    """What the folder or file is known to lack; None if nothing."""

    def within(self, snapshot: Path) -> Path:
        """The folder or file in a snapshot of the repository."""
        return snapshot / self.reference.subfolder

    def of(self, names: Iterable[str]) -> list[str]:
        """Those of a repository's paths that are wanted."""
        return list(_library().utils.filter_repo_objects(names, allow_patterns=self.allow, ignore_patterns=self.ignore))

    def missing(self, snapshot: Path, names: Iterable[str]) -> str | None:
        """The first of a repository's paths that is wanted and not there."""
        return next((name for name in self.of(names) if not (snapshot / name).is_file()), None)

    def cached(self) -> Path | None:
        """The snapshot that is on this machine, unless the library knows that a part of it is missing; the network is not used."""
        try:
            return self._snapshot(_library(), self.reference.revision, local_files_only=True)
        except (OSError, ValueError):  # not cached, or not all of it
            return None

    def downloaded(self, revision: str | None) -> Path:
        """The snapshot, after what is missing of it has been downloaded.

        Raises:
            SubjectError: it could not be.
        """
        return _guarded(self.reference, lambda library: self._snapshot(library, revision))

    def _snapshot(self, library: ModuleType, revision: str | None, **options: bool) -> Path:
        call = partial(library.snapshot_download, allow_patterns=self.allow, ignore_patterns=self.ignore)
        return Path(call(self.reference.repo_id, revision=revision, **options))

    def download(self, snapshot: Path) -> Download:
        """Of the snapshot's commit."""
        return Download(repo_id=self.reference.repo_id, commit=snapshot.name, allow=self.allow, ignore=self.ignore)


def fetch_model(reference: Reference, progress: Progress, *, offline: bool = False) -> Path:
    """The folder of a model: configuration, tokenizer, chat template and safetensors, never pickles or code.

    Args:
        reference: what to fetch.
        progress: called once if something has to be downloaded.
        offline: use what is on this machine alone.

    Raises:
        SubjectError: it is not cached and cannot or may not be downloaded, or lacks what a model needs.
    """
    prefix = f"{reference.subfolder}/" if reference.subfolder else ""
    deeper = f"{prefix}*/*.safetensors"  # other forms of the same weights
    wanted = _Wanted(
        reference=reference,
        allow=tuple(prefix + name for name in _MODEL_FILES),
        ignore=(*_NEVER_OF_A_MODEL, *(f"*/{name}" for name in _NEVER_OF_A_MODEL), deeper),
        lacks=_lacks_of_a_model,
    )
    return _fetch(wanted, progress, offline=offline)


def fetch_dictionary(reference: Reference, progress: Progress, *, offline: bool = False) -> Path:
    """The folder or file of a dictionary without its dashboards, and the files of other repositories that its config.yaml lists.

    Args:
        reference: what to fetch.
        progress: called once for each repository or file that has to be downloaded.
        offline: use what is on this machine alone.

    Raises:
        SubjectError: it is not cached and cannot or may not be downloaded, or holds no weights.
    """
    allow = (reference.subfolder, f"{reference.subfolder}/*") if reference.subfolder else None
    wanted = _Wanted(reference=reference, allow=allow, ignore=("features/*", "*/features/*"), lacks=_lacks_of_a_dictionary)
    path = _fetch(wanted, progress, offline=offline)
    absent = [listed for listed in _listed(path) if cached_file(listed) is None]
    if absent and offline:
        raise _not_here(reference, _commands(absent))
    for listed in absent:
        progress(f"downloading {listed}")
        _guarded(listed, partial(_file, listed))
    return path


def _fetch(wanted: _Wanted, progress: Progress, *, offline: bool) -> Path:
    known = wanted.cached()
    if known is not None and wanted.lacks(wanted.within(known)) is None:
        is_final = offline or _library().constants.is_offline_mode() or _is_whole(wanted, known)
        return wanted.within(known if is_final else _completed(wanted, known, progress))
    if offline:
        raise _not_here(wanted.reference, [wanted.reference.command])
    progress(f"downloading {wanted.reference}")
    snapshot = wanted.downloaded(wanted.reference.revision)
    if (lacking := wanted.lacks(wanted.within(snapshot))) is not None:
        raise _incomplete(wanted, snapshot, lacking)
    _finish(wanted, snapshot)
    return wanted.within(snapshot)


def _is_whole(wanted: _Wanted, snapshot: Path) -> bool:
    """Whether a list of what was to be downloaded is on this machine, and all of it is there."""
    names = _kept_listing(wanted.reference.repo_id, snapshot.name)
    if names is None:
        names = wanted.download(snapshot).names()
    return names is not None and wanted.missing(snapshot, names) is None


def _completed(wanted: _Wanted, snapshot: Path, progress: Progress) -> Path:
    """The cached snapshot with what it lacks of its commit; as it is, where the hub does not say what belongs to it."""
    library = _library()
    try:
        library.model_info(wanted.reference.repo_id, revision=snapshot.name, timeout=10)  # seconds; the next call would try for longer
        names = library.list_repo_files(wanted.reference.repo_id, revision=snapshot.name)
    except _failures(library):
        return snapshot
    if wanted.missing(snapshot, names) is not None:
        progress(f"downloading {wanted.reference}")
        wanted.downloaded(snapshot.name)  # not of the branch: that may have moved on
        if (lacking := wanted.missing(snapshot, names)) is not None:
            raise _incomplete(wanted, snapshot, lacking)
    _finish(wanted, snapshot)
    return snapshot


def _kept_listing(repo_id: str, commit: str) -> list[str] | None:
    """Paths of a repository's files as the library remembers them; None if it does not."""
    library = _library()
    if not hasattr(library, "get_cached_repo_tree"):  # an older version
        return None
    try:
        return [str(each.path) for each in library.get_cached_repo_tree(repo_id, revision=commit)]
    except (library.errors.CachedRepoTreeNotFoundError, OSError, ValueError):
        return None


def _finish(wanted: _Wanted, snapshot: Path) -> None:
    """Say that all that is there is all there is."""
    there = (path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())
    wanted.download(snapshot).finish(wanted.of(there))


def _lacks_of_a_model(folder: Path) -> str | None:
    if not (folder / "config.json").is_file():
        return "config.json"
    if not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab.*")):
        return "the tokenizer's files"
    shards = {name for index in folder.glob("*.safetensors.index.json") for name in _shards(index)}
    missing = sorted(name for name in shards if not (folder / name).is_file())
    if missing:
        return missing[0]
    return None if any(folder.glob("*.safetensors")) else "weights as .safetensors"


def _shards(index: Path) -> set[str]:
    try:
        return {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {f"a readable {index.name}"}


def _lacks_of_a_dictionary(path: Path) -> str | None:
    """What is missing; whether every layer is there, the format's loader says."""
    if path.is_file() or (path / "config.yaml").is_file() and _listed(path):
        return None
    return None if any(file.suffix in _WEIGHTS for file in path.rglob("*")) else f"a file of weights ({', '.join(_WEIGHTS)})"


def _listed(path: Path) -> Sequence[Reference]:
    """Files of repositories that the list ``transcoders`` of a config.yaml names."""
    if not (path / "config.yaml").is_file():
        return ()
    entries = read_config(path / "config.yaml").get("transcoders")
    names = [entry.get("filepath") if isinstance(entry, dict) else entry for entry in (entries if isinstance(entries, list) else ())]
    named = [Reference.parse(name) for name in names if isinstance(name, str) and name.startswith(URI)]
    return [reference for reference in named if reference is not None and reference.subfolder]


def _library() -> ModuleType:
    """``huggingface_hub``, without telemetry and progress bars."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.errors
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars

    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # it may have been imported before
    if not are_progress_bars_disabled():
        disable_progress_bars()
    return huggingface_hub


def _failures(library: ModuleType) -> tuple[type[Exception], ...]:
    """What its functions raise that may use the network."""
    over_http = library.errors.HfHubHTTPError.__bases__[0]  # of the HTTP library, which differs between versions
    return over_http, OSError, ValueError, RuntimeError, library.errors.EntryNotFoundError


def _guarded(reference: Reference, ask: Callable[[ModuleType], Path]) -> Path:
    """Ask the library for what may need the network."""
    library = _library()
    try:
        return ask(library)
    except _failures(library) as error:
        raise _explained(reference, error, library) from error


def _file(reference: Reference, library: ModuleType) -> Path:
    return Path(library.hf_hub_download(reference.repo_id, filename=reference.subfolder, revision=reference.revision))


def _commands(files: Sequence[Reference]) -> list[str]:
    """The shell commands that download files, one for each repository and revision."""
    together = dict.fromkeys((each.repo_id, each.revision) for each in files)
    return [_command(repo, [each.subfolder for each in files if (each.repo_id, each.revision) == (repo, at)], at) for repo, at in together]


def _not_here(reference: Reference, commands: Sequence[str]) -> SubjectError:
    return SubjectError(
        "Not on this machine",
        f"'{reference}' is not, or not all, in the cache, and nothing is downloaded here.",
        f"Run {' and '.join(f'`{command}`' for command in commands)}, or copy the folder here and give its path.",
    )


def _incomplete(wanted: _Wanted, snapshot: Path, lacking: str) -> SubjectError:
    unset = "unset HF_HUB_OFFLINE, or " if _library().constants.is_offline_mode() else ""
    return SubjectError(
        "Not all of it is there",
        f"'{wanted.reference}', at '{wanted.within(snapshot)}', lacks {lacking}.",
        f"Check the name on {wanted.reference.page}; if it is right, {unset}run: {wanted.reference.command}",
    )


def _explained(reference: Reference, error: Exception, library: ModuleType) -> SubjectError:
    """What a person can do about an error of the hub."""
    errors, page = library.errors, reference.page
    elsewhere = f"run `{reference.command}` where there is a network, copy the folder here, and give its path"
    if isinstance(error, errors.GatedRepoError):
        return SubjectError("Access is restricted", f"'{reference}' is gated.", f"Accept its terms on {page}, then log in: hf auth login")
    if isinstance(error, errors.RepositoryNotFoundError):
        why = f"There is no local path and no repository '{reference.repo_id}' on the hub, or it is private."
        return SubjectError("Not found", why, f"Check the name on {page}; for a private one, log in: hf auth login")
    if isinstance(error, errors.RevisionNotFoundError):
        return SubjectError("Not found", f"'{reference.repo_id}' has no revision '{reference.revision}'.", f"See what {page} has.")
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        why = f"'{reference}' does not fit where '{library.constants.HF_HUB_CACHE}' is."
        return SubjectError("The disk is full", why, "Make room, or set HF_HOME to a larger disk.")
    if library.constants.is_offline_mode():
        why = f"'{reference}' is not, or not all, in the cache, and the network may not be used."
        then = f"{elsewhere[0].upper()}{elsewhere[1:]}; or unset HF_HUB_OFFLINE, where it is set"
        return SubjectError("Not on this machine", why, f"{then}.")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return SubjectError("Not found", f"'{reference.repo_id}' has no file '{reference.subfolder}'.", f"See its files on {page}.")
    why = f"'{reference}' could not be downloaded: {' '.join(str(error).split())[:200] or type(error).__name__}"
    return SubjectError("The hub cannot be reached", why, f"Check the network and HF_HOME ('{library.constants.HF_HOME}'), or {elsewhere}.")
