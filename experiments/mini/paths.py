"""Places the mini-world scripts read and write, all relative to the repository root."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "outputs" / "mini"
SOURCES = WORK / "sources"
POOLS = WORK / "pools"
CORPUS = WORK / "corpus"
RUNS = WORK / "runs"
ASSETS = ROOT / "taskvec" / "data" / "assets"
SUITE = ASSETS / "mini8"
CONF_TASK = ROOT / "conf" / "task"


def deb(name: str) -> Path:
    """The folder a Debian package was unpacked into."""
    return SOURCES / "deb" / name


def npm(name: str) -> Path:
    """The folder an npm package was unpacked into (its `package/` root)."""
    return SOURCES / "npm" / name.replace("/", "__").replace("@", "") / "package"


def pip(name: str) -> Path:
    """The folder a wheel was unpacked into."""
    return SOURCES / "pip" / name
