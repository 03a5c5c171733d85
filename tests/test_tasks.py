"""Task files and layouts: every file of the suite, and every way in which one can be wrong."""

import csv
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import TASK, write_digits
from hypothesis import given
from hypothesis import strategies as st

from mixmim_bench.data.dataset import open_task
from mixmim_bench.data.files import listed_files
from mixmim_bench.data.images import UnreadableImage
from mixmim_bench.data.index import stamp
from mixmim_bench.data.layout import LayoutError, find_layout
from mixmim_bench.data.layouts import embedded
from mixmim_bench.data.layouts.embedded import LOADERS
from mixmim_bench.data.layouts.folder import ImageFolder
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.errors import BenchError, MissingData, TaskFileError, UnknownName
from mixmim_bench.suite.selection import load_tasks, select_tasks, task_folder
from mixmim_bench.suite.taskfile import read_task

TASKS = load_tasks()


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_task_of_the_suite_says_where_it_comes_from(task):
    assert task.reference
    assert task.suites


@pytest.mark.parametrize("name", [n for n, t in TASKS.items() if "embedded" in t.suites])
def test_an_embedded_task_is_there_stratified_and_the_same_each_time(name):
    data = open_task(TASKS[name])
    LOADERS[name].cache_clear()  # of conftest.py
    assert data.source.fingerprint == open_task(TASKS[name]).source.fingerprint
    total = sum(len(part) for part in data.parts.values())
    assert total <= sum(TASKS[name].counts.values())
    ids = np.concatenate([part.ids for part in data.parts.values()])
    assert len(set(ids.tolist())) == total
    for part in data.parts.values():
        share = np.bincount(part.labels, minlength=TASKS[name].num_classes) / len(part)
        assert share.min() > 0.5 / TASKS[name].num_classes
        assert part.images.load(0).mode == "RGB"


def test_digits_keep_their_grey_levels():
    part = open_task(TASKS["digits"]).parts["train"]
    pixels = np.stack([np.asarray(part.images.load(row))[..., 0] for row in range(len(part))])
    assert set(np.unique(pixels)) == {round(level * 255 / 16) for level in range(17)}


# -- a user's own task -------------------------------------------------------------------------------


def edited(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_an_image_folder_is_read(my_task):
    data = open_task(read_task(my_task))
    assert {role: len(part) for role, part in data.parts.items()} == {"train": 48, "val": 12, "test": 30}
    assert data.classes == ("digit 0", "digit 1", "digit 2")
    test = data.parts["test"]
    assert test.ids[0].startswith("val/digit 0/")
    assert np.bincount(test.labels).tolist() == [10, 10, 10]
    assert sorted(test.ids) == test.ids.tolist()


def test_images_known_by_name_stay_in_their_slice_when_folders_change(my_task, tmp_path):
    edited(my_task, 'root = "images"', 'root = "images"\noptions = { ids = "name" }')
    before = open_task(read_task(my_task)).parts
    assert all("/" not in i and "." not in i for i in before["val"].ids)
    folder = tmp_path / "images" / "train" / "digit 1"
    (folder / "more").mkdir()
    for image in list(folder.glob("*.png"))[:5]:
        image.rename(folder / "more" / image.name)
    after = open_task(read_task(my_task)).parts
    assert {role: part.ids.tolist() for role, part in after.items()} == {
        role: part.ids.tolist() for role, part in before.items()
    }
    shutil.copy(next((folder / "more").glob("*.png")), folder)
    with pytest.raises(TaskFileError, match="listed twice"):
        open_task(read_task(my_task))
    edited(my_task, 'ids = "name"', 'ids = "nam"')
    with pytest.raises(
        TaskFileError, match=r"data\.options: ids is 'nam', not one of 'path', 'name', 'class/name'"
    ):
        open_task(read_task(my_task))


def test_a_csv_of_paths_and_labels_is_read_the_same(my_task, tmp_path):
    by_folder = open_task(read_task(my_task))
    for part in ("train", "val"):
        with (tmp_path / "images" / f"{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label"])
            for image in sorted((tmp_path / "images" / part).rglob("*.png")):
                writer.writerow([image.relative_to(tmp_path / "images"), image.parent.name])
    text = TASK.replace('["folder:ImageFolder"]', '["csvlist:CSVList"]')
    options = '[data.options]\nfiles = { train = "train.csv", val = "val.csv" }\n'
    path = tmp_path / "listed.toml"
    path.write_text(text.replace("[image]", options + "[image]"))
    by_list = open_task(read_task(path))
    assert by_list.source.fingerprint == by_folder.source.fingerprint
    assert by_list.classes == by_folder.classes


def test_csv_labels_that_are_numbers_are_taken_as_they_are(tmp_path):
    write_digits(tmp_path / "pictures", per_class=4)
    rows = [f"{p.relative_to(tmp_path)},{p.parent.name[-1]}" for p in sorted(tmp_path.rglob("*.png"))]
    (tmp_path / "all.csv").write_text("path,label\n" + "\n".join(rows[::-1]))
    text = TASK.replace('["folder:ImageFolder"]', '["csvlist:CSVList"]').replace('"images"', '"."')
    text = text.replace("[image]", '[data.options]\nfiles = { all = "all.csv" }\n[image]')
    for role, cut in (("train", "[:50%]"), ("val", "[50%:75%]"), ("test", "[75%:]")):
        text = "\n".join(
            f'{role} = "all{cut}"' if line.startswith(f"{role} =") else line for line in text.splitlines()
        )
    (tmp_path / "numbered.toml").write_text(text)
    data = open_task(read_task(tmp_path / "numbered.toml"))
    for part in data.parts.values():
        assert [int(i.split("digit ")[1][0]) for i in part.ids] == part.labels.tolist()


def test_names_with_spaces_links_and_letters_of_any_language(my_task, tmp_path):
    folder = tmp_path / "images" / "train" / "digit 0"
    shutil.copy(next(folder.glob("*.png")), folder / "Übung ä 図.PNG")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("not an image")
    (folder / "link.png").symlink_to(next(folder.glob("0*.png")))
    data = open_task(read_task(my_task))
    assert len(data.parts["train"]) + len(data.parts["val"]) == 62


def test_the_fingerprint_sees_what_changes_and_nothing_else(my_task, tmp_path):
    def look():
        data = open_task(read_task(my_task))
        return data.source.fingerprint, stamp(data.parts["test"])

    before = look()
    image = next((tmp_path / "images" / "val").rglob("*.png"))
    assert look() == before
    os.utime(image, ns=(1, 1))  # as after copying: the same images, but not those seen before
    assert look()[0] == before[0] and look()[1] != before[1]
    image.write_bytes(image.read_bytes() + b" ")
    assert look()[0] != before[0]


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("num_classes = 3", "", "num_classes: the key is missing"),
        ("num_classes = 3", 'num_classes = "3"', "num_classes: must be an integer"),
        ("num_classes = 3", "num_classes = 0", "num_classes: must be at least 1"),
        ("num_classes = 3", "num_classes = 4", "num_classes: is 4, but the data has 3 classes"),
        ("num_classes = 3", "num_clases = 3", "num_classes: the key is missing"),
        (
            'title = "My digits"',
            'title = "My digits"\nmetrix = 1',
            "metrix: unknown key; did you mean metrics",
        ),
        ('metrics = ["top1"]', 'metrics = ["top11"]', "metrics: no 'top11'; did you mean top1"),
        ('metrics = ["top1"]', "metrics = []", "metrics: names no metric"),
        ("schema = 1", "schema = 99", "schema: is 99"),
        ('kind = "classification"', 'kind = "clasification"', "kind: no kind 'clasification'; did you mean"),
        (
            "size = 32",
            "size = 32\ncrop_percent = 1",
            "image.crop_percent: unknown key; did you mean crop_pct",
        ),
        ("size = 32", "size = 32\ncrop_pct = 1.5", "image.crop_pct: must be"),
        ('test = "val"', "", "split.test: the key is missing"),
        ('test = "val"', 'test = "train[70%:]"', "split: train and test share images of part 'train'"),
        ('test = "val"', 'test = "val[%]"', "split.test: 'val[%]' is not a slice"),
        ('test = "val"', 'test = "val[:0]"', "split.test: 'val[:0]' selects no images"),
        ("epochs = 2", "epoch = 2", "recipe.finetune: unknown key 'epoch'; did you mean epochs"),
        ("epochs = 2", 'epochs = "2"', "recipe.finetune: epochs must be like 100"),
        ("[recipe.finetune]", "[recipe.finetunes]", "recipe.finetunes: no protocol 'finetunes'"),
        ('"folder:ImageFolder"', '"folder:ImageFolders"', "data.layouts: no layout 'folder:ImageFolders'"),
        ('root = "images"', 'root = "images"\nrooot = 1', "data.rooot: unknown key; did you mean root"),
        ("[image]", "[data.options]\ndepth = 3\n[image]", "data.options: folder:ImageFolder:"),
        ("[image]", "[data.counts]\nval = 31\n[image]", "data.counts.val: is 31, but the data has 30"),
        ("schema = 1", "schema = = 1", "mine.toml: "),
        ("size = 32", "size = 0", "image.size: must be at least 1"),
        ("size = 32", "size = 32\ncrop_pct = 0.0", "image.crop_pct: must be above 0"),
        ("[image]", "[data.counts]\nvall = 30\n[image]", "data.counts.vall: no split uses this part"),
        ("[recipe.finetune]", "[recipe]\nlinear = 3\n[recipe.finetune]", "recipe.linear: must be a table"),
        ("batch_size = 8", "batch_size = 0", "recipe.finetune: batch_size must be at least 1"),
        ("batch_size = 8", "base_lr = nan", "recipe.finetune: base_lr must be like"),
        ("epochs = 2", "epochs = 0", "recipe.finetune: epochs must be at least 1"),
        ('"folder:ImageFolder"', '"folder"', "data.layouts: no layout 'folder' (it is not a class)"),
        ('"folder:ImageFolder"', '"mine:Layout"', "data.layouts: no layout 'mine:Layout'"),
        ("[image]", "[data.options]\nfiles = 3\n[image]", "data.options: folder:ImageFolder:"),
    ],
)
def test_a_wrong_task_file_names_file_and_key(my_task, old, new, key):
    edited(my_task, old, new)
    with pytest.raises(TaskFileError) as caught:
        open_task(read_task(my_task))
    assert str(my_task) in str(caught.value)
    assert key in str(caught.value)


def test_a_slice_beyond_its_part_is_refused(my_task):
    edited(my_task, 'test = "val"', 'test = "val[:5000]"')
    with pytest.raises(
        TaskFileError, match=r"split\.test: the slice needs image 5000, but part 'val' has only 30"
    ):
        open_task(read_task(my_task))
    edited(my_task, "[data]", "[data]\ncounts = { val = 30 }")
    with pytest.raises(TaskFileError, match=r"split\.test: the slice needs image 5000"):
        read_task(my_task)


def test_a_link_to_nowhere_is_an_image_that_cannot_be_read(my_task, tmp_path):
    (tmp_path / "images" / "train" / "digit 0" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    data = open_task(read_task(my_task))
    parts = [data.parts["train"], data.parts["val"]]
    (part, row) = next((p, i) for p in parts for i, name in enumerate(p.ids) if name.endswith("gone.png"))
    with pytest.raises(UnreadableImage, match="FileNotFoundError"):
        part.images.load(row)


# -- code beside task files --------------------------------------------------------------------------

MARKING_LAYOUT = """\
from pathlib import Path

Path({mark!r}).touch()

from mixmim_bench.data.layouts.folder import ImageFolder


class Own(ImageFolder):
    pass
"""


@pytest.fixture
def strange(my_task, tmp_path):
    """A stranger's task, with code beside it that leaves a mark when it runs."""
    (tmp_path / "evil.py").write_text(MARKING_LAYOUT.format(mark=str(tmp_path / "it ran")))
    my_task.write_text(my_task.read_text().replace("folder:ImageFolder", "evil:Own"))
    return my_task


COMMANDS = [
    ("run", "-m", "test_vit", "-p", "knn", "--dry-run", "--weights", "random"),
    ("run", "-m", "test_vit", "-p", "knn", "--weights", "random"),
    ("doctor", "--full"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_code_beside_a_task_file_runs_only_if_it_is_trusted(strange, run, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)  # python -m has this folder on its path
    monkeypatch.syspath_prepend(str(tmp_path))
    path, results = list(sys.path), () if command[0] == "doctor" else ("--results", tmp_path / "r")
    refused = run(*command, "-t", strange, *results, code=1 if command[0] == "doctor" else 2)
    said = " ".join(refused.output.split())
    assert "'evil:Own' is code next to the task file" in said and "--trust-task-code" in said
    assert not (tmp_path / "it ran").exists()
    run(*command, "-t", strange, *results, "--trust-task-code")
    assert (tmp_path / "it ran").exists()
    assert sys.path == path


def test_a_folder_of_task_files_can_be_trusted_for_good(strange, run, tmp_path):
    config = Path(os.environ["MIXMIM_BENCH_CONFIG"])
    config.write_text(f'trusted_tasks = ["{tmp_path}"]\n')
    run("run", "-m", "test_vit", "-p", "knn", "--weights", "random", "--dry-run", "-t", strange)
    config.write_text(f'trusted_tasks = ["{tmp_path / "other"}"]\n')
    run("run", "-m", "test_vit", "-p", "knn", "--weights", "random", "--dry-run", "-t", strange, code=2)
    config.write_text("trusted_tasks = ['relative']\n")
    said = run("doctor", code=2).output
    assert "trusted_tasks[0]: must be an absolute path, not 'relative'" in said


def test_processes_that_decode_find_the_code_of_a_trusted_task(strange):
    """Also where they are started afresh, as on macOS and Windows."""
    layout = find_layout("evil:Own", strange.parent, trusted=True)
    child = f"import pickle; print(pickle.loads({pickle.dumps(layout)!r}).__name__)"
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Own"


@pytest.mark.parametrize("module", ["folder", "mixmim_bench.data.folder", "mixmim_bench.data.layouts.folder"])
def test_a_layout_has_a_short_name_and_those_of_earlier_versions(tmp_path, module):
    assert find_layout(f"{module}:ImageFolder", tmp_path) is ImageFolder


@pytest.mark.parametrize("name", LOADERS)
def test_embedded_images_are_those_that_their_packages_load(name, monkeypatch):
    """The files in the packages are read directly; where a version keeps them elsewhere, by the package."""
    pixels, labels, _ = LOADERS[name]()
    monkeypatch.setattr(embedded, "_table", lambda *_: None)
    from_package = getattr(embedded, f"_{name}")()
    assert np.array_equal(pixels, from_package[0]) and pixels.dtype == from_package[0].dtype == np.uint8
    assert np.array_equal(labels, from_package[1])


def test_two_layout_files_of_one_name_are_two_modules(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "twins.py").write_text(f"class Own:\n    name = {folder!r}\n")
    for folder in ("a", "b", "a"):
        assert find_layout("twins:Own", tmp_path / folder, trusted=True).name == folder


def test_a_layout_file_may_be_called_as_a_module_of_the_package(tmp_path):
    (tmp_path / "folder.py").write_text("class ImageFolder:\n    mine = True\n")
    assert find_layout("folder:ImageFolder", tmp_path, trusted=True).mine
    (tmp_path / "broken_layout.py").write_text("class Own\n")
    with pytest.raises(LayoutError, match="no layout 'broken_layout:Own'"):
        find_layout("broken_layout:Own", tmp_path, trusted=True)


def test_a_package_beside_a_task_file_is_code_too(tmp_path, monkeypatch):
    (tmp_path / "layouts").mkdir()
    (tmp_path / "layouts" / "__init__.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(LayoutError, match="is code next to the task file"):
        find_layout("layouts.mine:Own", tmp_path)


@pytest.mark.parametrize("keyword", ["download", "transform", "loader", "root"])
def test_keywords_of_torchvision_only_choose_images(run, tmp_path, keyword):
    task = tmp_path / "strange.toml"
    text = (task_folder() / "cifar10.toml").read_text()
    task.write_text(text.replace("train = { train = true }", f"train = {{ train = true, {keyword} = true }}"))
    for command in (("run", "--dry-run", "-m", "test_vit", "--weights", "random"), ("doctor",)):
        said = run(*command, "-t", task, "--data-root", tmp_path, code=1 if command[0] == "doctor" else 2)
        assert f"the keyword '{keyword}' does not select images" in " ".join(said.output.split())


def test_a_pattern_of_endless_numbers_is_refused(tmp_path):
    with pytest.raises(LayoutError, match=r"\{0\.\.99999999999\} expands to more than 1,000,000 files"):
        listed_files(tmp_path, "{0..99999999999}.tar")


def test_an_empty_class_folder_is_named(my_task, tmp_path):
    for image in (tmp_path / "images" / "train" / "digit 1").iterdir():
        image.unlink()
    with pytest.raises(TaskFileError, match=r"mine.toml: data: no images in the class folder .*digit 1"):
        open_task(read_task(my_task))


def test_a_class_that_one_part_lacks_is_named(my_task, tmp_path):
    shutil.rmtree(tmp_path / "images" / "val" / "digit 2")
    with pytest.raises(TaskFileError, match="val has no class folder digit 2"):
        open_task(read_task(my_task))


def test_missing_images_say_what_to_put_where(my_task, tmp_path):
    shutil.rmtree(tmp_path / "images" / "val")
    with pytest.raises(MissingData, match=f"mine: not found: class folders {tmp_path}/images/val"):
        open_task(read_task(my_task))


def test_a_listed_image_that_is_absent_is_named(tmp_path):
    write_digits(tmp_path / "a", per_class=2)
    (tmp_path / "all.csv").write_text("path,label\na/digit 0/0000.png,0\na/none.png,1\n")
    text = TASK.replace('["folder:ImageFolder"]', '["csvlist:CSVList"]').replace('"images"', '"."')
    text = text.replace("[image]", '[data.options]\nfiles = { train = "all.csv", val = "all.csv" }\n[image]')
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(TaskFileError, match=r"lists 1 missing image, such as .*none.png"):
        open_task(read_task(tmp_path / "mine.toml"))


def test_one_image_in_two_parts_is_refused(tmp_path):
    write_digits(tmp_path, per_class=4)
    rows = [f"{p.relative_to(tmp_path)},{p.parent.name[-1]}" for p in sorted(tmp_path.rglob("*.png"))]
    (tmp_path / "all.csv").write_text("path,label\n" + "\n".join(rows))
    text = TASK.replace('["folder:ImageFolder"]', '["csvlist:CSVList"]').replace('"images"', '"."')
    text = text.replace("[image]", '[data.options]\nfiles = { train = "all.csv", val = "all.csv" }\n[image]')
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(TaskFileError, match=r"split: the image digit 0/0000\.png is listed twice: "):
        open_task(read_task(tmp_path / "mine.toml"))


# -- selection ---------------------------------------------------------------------------------------


def test_tasks_are_picked_by_name_glob_suite_and_path(my_task):
    assert [t.name for t in select_tasks(["mnist5*", "digits"], [])] == ["mnist5k", "digits"]
    assert {t.name for t in select_tasks([], ["embedded"])} >= {"digits", "mnist5k"}
    assert [t.name for t in select_tasks([str(my_task), "digits"], [])] == ["mine", "digits"]


def test_wrong_names_bring_the_nearest(tmp_path):
    with pytest.raises(UnknownName, match="no task 'digit'; did you mean digits"):
        select_tasks(["digit"], [])
    with pytest.raises(UnknownName, match="no suite 'embeded'; did you mean embedded"):
        select_tasks([], ["embeded"])
    with pytest.raises(TaskFileError, match="no such file"):
        select_tasks([str(tmp_path / "none.toml")], [])


def test_a_users_file_may_not_take_a_name_of_the_suite(my_task):
    taken = my_task.rename(my_task.with_name("digits.toml"))
    with pytest.raises(BenchError, match=r"another task is called 'digits' \(.*\); rename"):
        select_tasks([str(taken)], [])


def test_a_file_twice_is_one_task_and_two_of_one_name_are_refused(my_task, tmp_path):
    assert len(select_tasks([str(my_task), str(my_task)], [])) == 1
    (tmp_path / "other").mkdir()
    other = shutil.copy(my_task, tmp_path / "other" / "mine.toml")
    with pytest.raises(BenchError, match="another task is called 'mine'"):
        select_tasks([str(my_task), str(other)], [])


OWN_LAYOUT = """
import numpy as np
from mixmim_bench.data.images import Arrays, Part

class Stripes:
    def __init__(self, root, parts):
        self.parts = parts
    def missing(self):
        return ""
    def classes(self):
        return ("down", "across", "both")
    def part(self, name):
        labels = np.arange(30) % 3
        pixels = np.zeros((30, 16, 16), np.uint8)
        pixels[labels != 1, ::2] = 255
        pixels[labels != 0, :, ::2] = 255
        return Part(np.array([f"{name}{i}" for i in range(30)]), labels, Arrays(pixels, name))
"""


def test_an_own_layout_stands_beside_the_task_file(my_task, tmp_path):
    (tmp_path / "stripes_layout.py").write_text(OWN_LAYOUT)
    edited(my_task, "folder:ImageFolder", "stripes_layout:Stripes")
    data = open_task(read_task(my_task), DataRoots(trusted=(tmp_path,)))
    assert data.classes == ("down", "across", "both")
    assert len(data.parts["train"]) == 24


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"path,label\n\xff\xfe.png,a\n", "is not UTF-8"),
        (b"file,label\na.png,a\n", "has no column path"),
        (b"path,label\na.png,\n", "all.csv:2: path or label is empty"),
        (b"path,label\n", "lists no image"),
    ],
)
def test_a_wrong_list_is_named(tmp_path, content, told):
    (tmp_path / "all.csv").write_bytes(content)
    text = TASK.replace('["folder:ImageFolder"]', '["csvlist:CSVList"]').replace('"images"', '"."')
    text = text.replace("[image]", '[data.options]\nfiles = { train = "all.csv", val = "all.csv" }\n[image]')
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(TaskFileError, match=told):
        open_task(read_task(tmp_path / "mine.toml"))


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text exist on Linux")
def test_a_file_name_that_is_no_text(my_task, tmp_path):
    folder = os.fsencode(tmp_path / "images" / "val" / "digit 0")
    shutil.copy(next((tmp_path / "images" / "val" / "digit 0").glob("*.png")), folder + b"/\xff\xfe.png")
    data = open_task(read_task(my_task))
    assert len(data.parts["test"]) == 31
    assert all(data.parts["test"].images.load(row).mode == "RGB" for row in range(31))


@given(st.data())
def test_no_change_of_a_good_file_breaks_the_reader(data):
    """Whatever is changed in a task file, it is a task or a TaskFileError."""
    lines = TASK.splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    junk = st.sampled_from(
        ["3", "-1", "nan", '"x"', "[]", '["a"]', "{}", "{ a = 1 }", "true", "[[1]]", "1.5"]
    )
    keys = st.sampled_from([line.partition(" =")[0] for line in lines if "=" in line] + ["counts", "options"])
    new = data.draw(st.one_of(st.just(""), st.builds("{} = {}".format, keys, junk), st.text(max_size=20)))
    text = "\n".join([*lines[:at], new, *lines[at + 1 :]])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.toml"
        path.write_text(text, encoding="utf-8", errors="replace")
        with suppress(TaskFileError, MissingData):
            open_task(read_task(path))


@given(st.text(max_size=60))
def test_no_text_breaks_the_reader(text):
    """Whatever a file holds, it is a task or a TaskFileError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.toml"
        path.write_text(text, encoding="utf-8", errors="replace")
        with pytest.raises(TaskFileError):
            read_task(path)
