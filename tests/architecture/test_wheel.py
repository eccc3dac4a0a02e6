"""The wheel, in an environment of its own, outside the checkout, without a network: it audits the bundled subject."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from audit.subject.bundled import folder

ROOT = Path(__file__).resolve().parents[2]
NO_NETWORK = """
import socket
def refuse(*arguments, **named):
    raise RuntimeError("the network is not to be used")
for name in ("bind", "connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
socket.create_connection = socket.getaddrinfo = refuse
from audit.cli import main
main()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the checkout."""
    out = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = out.glob("*.whl")
    return found


def test_all_data_is_in_the_wheel_and_no_test_is(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    data = {
        str(path.relative_to(ROOT))
        for package in ("audit", "reports", "scenarios", "tui")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert data <= names
    assert not any(name.startswith("tests") for name in names)


def test_what_ships_is_small() -> None:
    assert 0 < sum(path.stat().st_size for path in folder().rglob("*") if path.is_file()) <= 30 * 2**20


def test_it_audits_the_bundled_subject_without_a_network(wheel: Path, tmp_path: Path) -> None:
    room = tmp_path / "venv"
    venv.create(room, with_pip=False)
    python = room / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True
    )
    # The dependencies of this environment are lent; an editable install in it is not, because its .pth is not read from here.
    (site,) = (room / "lib").glob("python*/site-packages")
    (site / "lent.pth").write_text("\n".join({sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]}) + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(python), *arguments], cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)

    home = call("-c", "import audit, reports, scenarios, tui; print(audit.__file__)")
    assert Path(home.stdout.strip()).is_relative_to(room), home.stderr
    done = call("-c", NO_NETWORK, "run", "blackmail", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert len(document["candidates"]) >= 5
    assert (elsewhere / document["report"]["html"]).is_file()
