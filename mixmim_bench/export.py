"""Export models to safetensors, ONNX and torch.export; each file is reloaded and compared with the model."""

import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixmim_bench.errors import BenchError
from mixmim_bench.inference import ReadyModel
from mixmim_bench.models.build import create
from mixmim_bench.models.checkpoints import load_weights

Reloaded = Callable[[Tensor], Tensor]  # images (b, 3, H, W) -> outputs, for any b

TOLERANCE = 1e-3  # largest output difference, relative to the outputs' standard deviation
CHECKED_BATCHES = (1, 3)
IN_ONE_FILE = 1.8e9  # bytes; an ONNX file is limited to 2 GiB, so larger weights go in a separate file


def export_model(model: ReadyModel, form: str, out: Path, features: bool = False) -> float:
    """Export a model with a dynamic batch size.

    Args:
        model: the model; its network is moved to the CPU.
        form: 'safetensors', 'onnx' or 'torch-export'.
        out: the file to write.
        features: export without the classifier.

    Returns:
        The largest difference between the outputs of the model and of the reloaded export.

    Raises:
        BenchError: the difference exceeds rounding; no file is written.
    """
    suffix, write, read = _FORMATS[form]
    if out.suffix != suffix:
        raise BenchError(f"--out {out}: {form} file names must end in {suffix}")
    if not out.absolute().parent.is_dir():
        raise BenchError(f"--out {out}: no such folder {out.absolute().parent}")
    network = model.network.cpu().eval()
    if features:
        network.reset_classifier(0)
    height, width = model.preprocessing.size
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".export-") as folder, torch.no_grad():
        written = Path(folder) / out.name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters' deprecation warnings
            write(model, network, torch.randn(2, 3, height, width), written)
            difference = _compare(network, read(model, network, written), (3, height, width))
        for file in sorted(Path(folder).iterdir(), key=lambda file: file == written):  # `out` last
            file.replace(out.absolute().parent / file.name)
    return difference


@torch.no_grad()
def _compare(network: nn.Module, reloaded: Reloaded, image: tuple[int, int, int]) -> float:
    """Return the largest output difference; raises BenchError if it exceeds rounding."""
    largest = 0.0
    generator = torch.Generator().manual_seed(0)
    for batch in CHECKED_BATCHES:
        images = torch.randn(batch, *image, generator=generator)
        ours, theirs = network(images), reloaded(images)
        if ours.shape != theirs.shape:
            raise BenchError(
                f"the reloaded export returns shape {tuple(theirs.shape)}, not {tuple(ours.shape)}"
            )
        difference = float((ours - theirs).abs().max())
        if not difference <= TOLERANCE * float(ours.std()):
            raise BenchError(
                f"the export does not match the model: its reloaded outputs differ by {difference:.2g}"
            )
        largest = max(largest, difference)
    return largest


# -- safetensors -------------------------------------------------------------------------------------


def _write_safetensors(model: ReadyModel, network: Any, _: Tensor, path: Path) -> None:
    """Write the state dict with the released names, and the network's configuration as metadata."""
    from safetensors.torch import save_file

    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    metadata = {
        "format": "pt",
        "arch": model.spec.arch,
        "num_classes": str(network.num_classes),
        "image_size": "x".join(map(str, model.preprocessing.size)),
        "weights": model.weights.name,
        "weights_sha256": model.weights.sha256,
    }
    save_file(state, path, metadata)


def _read_safetensors(model: ReadyModel, network: Any, path: Path) -> Reloaded:
    size = model.preprocessing.size
    fresh = create(model.spec, size, network.num_classes).eval()
    load_weights(fresh, path, model.spec.arch)
    return fresh


# -- torch.export ------------------------------------------------------------------------------------

_DYNAMIC = ({0: torch.export.Dim("batch", min=1)},)


def _write_torch_export(_model: ReadyModel, network: Any, images: Tensor, path: Path) -> None:
    torch.export.save(torch.export.export(network, (images,), dynamic_shapes=_DYNAMIC), path)


def _read_torch_export(_model: ReadyModel, _network: Any, path: Path) -> Reloaded:
    return torch.export.load(path).module()


# -- ONNX --------------------------------------------------------------------------------------------


def _write_onnx(_model: ReadyModel, network: Any, images: Tensor, path: Path) -> None:
    _check_onnx()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            network,
            (images,),
            dynamo=True,
            dynamic_shapes=_DYNAMIC,
            input_names=["images"],
            output_names=["outputs"],
        )
        assert program is not None
        size = sum(value.nbytes for value in network.state_dict().values())
        program.save(path, external_data=size > IN_ONE_FILE)


def _read_onnx(_model: ReadyModel, _network: Any, path: Path) -> Reloaded:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _check_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BenchError(f"{error}; ONNX export needs: pip install 'mixmim-bench[export]'") from error


_FORMATS: dict[str, tuple[str, Callable[..., None], Callable[..., Reloaded]]] = {
    "safetensors": (".safetensors", _write_safetensors, _read_safetensors),
    "onnx": (".onnx", _write_onnx, _read_onnx),
    "torch-export": (".pt2", _write_torch_export, _read_torch_export),
}
