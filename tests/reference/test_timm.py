"""The tests that timm runs over all of its models, over MixMIM too: `pytest -m reference`."""

import importlib.metadata
import re
import subprocess
import sys
import tarfile

import pytest

pytestmark = pytest.mark.reference

NO_TORCHSCRIPT = "not torchscript"  # deprecated by torch, and not supported by MixMIM
PEER = "swin_base_patch4_window7_224"
CONFTEST = """
import mixmim_bench.models  # registers the models

MARKERS = "base forward backward cfg cfg_nonstd torchscript features fxforward fxbackward timeout"

def pytest_configure(config):
    for name in MARKERS.split():
        config.addinivalue_line("markers", name)
"""


@pytest.fixture(scope="module")
def timms_tests(tmp_path_factory):
    """timm's test_models.py of the installed version, from its source distribution on the package index."""
    folder = tmp_path_factory.mktemp("timm")
    version = importlib.metadata.version("timm")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "--dest", folder, f"timm=={version}"], check=True)
    with tarfile.open(folder / f"timm-{version}.tar.gz") as archive:
        text = archive.extractfile(f"timm-{version}/tests/test_models.py").read().decode()
    # models with forward_intermediates are listed by their modules
    text, count = re.subn(r"^FEAT_INTER_FILTERS = \[", "FEAT_INTER_FILTERS = ['mixmim', ", text, flags=re.M)
    assert count == 1
    (folder / "test_models.py").write_text(text)
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\n")
    return folder


def run_timms_tests(folder, names, *options):
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider"]
    command += ["-k", f"({names}) and {NO_TORCHSCRIPT}", *options, "test_models.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_every_test_that_swin_passes_mixmim_passes(timms_tests):
    """The same tests are made for both, and MixMIM passes all of them."""
    listed = run_timms_tests(timms_tests, f"mixmim_base or {PEER}", "--collect-only").stdout
    listed = [line.partition("::")[2] for line in listed.splitlines() if "::" in line]
    ours = {name.replace("mixmim_base", "") for name in listed if "mixmim_base]" in name}
    theirs = {name.replace(PEER, "") for name in listed if f"{PEER}]" in name}
    assert theirs and ours >= theirs
    done = run_timms_tests(timms_tests, "mixmim_base and not 384")
    assert done.returncode == 0, done.stdout[-5000:]
    assert re.search(rf"^{len(ours)} passed", done.stdout, flags=re.M)
