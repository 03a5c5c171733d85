"""Small copies of real datasets on their real layouts, made of real images."""

import csv
import io
import json
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits


@cache
def jpegs() -> list[bytes]:
    """The digits of scikit-learn as JPEG files."""
    return [encoded(pixels) for pixels in (load_digits().images * 15.9).astype(np.uint8)]


def encoded(pixels: np.ndarray, form: str = "JPEG") -> bytes:
    """Encode one image."""
    file = io.BytesIO()
    Image.fromarray(pixels).resize((16, 16)).save(file, form)
    return file.getvalue()


def write(path: Path, data: bytes | str) -> None:
    """Write a file and the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def tar(path: Path, members: dict[str, bytes]) -> None:
    """Write a plain tar archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


# -- ImageNet-1K --------------------------------------------------------------------------------------


@cache
def synsets() -> tuple[str, ...]:
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


@cache
def imagenet() -> dict[str, list[tuple[str, str, bytes]]]:
    """Two images of each class to train, one to val: part -> (synset, file name without extension, bytes)."""
    names, pictures = synsets(), jpegs()
    train = [
        (s, f"{s}_{7 * k + 3 + 2 * i}", pictures[2 * k + i - 1000])
        for k, s in enumerate(names)
        for i in (0, 1)
    ]
    # the numbers of val have nothing to do with the classes
    order = np.random.default_rng(0).permutation(1000)
    val = [(names[k], f"ILSVRC2012_val_{n:08d}", pictures[n]) for n, k in enumerate(order, 1)]
    return {"train": train, "val": val}


def imagenet_folders(root: Path) -> None:
    for part, images in imagenet().items():
        for synset, stem, data in images:
            write(root / part / synset / f"{stem}.JPEG", data)


def imagenet_lists(root: Path) -> None:
    """As OpenMMLab's users have it: val lies flat."""
    for part, images in imagenet().items():
        lines = []
        for synset, stem, data in images:
            path = f"{synset}/{stem}.JPEG" if part == "train" else f"{stem}.JPEG"
            write(root / part / path, data)
            lines.append(f"{path} {synsets().index(synset)}\n")
        write(root / "meta" / f"{part}.txt", "".join(lines))


def imagenet_unpacked(root: Path) -> None:
    for part, images in imagenet().items():
        for synset, stem, data in images:
            write(root / part / (synset if part == "train" else "") / f"{stem}.JPEG", data)
    tar(root / "devkit.tar", devkit())
    with tarfile.open(root / "devkit.tar") as archive:
        archive.extractall(root, filter="data")


def imagenet_kaggle(root: Path) -> None:
    folder = root / "ILSVRC" / "Data" / "CLS-LOC"
    for part, images in imagenet().items():
        for synset, stem, data in images:
            write(folder / part / (synset if part == "train" else "") / f"{stem}.JPEG", data)
    with (root / "LOC_val_solution.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageId", "PredictionString"])
        writer.writerows(
            [stem, f"{synset} 85 1 499 272 {synset} 1 2 3 4 "] for synset, stem, _ in imagenet()["val"]
        )


def devkit() -> dict[str, bytes]:
    """The files of the development kit that matter; its classes are in an order of its own."""
    ids = np.random.default_rng(1).permutation(1000) + 1  # of each synset
    rows = [(int(i), s, "words", "gloss", 0) for i, s in zip(ids, synsets(), strict=True)]
    rows += [(1001 + i, f"n9999{i:04d}", "above", "gloss", 3) for i in range(5)]
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    file = io.BytesIO()
    savemat(file, {"synsets": np.array(sorted(rows), dtype=fields)})
    number = dict(zip(synsets(), ids.tolist(), strict=True))
    truth = "".join(f"{number[synset]}\n" for synset, _, _ in imagenet()["val"])
    return {
        "ILSVRC2012_devkit_t12/data/meta.mat": file.getvalue(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }


def imagenet_archives(root: Path) -> None:
    inner = {}
    for synset in synsets():
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            for own, stem, data in imagenet()["train"][2 * synsets().index(synset) :][:2]:
                assert own == synset
                member = tarfile.TarInfo(f"{stem}.JPEG")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        inner[f"{synset}.tar"] = file.getvalue()
    tar(root / "ILSVRC2012_img_train.tar", inner)
    tar(root / "ILSVRC2012_img_val.tar", {f"{stem}.JPEG": data for _, stem, data in imagenet()["val"]})
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        for name, content in devkit().items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def imagenet_shards(root: Path, order: list[int] | None = None) -> None:
    """Shuffled samples in shards; `order` gives each synset's label in this copy."""
    for part, images in imagenet().items():
        shuffled = np.random.default_rng(2).permutation(len(images))
        for shard, rows in enumerate(np.array_split(shuffled, 4)):
            members = {}
            for row in rows:
                synset, stem, data = images[row]
                label = synsets().index(synset) if order is None else order[synsets().index(synset)]
                about = {"filename": f"{synset}/{stem}.JPEG", "label": label}
                members |= {f"{stem}.jpg": data, f"{stem}.cls": str(label).encode()}
                members[f"{stem}.json"] = json.dumps(about).encode()
            name = {"train": "train", "val": "validation"}[part]
            tar(root / f"imagenet1k-{name}-{shard:04d}.tar", members)


def imagenet_parquet(root: Path, order: list[int] | None = None) -> None:
    for part, images in imagenet().items():
        shuffled = np.random.default_rng(3).permutation(len(images))
        for shard, rows in enumerate(np.array_split(shuffled, 2)):
            pictures, labels = [], []
            for row in rows:
                synset, stem, data = images[row]
                pictures.append({"bytes": data, "path": f"{stem}_{synset}.JPEG"})
                label = synsets().index(synset)
                labels.append(label if order is None else order[label])
            name = {"train": "train", "val": "validation"}[part]
            parquet(root / "data" / f"{name}-{shard:05d}-of-00002.parquet", pictures, labels)


def parquet(
    path: Path, pictures: list, labels: list, image: str = "image", label: str = "label", names: tuple = ()
) -> None:
    """Write a file as Hugging Face's library does: groups of a hundred, class names in the metadata."""
    import pyarrow
    from pyarrow import parquet as files

    table = pyarrow.table({image: pictures, label: labels})
    if names:
        features = {label: {"names": list(names), "_type": "ClassLabel"}, image: {"_type": "Image"}}
        about = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": about})
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_table(table, path, row_group_size=100)
