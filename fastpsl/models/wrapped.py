"""A backbone around a network of another library or of the user."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from typing_extensions import override

from fastpsl.models.backbone import Backbone


class Wrapped(Backbone):
    """A backbone whose tensors are those of one network, under that network's own names.

    Files of weights and exports therefore have the names that the network's library knows.

    Attributes:
        network: The network.
    """

    def __init__(self, name: str, network: nn.Module):
        super().__init__()
        self.name, self.network = name, network

    @override
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.network.state_dict(*args, **kwargs)

    @override
    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        return self.network.load_state_dict(state_dict, strict, assign)


def reason_of(error: Exception) -> str:
    """Return an error's text on one line, at most 160 characters, for our own message."""
    return " ".join(str(error).split())[:160] or type(error).__name__
