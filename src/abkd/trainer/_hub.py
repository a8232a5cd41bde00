"""``push_to_hub`` is tried out before anything is loaded: is there a token, does the hub answer, whose is it?"""

from __future__ import annotations

from abkd.config import DistillConfig
from abkd.errors import ConfigError


def check_hub(args: DistillConfig) -> None:
    """Ask the hub who the token belongs to, where a run is to push its student.

    Raises:
        ConfigError: no network, no token, or one that the hub does not know.
    """
    if not args.push_to_hub:
        return
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise ConfigError("push_to_hub needs the hub, and HF_HUB_OFFLINE is set: unset it, or leave out push_to_hub")
    token = args.hub_token or get_token()
    if token is None:
        raise ConfigError("push_to_hub needs a token: run 'hf auth login', or set hub_token or HF_TOKEN")
    try:
        HfApi().whoami(token=token)
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise ConfigError(
            f"push_to_hub: the hub does not answer, or does not know this token ({type(error).__name__}: {said}); "
            "leave out push_to_hub, and push the saved student later"
        ) from error
