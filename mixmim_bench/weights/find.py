"""Find the weights of a model: a local file, a download, or none."""

from pathlib import Path

from mixmim_bench.errors import BenchError, MissingWeights
from mixmim_bench.factcache import fact_of
from mixmim_bench.registry import has_weights, place_of
from mixmim_bench.specs import AUTO, NO_WEIGHTS, RANDOM, ModelSpec, Weights, WeightsSpec
from mixmim_bench.weights.download import Bar, DownloadError, answers, fetch, file_sha256

HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def resolve_weights(
    model: ModelSpec, choice: str, bar: Bar | None = None, finetuned: bool = False
) -> Weights:
    """Find the weights of a model.

    Args:
        model: the model.
        choice: 'random', the path of a file, or 'auto' for what the model's file names, else the first
            registered checkpoint on this machine, else the first that can be downloaded; pretrained ones come
            before fine-tuned ones, as suits probing.
        bar: creates the progress bar of a download; if None, nothing is downloaded and weights of kind
            'remote' are returned.
        finetuned: consider only fine-tuned checkpoints, if there are any.

    Raises:
        MissingWeights: no weights were found; the message lists the ways to get some.
        BenchError: the file does not exist or is not the published one.
    """
    if model.weightless:
        return NO_WEIGHTS
    named = choice == AUTO and model.checkpoint
    choice = model.checkpoint if named else choice
    if choice == "random":
        return RANDOM
    if choice != AUTO:
        path = Path(choice).expanduser()
        if not path.is_file():
            raise BenchError(f"{model.name}: weights {choice}: no such file (or use 'auto' or 'random')")
        return _describe(path)
    weights = _registered(model, bar, finetuned) if model.weights else _from_hub(model, bar)
    if weights is None:
        kind = "fine-tuned" if finetuned and any(each.finetuned for each in model.weights) else "pretrained"
        raise missing(model, f"no {kind} weights on this machine")
    return weights


def _describe(path: Path, name: str = "") -> Weights:
    """Describe a checkpoint file; unpublished files are named after the file and its digest."""
    sha256 = file_sha256(path)
    name = name or f"{path.name} ({sha256[:8]})"
    return Weights(kind="file", name=name, sha256=sha256, path=str(path))


def _registered(model: ModelSpec, bar: Bar | None, finetuned: bool) -> Weights | None:
    """Return the first registered checkpoint on this machine, else download the first that has a URL."""
    candidates = sorted(model.weights, key=lambda weights: weights.finetuned)
    if finetuned:
        candidates = [weights for weights in candidates if weights.finetuned] or candidates
    for weights in candidates:
        if has_weights(weights):
            return checked(weights)
    downloadable = [weights for weights in candidates if weights.url]
    if not downloadable:
        return None
    weights = downloadable[0]
    if bar is None:
        if not answers(weights.url):
            return None
        return Weights(kind="remote", name=weights.name, sha256=weights.sha256)
    try:
        fetch(weights.url, place_of(weights), weights.sha256, bar)
    except DownloadError as error:
        raise missing(model, str(error)) from error
    return checked(weights)


def checked(weights: WeightsSpec) -> Weights:
    """Describe a published checkpoint on this machine; raises BenchError if its hash does not match."""
    local = _describe(place_of(weights), weights.name)
    if not local.sha256.startswith(weights.sha256):
        raise BenchError(
            f"{local.path} is not {weights.name}: its SHA-256 starts with {local.sha256[:8]}, not "
            f"{weights.sha256}; remove the file"
        )
    return local


def _hub_id(model: ModelSpec) -> str:
    """Return the Hugging Face Hub repository that timm loads the weights from, '' if none."""

    def look_up() -> str:
        import timm

        config = timm.models.get_pretrained_cfg(model.arch)
        return (config.hf_hub_id or "") if config is not None else ""

    return fact_of(model.arch, "hub id", look_up)


def _from_hub(model: ModelSpec, bar: Bar | None) -> Weights | None:
    """Find the file that timm would load from the Hugging Face Hub, downloading it if possible."""
    hub = _hub_id(model)
    if not hub:
        return None
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = f"hf-hub:{hub}"
    for file in HUB_FILES:
        path = try_to_load_from_cache(hub, file)
        if isinstance(path, str):
            return _describe(Path(path), name)
    if constants.HF_HUB_OFFLINE or not answers(constants.ENDPOINT):
        return None
    if bar is None:
        return Weights(kind="remote", name=name)
    for file in HUB_FILES:
        try:
            return _describe(Path(hf_hub_download(hub, file)), name)
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
            continue
    return None


def here(model: ModelSpec) -> str:
    """Return the name of the local weights that 'auto' would use, '' if none."""
    if model.checkpoint not in ("", AUTO):
        return Path(model.checkpoint).name if Path(model.checkpoint).is_file() else ""
    for weights in sorted(model.weights, key=lambda weights: weights.finetuned):
        if has_weights(weights):
            return weights.name
    if model.weights:
        return ""
    from huggingface_hub import try_to_load_from_cache

    hub = _hub_id(model)
    cached = hub and any(isinstance(try_to_load_from_cache(hub, file), str) for file in HUB_FILES)
    return f"hf-hub:{hub}" if cached else ""


def missing(model: ModelSpec, reason: str) -> MissingWeights:
    """Build the error that explains why a model has no weights, with all ways to get some."""
    ways = [by_hand(weights) for weights in model.weights]
    hub = "" if model.weights else _hub_id(model)
    if hub:
        ways.append(f"download {hub} from the Hugging Face Hub while online")
    ways.append("pass a checkpoint with --weights PATH")
    ways.append("or use random weights with --weights random")
    return MissingWeights(f"{model.name}: {reason}. To fix this: {'; '.join(ways)}", reason)


def by_hand(weights: WeightsSpec) -> str:
    """Return the instructions for a manual download."""
    source = weights.url or f"{weights.name} from {weights.home}"
    digest = f" (SHA-256 {weights.sha256}…)" if weights.sha256 else ""
    return f"put {source}{digest} at {place_of(weights)}"
