"""Where the weights of a model come from: a file here, an address to fetch from, or nowhere."""

from pathlib import Path

from mixmim_bench.errors import BenchError, MissingWeights
from mixmim_bench.kept import fact_of
from mixmim_bench.registry import has_weights, place_of
from mixmim_bench.specs import AUTO, RANDOM, ModelSpec, Weights, WeightsSpec
from mixmim_bench.weights.download import Bar, DownloadError, answers, fetch, file_sha256

HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def resolve_weights(
    model: ModelSpec, choice: str, bar: Bar | None = None, finetuned: bool = False
) -> Weights:
    """Find the weights: 'random', the path of a file, or 'auto' for the registered ones.

    With 'auto' the first registered checkpoint that is here is taken, else the first that can be fetched:
    pretrained ones before fine-tuned ones, which is what probing wants. With `finetuned` only
    those are taken where there are any.
    Without a `bar` nothing is fetched: what would be is described by its registry entry, kind 'remote'.
    Raises MissingWeights, which says what to put where, if there is none.
    """
    if choice == "random":
        return RANDOM
    if choice != AUTO:
        path = Path(choice).expanduser()
        if not path.is_file():
            raise BenchError(f"--weights {choice}: there is no such file (or say 'auto' or 'random')")
        return _described(path)
    found = _registered(model, bar, finetuned) if model.weights else _from_hub(model, bar)
    if found is None:
        raise missing(model, "no pretrained weights are on this machine")
    return found


def _described(path: Path, name: str = "") -> Weights:
    """Describe a checkpoint file; one without a published name is named with its digest."""
    sha256 = file_sha256(path)
    name = name or f"{path.name} ({sha256[:8]})"
    return Weights(kind="file", name=name, sha256=sha256, path=str(path))


def _registered(model: ModelSpec, bar: Bar | None, finetuned: bool) -> Weights | None:
    """Take the first registered checkpoint that is here, else fetch the first that has an address."""
    by_choice = sorted(model.weights, key=lambda weights: weights.finetuned)
    if finetuned:
        by_choice = [weights for weights in by_choice if weights.finetuned] or by_choice
    for weights in by_choice:
        if has_weights(weights):
            return checked(weights)
    to_fetch = [weights for weights in by_choice if weights.url]
    if not to_fetch:
        return None
    weights = to_fetch[0]
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
    """Describe a published checkpoint that is here; raises BenchError if the file is another one."""
    found = _described(place_of(weights), weights.name)
    if not found.sha256.startswith(weights.sha256):
        raise BenchError(
            f"{found.path} is not {weights.name}: its SHA-256 starts with {found.sha256[:8]}, not "
            f"{weights.sha256}; remove the file"
        )
    return found


def _hub_id(model: ModelSpec) -> str:
    """Return the repository on the Hugging Face hub that timm loads weights from, '' if there is none."""

    def look_up() -> str:
        import timm

        config = timm.models.get_pretrained_cfg(model.arch)
        return (config.hf_hub_id or "") if config is not None else ""

    return fact_of(model.arch, "hub id", look_up)


def _from_hub(model: ModelSpec, bar: Bar | None) -> Weights | None:
    """Find the file that timm would load from the Hugging Face hub, downloading it if it can."""
    hub = _hub_id(model)
    if not hub:
        return None
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = f"hf-hub:{hub}"
    for file in HUB_FILES:
        path = try_to_load_from_cache(hub, file)
        if isinstance(path, str):
            return _described(Path(path), name)
    if constants.HF_HUB_OFFLINE or not answers(constants.ENDPOINT):
        return None
    if bar is None:
        return Weights(kind="remote", name=name)
    for file in HUB_FILES:
        try:
            return _described(Path(hf_hub_download(hub, file)), name)
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
            continue
    return None


def here(model: ModelSpec) -> str:
    """Name the weights of a model that are on this machine and that 'auto' would take, '' if none are."""
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
    """Make the error that says why there are no weights of a model, and every way to get some."""
    ways = [by_hand(weights) for weights in model.weights]
    hub = "" if model.weights else _hub_id(model)
    if hub:
        ways.append(f"download {hub} from the Hugging Face hub while online")
    ways.append("give a checkpoint with --weights PATH")
    ways.append("or take random weights on purpose with --weights random")
    return MissingWeights(f"{model.name}: {reason}. What helps: {'; '.join(ways)}", reason)


def by_hand(weights: WeightsSpec) -> str:
    """Say what to fetch by hand, and where to put it."""
    what = weights.url or f"{weights.name} from {weights.home}"
    digest = f" (SHA-256 {weights.sha256}…)" if weights.sha256 else ""
    return f"put {what}{digest} at {place_of(weights)}"
