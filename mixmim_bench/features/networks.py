"""The frozen networks of runs, for inference engines."""

from collections.abc import Sequence

from mixmim_bench.data.images import Loadable
from mixmim_bench.data.transforms import eval_transform
from mixmim_bench.features.engines import Source
from mixmim_bench.features.extract import sample_images
from mixmim_bench.features.keys import key_of_network
from mixmim_bench.models.build import build
from mixmim_bench.specs import Run


def source_of(run: Run, layers: Sequence[str], images: Loadable) -> Source:
    """Describe the frozen network of a run to an engine; engines are compared on some of the images."""
    return Source(
        key={**key_of_network(run), "size": list(run.size)},
        build=lambda: build(run.model, run.weights, run.size, run.seed or 0, run.classes),
        layers=layers,
        sample=lambda: sample_images(images, eval_transform(run.preprocessing)),
    )
