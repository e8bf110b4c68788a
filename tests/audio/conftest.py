"""Real recordings: the prompts of Debian's asterisk-core-sounds-en-wav, 8 kHz speech."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

PACKAGE = "asterisk-core-sounds-en-wav"


def fetch(folder: Path) -> str | None:
    """Unpacks the Debian package into `folder`; says why it could not. Whole or not at all: workers may race."""
    if not all(map(shutil.which, ("apt-get", "dpkg"))):
        return "no apt-get here"
    work = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        quick = ["-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10", "-o", "Acquire::https::Timeout=10"]
        run = {"cwd": work, "capture_output": True, "text": True, "timeout": 90}
        got = subprocess.run(["apt-get", *quick, "download", PACKAGE], **run)
        debs = list(work.glob("*.deb"))
        if got.returncode or not debs:
            return f"apt-get download {PACKAGE}: {(got.stderr.strip().splitlines() or ['nothing came'])[-1]}"
        subprocess.run(["dpkg", "-x", debs[0].name, "sounds"], **run, check=True)
        try:
            (work / "sounds").rename(folder)
        except OSError:
            if not folder.exists():  # another worker was no faster: a real failure
                raise
    except (OSError, subprocess.SubprocessError) as error:
        return f"could not unpack {PACKAGE}: {error}"
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return None


@pytest.fixture(scope="session")
def speech_dir(request, tmp_path_factory) -> Path:
    """A folder with the recordings: STEPAUDIO_SPEECH_DIR, or fetched once with apt-get and kept."""
    named = os.environ.get("STEPAUDIO_SPEECH_DIR")
    if named:
        if not any(Path(named).rglob("*.wav")):
            pytest.fail(f"STEPAUDIO_SPEECH_DIR={named} holds no .wav", pytrace=False)
        return Path(named)
    cache = getattr(request.config, "cache", None)
    folder = (Path(cache.mkdir("speech")) if cache else tmp_path_factory.getbasetemp()) / PACKAGE
    if not folder.exists() and (why := fetch(folder)):
        pytest.skip(f"no real recordings: {why}; unpack {PACKAGE} and name the folder in STEPAUDIO_SPEECH_DIR")
    return folder


@pytest.fixture(scope="session")
def speech_files(speech_dir) -> list[Path]:
    """All recordings, in a fixed order."""
    return sorted(speech_dir.rglob("*.wav"))
