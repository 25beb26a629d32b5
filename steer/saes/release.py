"""SAEs by the name of a release, through sae-lens: it knows where they are and converts them."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from steer.saes.layers import layer_of_hook
from steer.saes.sae import SAE
from steer.saes.saelens import from_parts


def read_release(release: str, sae_id: str) -> SAE:
    """The SAE `sae_id` of `release`, in float32 on the CPU; downloaded unless it was before.

    Raises:
        ModuleNotFoundError: sae-lens is not installed.
        ValueError: sae-lens knows no such release or id.
        OSError: The files are not on this machine, and cannot be had.
    """
    try:
        # Takes seconds, and brings a library of models of its own.
        from sae_lens import SAE as LensSAE  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the SAE release {release} is loaded by sae-lens ({error}): pip install "
            "-e '.[sae]' in the project's folder, or give the path of an SAE on disk"
        ) from error
    try:
        lens = LensSAE.from_pretrained(release, sae_id, device="cpu", dtype="float32")
    except OSError as error:
        raise OSError(
            f"cannot get the SAE {release}/{sae_id} ({error}): connect this machine, or give the "
            "path of an SAE on disk"
        ) from error
    tensors = {name: tensor.detach() for name, tensor in lens.state_dict().items()}
    source = f"{release}/{sae_id}"
    sae = from_parts(source, lens.cfg.to_dict(), source, tensors)
    layer = layer_of_hook(sae.about["hook_point"])
    return replace(sae, about={**sae.about, "layer": layer, "fingerprint": _fingerprint(tensors)})


def _fingerprint(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
