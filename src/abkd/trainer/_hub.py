"""Checks ``push_to_hub`` before anything is loaded: is there a token, does the hub respond, is the token valid?"""

from __future__ import annotations

from abkd.config import DistillConfig
from abkd.errors import ConfigError


def check_hub(args: DistillConfig) -> None:
    """Validate the token at the hub if the run pushes its student.

    Raises:
        ConfigError: no network, no token, or an invalid one.
    """
    if not args.push_to_hub:
        return
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise ConfigError(
            "push_to_hub needs network access, but HF_HUB_OFFLINE is set: unset it, or remove push_to_hub"
        )
    token = args.hub_token or get_token()
    if token is None:
        raise ConfigError("push_to_hub needs a token: run 'hf auth login', or set hub_token or HF_TOKEN")
    try:
        HfApi().whoami(token=token)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"push_to_hub: the hub does not respond or rejects this token ({type(error).__name__}: {reason}); "
            "remove push_to_hub, and push the saved student later"
        ) from error
