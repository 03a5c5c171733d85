"""Small copies of real datasets on their real layouts, made of real images."""

import bz2
import csv
import gzip
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable
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
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # which Python 3.11.2 lacks
        archive.extractall(root, **safely)


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


# -- iNaturalist --------------------------------------------------------------------------------------

# year -> files of train and val, first folder of images, and the folder of a category
INAT = {
    2017: (("train2017.json", "val2017.json"), "train_val_images", "Danaus plexippus {}"),
    2018: (("train2018.json", "val2018.json"), "train_val2018", "{}"),
    2019: (("train2019.json", "val2019.json"), "train_val2019", "{}"),
    2021: (("train.json", "val.json"), "", "{:05d}_Animalia_Annelida"),
}


def inat(root: Path, year: int, classes: int, val_step: int = 10) -> None:
    """One image of each category to train, of every tenth one to val; ids of images are in no order."""
    files, first, folder = INAT[year]
    numbers = np.random.default_rng(year).permutation(2 * classes).tolist()
    for part, file, step in zip(("train", "val"), files, (1, val_step), strict=True):
        images, annotations = [], []
        for category in range(0, classes, step):
            number = numbers.pop()
            group = "" if year == 2021 else "Insecta/"
            name = f"{first or part}/{group}{folder.format(category)}/{number:032x}.jpg"
            write(root / name, jpegs()[number % 1797])
            images.append({"id": number, "file_name": name, "width": 16, "height": 16})
            annotations.append({"id": number, "image_id": number, "category_id": category})
        categories = [{"id": i, "name": str(i), "supercategory": "Insecta"} for i in range(classes)]
        annotations.reverse()
        content = {"images": images, "annotations": annotations, "categories": categories[::-1]}
        write(root / file, json.dumps(content))


# -- scenes --------------------------------------------------------------------------------------------


def scenes(count: int) -> list[str]:
    """Paths of classes as SUN and Places have them, some of them nested."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [f"{letters[i % 26]}/{letters[i % 26]}scene_{i:03d}" for i in range(count)]
    return sorted(f"{name}/outdoor" if i % 5 == 0 else name for i, name in enumerate(names))


def places365(root: Path, train: str, val: str) -> None:
    """As unpacked: list files with leading slashes, val flat; the list of classes ends without a newline."""
    names = scenes(365)
    write(root / "categories_places365.txt", "\n".join(f"/{name} {i}" for i, name in enumerate(names)))
    lines = []
    for label, name in enumerate(names):
        for number in (1, 2):
            write(root / train / name / f"{number:08d}.jpg", jpegs()[label + number])
            lines.append(f"/{name}/{number:08d}.jpg {label}\n")
    write(root / "places365_train_standard.txt", "".join(lines))
    lines = []
    for place, label in enumerate(np.random.default_rng(0).permutation(365), 1):
        write(root / val / f"Places365_val_{place:08d}.jpg", jpegs()[place])
        lines.append(f"Places365_val_{place:08d}.jpg {label}\n")
    write(root / "places365_val.txt", "".join(lines))


def places205(root: Path, classes: tuple[str, ...]) -> None:
    images = root / "data" / "vision" / "torralba" / "deeplearning" / "images256"
    for part, count in (("train", 2), ("val", 1)):
        lines = []
        for label, name in enumerate(classes):
            for number in range(count):
                path = f"{name[0]}/{name.replace('-', '/')}/gsun_{part}{label}{number}.jpg"
                write(images / path, jpegs()[label + number])
                lines.append(f"{path} {label}\n")
        write(root / "trainvalsplit_places205" / f"{part}_places205.csv", "".join(lines))


def sun397(root: Path) -> None:
    for part, number in (("Training", 0), ("Testing", 1)):
        lines = []
        for label, name in enumerate(scenes(397)):
            write(root / "SUN397" / name / f"sun_{number}.jpg", jpegs()[label + number])
            lines.append(f"/{name}/sun_{number}.jpg\n")
        write(root / "Partitions" / f"{part}_01.txt", "".join(lines))


def voc(
    root: Path,
    classes: tuple[str, ...],
    counts: tuple[int, int, int] = (40, 40, 60),
    labels_of: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    """Some images have several classes, and some only difficult objects of one.

    labels_of: labels (n, K) of digits (n,), 1 or -1; random ones by default.
    """
    folder = root / "VOCdevkit" / "VOC2007"
    rng = np.random.default_rng(0)
    number = 0
    for part, count in zip(("train", "val", "test"), counts, strict=True):
        labels = np.where(rng.random((count, len(classes))) < 0.2, 1, -1)
        if labels_of is not None:
            labels = labels_of(load_digits().target[number + 1 : number + 1 + count])
        labels[rng.random(labels.shape) < 0.05] = 0
        names = [f"{number + row:06d}" for row in range(1, count + 1)]
        number += count
        for name in names:
            write(folder / "JPEGImages" / f"{name}.jpg", jpegs()[int(name)])
        for column, class_name in zip(labels.T, classes, strict=True):
            text = "".join(f"{name} {flag:2d}\n" for name, flag in zip(names, column, strict=True))
            write(folder / "ImageSets" / "Main" / f"{class_name}_{part}.txt", text)


# -- sets of torchvision --------------------------------------------------------------------------------

SETS: dict[str, Callable[[Path], None]] = {}


def of_torchvision(make: Callable[[Path], None]) -> Callable[[Path], None]:
    SETS[make.__name__] = make
    return make


def _pixels(count: int, side: int) -> np.ndarray:
    """Give digits as colour images (n, side, side, 3)."""
    data = [
        np.asarray(Image.open(io.BytesIO(jpegs()[i % 1797])).convert("RGB").resize((side, side)))
        for i in range(count)
    ]
    return np.stack(data)


def _cifar(folder: Path, batches: dict[str, int], key: str, meta: str, names_key: str, classes: int) -> None:
    for name, count in batches.items():
        data = _pixels(count, 32).transpose(0, 3, 1, 2).reshape(count, -1)
        labels = [i % classes for i in range(count)]
        write(folder / name, pickle.dumps({"data": data, key: labels}))
    write(folder / meta, pickle.dumps({names_key: [f"class {i}" for i in range(classes)]}))


@of_torchvision
def cifar10(root: Path) -> None:
    batches = {**{f"data_batch_{i}": 20 for i in range(1, 6)}, "test_batch": 20}
    _cifar(root / "cifar-10-batches-py", batches, "labels", "batches.meta", "label_names", 10)


@of_torchvision
def cifar100(root: Path) -> None:
    _cifar(
        root / "cifar-100-python", {"train": 300, "test": 100}, "fine_labels", "meta", "fine_label_names", 100
    )


@of_torchvision
def food101(root: Path) -> None:
    for part in ("train", "test"):
        listed = {f"dish_{i:03d}": [f"dish_{i:03d}/{part}{n}" for n in range(2)] for i in range(101)}
        write(root / "food-101" / "meta" / f"{part}.json", json.dumps(listed))
        for paths in listed.values():
            for path in paths:
                write(root / "food-101" / "images" / f"{path}.jpg", jpegs()[0])


@of_torchvision
def dtd(root: Path) -> None:
    for part in ("train", "val", "test"):
        paths = [f"texture{i:02d}/{part}_{i:02d}.jpg" for i in range(47)]
        write(root / "dtd" / "dtd" / "labels" / f"{part}1.txt", "\n".join(paths))
        for path in paths:
            write(root / "dtd" / "dtd" / "images" / path, jpegs()[0])


@of_torchvision
def flowers102(root: Path) -> None:
    folder = root / "flowers-102"
    ids = np.arange(1, 102 * 4 + 1)
    for i in ids:
        write(folder / "jpg" / f"image_{i:05d}.jpg", jpegs()[i])
    savemat(folder / "imagelabels.mat", {"labels": (ids - 1) % 102 + 1})
    savemat(folder / "setid.mat", {"trnid": ids[:102], "valid": ids[102:204], "tstid": ids[204:]})


@of_torchvision
def pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    for part, count in (("trainval", 4), ("test", 2)):
        lines = []
        for breed in range(37):
            for number in range(count):
                name = f"Breed_{breed:02d}_{part}{number}"
                write(folder / "images" / f"{name}.jpg", jpegs()[breed])
                lines.append(f"{name} {breed + 1} 1 1\n")
        write(folder / "annotations" / f"{part}.txt", "".join(lines))


@of_torchvision
def aircraft(root: Path) -> None:
    data = root / "fgvc-aircraft-2013b" / "data"
    write(data / "variants.txt", "\n".join(f"Variant {i}" for i in range(100)))
    for place, part in enumerate(("train", "val", "test")):
        lines = []
        for i in range(100):
            number = f"{1000 * place + i:07d}"
            write(data / "images" / f"{number}.jpg", jpegs()[i])
            lines.append(f"{number} Variant {i}")
        write(data / f"images_variant_{part}.txt", "\n".join(lines))


@of_torchvision
def eurosat(root: Path) -> None:
    for i in range(10):
        for n in range(1, 11):
            write(root / "eurosat" / "2750" / f"Land{i}" / f"Land{i}_{n}.jpg", jpegs()[n])


@of_torchvision
def caltech101(root: Path) -> None:
    folder = root / "caltech101" / "101_ObjectCategories"
    for name in ["BACKGROUND_Google", *(f"object_{i:03d}" for i in range(101))]:
        for n in range(1, 33):
            write(folder / name / f"image_{n:04d}.jpg", jpegs()[n])


@of_torchvision
def gtsrb(root: Path) -> None:
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for i in range(43):
        for n in range(10):
            write(
                root / "gtsrb" / "GTSRB" / "Training" / f"{i:05d}" / f"00000_{n:05d}.ppm",
                encoded(_pixels(1, 8)[0], "PPM"),
            )
        write(
            root / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / f"{i:05d}.ppm",
            encoded(_pixels(1, 8)[0], "PPM"),
        )
        lines.append(f"{i:05d}.ppm;16;16;1;1;9;9;{i}")
    write(root / "gtsrb" / "GT-final_test.csv", "\n".join(lines))


@of_torchvision
def pcam(root: Path) -> None:
    import h5py

    for part, count in (("train", 40), ("valid", 20), ("test", 20)):
        (root / "pcam").mkdir(exist_ok=True)
        stem = root / "pcam" / f"camelyonpatch_level_2_split_{part}"
        with h5py.File(f"{stem}_x.h5", "w") as file:
            file["x"] = _pixels(count, 96)
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file["y"] = (np.arange(count) % 2).reshape(-1, 1, 1, 1)


@of_torchvision
def svhn(root: Path) -> None:
    for part, count in (("train", 100), ("test", 50)):
        labels = np.arange(count) % 10
        pixels = _pixels(count, 32).transpose(1, 2, 3, 0)
        savemat(root / f"{part}_32x32.mat", {"X": pixels, "y": np.where(labels == 0, 10, labels)[:, None]})


@of_torchvision
def country211(root: Path) -> None:
    for part in ("train", "valid", "test"):
        for i in range(211):
            write(root / "country211" / part / f"C{i:03d}" / f"{part}{i}.jpg", jpegs()[i])


@of_torchvision
def stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    for part, count in (("train", 50), ("test", 30)):
        write(folder / f"{part}_X.bin", _pixels(count, 96).transpose(0, 3, 2, 1).tobytes())
        write(folder / f"{part}_y.bin", (np.arange(count) % 10 + 1).astype(np.uint8).tobytes())
    write(folder / "class_names.txt", "\n".join(f"thing {i}" for i in range(10)))


@of_torchvision
def usps(root: Path) -> None:
    for name, count in (("usps.bz2", 100), ("usps.t.bz2", 30)):
        rows = load_digits().images[:count].repeat(2, 1).repeat(2, 2).reshape(count, -1) / 8 - 1
        lines = [
            f"{i % 10 + 1} " + " ".join(f"{k}:{v:.3f}" for k, v in enumerate(row, 1))
            for i, row in enumerate(rows)
        ]
        write(root / name, bz2.compress("\n".join(lines).encode()))


def idx(folder: Path, packed: bool = True, count: int = 200) -> None:
    """The four files of the MNIST family."""
    digits = load_digits()
    for part in ("train", "t10k"):
        pixels = np.stack([np.kron(d, np.ones((3, 3))) for d in digits.images[:count]]).astype(np.uint8) * 15
        images = struct.pack(">4I", 0x00000803, *pixels.shape) + pixels.tobytes()
        labels = struct.pack(">2I", 0x00000801, count) + digits.target[:count].astype(np.uint8).tobytes()
        for name, data in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            write(folder / (f"{name}.gz" if packed else name), gzip.compress(data) if packed else data)
