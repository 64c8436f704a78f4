"""Recognition of other projects' checkpoints: their backbones, tensor names and heads.

docs/how_to/weights.md lists them.
"""

import json
import mmap
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastpsl.console.installed import install
from fastpsl.files.digest import sha256_of_file
from fastpsl.files.json_records import (
    COUNT,
    RECORD,
    TEXT,
    TEXTS,
    TRUTH,
    Form,
    NoRecord,
    maybe,
    open_regular,
    parse,
    read_bytes,
)
from fastpsl.files.paths import WEIGHTS, require_existing
from fastpsl.files.system_errors import UnreadableError, input_errors, raise_of_the_system
from fastpsl.files.untrusted import leaves, load_plain
from fastpsl.models.checkpoint import ForeignObjectError, load_tensors


def read_weights(path: Path) -> dict[str, Any]:
    """Read a file of weights onto the CPU."""
    require_existing(path, WEIGHTS)
    if path.suffix == ".safetensors":
        return dict(_read_safetensors(path)[0])
    with input_errors(path):
        if path.suffix == ".pkl" and (arrays := _read_arrays(path)) is not None:
            return arrays
        try:
            state = load_tensors(path)
        except ForeignObjectError as error:
            raise ValueError(
                f"{path} holds objects besides tensors ({error}), which could run code and are not read: "
                "with the project that wrote it, save its tensors alone, torch.save(model.state_dict(), "
                "'weights.pt'), and give that file"
            ) from None
        except UnreadableError:
            raise
        except ValueError as error:
            raise ValueError(
                f"{path} is no readable file of weights ({error}): fetch or copy it again"
            ) from None
    if isinstance(state, dict):
        return state
    raise ValueError(
        f"{path} holds a {type(state).__name__}, not a dict of tensors: save a model's state_dict()"
    )


def _read_arrays(path: Path) -> dict[str, Any] | None:
    """Read a pickle of NumPy arrays, as Detectron2 writes its weights; None for any other file."""
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            content = load_plain(data)
        arrays: Any = content.get("model", content.get(b"model"))
        # np.array would make an array of a list or a text, too.
        numbers = np.ndarray | float | int
        if not isinstance(arrays, dict) or not all(isinstance(each, numbers) for each in arrays.values()):
            return None
        names = [name.decode("latin1") if isinstance(name, bytes) else name for name in arrays]
        copies = [torch.from_numpy(np.array(array)) for array in arrays.values()]
        return dict(zip(names, copies, strict=True)) or None
    except (ValueError, TypeError):  # another kind of file; `load_tensors` tells what is wrong
        return None


# The record that `fastpsl export` writes beside a file of weights, or into it.
_EXPORT = Form("record", {
    "backbone": maybe(TEXT), "input": RECORD, "run_step": maybe(COUNT), "science": maybe(RECORD),
    "science.recipe": maybe(TEXT), "cut": maybe(TRUTH), "left_out": maybe(TEXTS), "sha256": maybe(TEXT),
})  # fmt: skip


def read_weights_sidecar(path: Path) -> dict[str, Any] | None:
    """Read the record that `fastpsl export` wrote in the file's metadata or in PATH.json."""
    json_path = path.with_name(f"{path.name}.json")
    try:
        if path.suffix == ".safetensors":
            text = _read_safetensors(path)[1].get("fastpsl")
            record = None if text is None else parse(path, text.encode())
        else:
            with input_errors(json_path):
                record = parse(json_path, read_bytes(json_path)) if json_path.exists() else None
            if not isinstance(record, dict) or record.get("sha256") != sha256_of_file(path):
                return None  # the record of other weights, or another program's file
        checked: dict[str, Any] | None = None if record is None else _EXPORT.checked(path, record)
        return checked
    except NoRecord as error:
        raise unclear(error.path, error.why) from None


def unclear(path: Path | str, why: str) -> ValueError:
    """Return the error of a record that does not say what a file holds."""
    return ValueError(
        f"{path} does not say what it holds ({' '.join(why.split())[:200]}): make it again (a recipe, "
        "fastpsl export), or give its tensors alone, with --backbone and the --input flags"
    )


def safetensors_bytes(tensors: dict[str, torch.Tensor], told: dict[str, Any]) -> bytes:
    """Serialise tensors as a safetensors file."""
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise ValueError(f"safetensors is not installed: {install('export')}") from error
    # timm and transformers look for "format".
    return save(tensors, metadata={"format": "pt", "fastpsl": json.dumps(told)})


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ValueError(f"{path}: safetensors is not installed: {install('export')}") from error
    try:
        with input_errors(path):
            open_regular(path).close()  # safe_open says of any error that there is no such file
        with safe_open(path, framework="pt") as file:
            leaves(dict.fromkeys(file.keys()), path.stat().st_size)
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise_of_the_system(path, error)
        raise ValueError(
            f"{path} is no readable safetensors file ({error}): fetch or copy it again"
        ) from None


COUNTER = ".num_batches_tracked"


@dataclass(frozen=True)
class Naming:
    """A project's naming of a backbone's tensors: `prefix`, then a name that `ours` translates."""

    kind: str  # the project
    prefix: str
    only_with: str = ""  # a pattern that some key must match, for projects that share a prefix
    ours: Callable[[str], str | None] = str  # None for a tensor that is not the backbone's


# torchvision's children of a ResNet in order, as nn.Sequential(*list(resnet.children())[:-1]) numbers them.
NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
# RotNet's AlexNet: the index of each block's convolution in our `features`, and the index of each layer of
# block 8, which has the two linear layers, in our `classifier`.
ROTNET = {"0": 0, "2": 4, "4": 8, "5": 11, "6": 14}
ROTNET_FC = {"1": 0, "2": 1, "4": 3, "5": 4}


def _by_number(name: str) -> str | None:
    number, _, rest = name.partition(".")
    return f"{NUMBERED[number]}.{rest}" if number in NUMBERED else None


def _rotnets(name: str) -> str | None:
    match = re.fullmatch(r"(\d)\.(\d)\.(\w+)", name)
    block, layer, part = match.groups() if match else ("", "", "")
    if block == "8" and layer in ROTNET_FC:
        return f"classifier.{ROTNET_FC[layer]}.{part}"
    return f"features.{ROTNET[block] + int(layer)}.{part}" if block in ROTNET else None


def _detectron2s(name: str) -> str:
    """Return torchvision's name of a ResNet's tensor by Detectron2's: the inverse of `detectron2_name`."""
    name = re.sub(r"^res(\d)\.", lambda match: f"layer{int(match[1]) - 1}.", name.removeprefix("stem."))
    name = name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
    return re.sub(r"\bconv(\d)\.norm\b", r"bn\1", name)


def _timms(name: str) -> str:
    return name.replace("pre_logits.fc1.", "classifier.0.").replace("pre_logits.fc2.", "classifier.3.")


_HEADS = r"(projection_head|prediction_head|online_classifier|prototypes)\."
_SOLO = r"(projector|predictor|classifier|momentum_backbone|queue|prototypes|head)\b"

# Tried in order; the first match wins. docs/how_to/weights.md has where projects define their names.
NAMINGS = (
    Naming("rotnet", "_feature_blocks.", only_with=r"_feature_blocks\.\d\.\d\.\w+$", ours=_rotnets),
    Naming("vissl", "_feature_blocks."),
    Naming("vissl", "trunk._feature_blocks."),
    Naming("moco", "encoder_q."),
    Naming("moco", "base_encoder."),
    Naming("lightly", "backbone.", only_with=r"backbone\.4\.0\.conv1\.", ours=_by_number),
    Naming("lightly", "backbone.", only_with=_HEADS),
    Naming("lightly", "", only_with=r"4\.0\.conv1\.", ours=_by_number),
    Naming("solo-learn", "backbone.", only_with=_SOLO),
    Naming("simclr-pytorch", "backbone."),
    Naming("simclr-pytorch", "convnet."),
    Naming("simclr-pytorch", "f.", ours=_by_number),
    Naming("solo-learn", "encoder.", only_with=r"classifier\."),
    Naming("simsiam", "encoder.", only_with=r"predictor\."),
    Naming("simclr-pytorch", "encoder."),
    Naming("deepcluster", "", r"features\.module\.|top_layer\.", lambda name: name.replace(".module.", ".")),
    # With another prefix they are a detector's, which often reads BGR and has its strides elsewhere.
    Naming("detectron2", "", only_with=r"stem\.conv1\.norm\.", ours=_detectron2s),
    Naming("timm", "", only_with=r"pre_logits\.fc1\.", ours=_timms),
    Naming("torchvision", ""),
)

# DeepCluster's fixed filters before the network, and the convolution that reads them.
SOBEL, FIRST = "sobel.1.weight", "features.0.weight"
# The keys under which a dict holds its tensors, outermost first. VISSL has its heads beside `trunk`.
WRAPPERS = ("classy_state_dict", "base_model", "model_state_dict", "state_dict", "network", "model", "trunk")
# torch.compile puts "_orig_mod." before a module's names. DistributedDataParallel puts "module." before all
# names, and a Lightning module "model.".
_COMPILED, _MODULES = re.compile(r"(?<![^.])_orig_mod\."), ("module.", "model.")
# Tensors that may accompany a backbone: fixed filters, classifiers, projections, predictions, queues and
# momentum copies.
HEADS = re.compile(
    r"(.*?\.)??(fc\d*|linear|g|sobel|top_layer|_feature_blocks\.9|encoder_k|key_\w+|"
    r"\w*(classifier|head|projection|projector|predictor|prediction|prototype|queue|momentum|teacher|student|criterion)\w*)"
    r"(\.|$)"
)


class MisfitError(ValueError):
    """An error of tensors that are missing, left over or of another shape."""


@dataclass(frozen=True)
class RecognisedWeights:
    """The tensors of a backbone found in another project's file, under our names."""

    kind: str  # the project
    tensors: dict[str, Tensor]
    left_out: list[str]  # patterns of tensors, such as "fc.*"
    unknown: list[str]  # tensors that are neither of the backbone nor of a head


def recognise(
    path: Path, state: Mapping[str, Any], wanted: Mapping[str, Tensor], partial: bool = False
) -> RecognisedWeights:
    """Recognise the project that wrote a file, and extract the backbone's tensors.

    With `partial`, it has a list of the tensors that are neither of the backbone nor of a head, and they are
    no error. It does not check that all tensors of the backbone are present.
    """
    for _ in WRAPPERS:  # a dict may hold itself
        state = next((state[name] for name in WRAPPERS if isinstance(state.get(name), Mapping)), state)
    if strange := [key for key, t in state.items() if isinstance(t, Tensor) and not isinstance(key, str)]:
        raise ValueError(
            f"{path} holds tensors whose names are no strings ({first_three(strange)}): give a state dict"
        )
    tensors = _tensors_of(state, wanted)
    if not tensors:
        raise ValueError(
            f"{path} holds no tensors by name (its keys: {first_three(list(state))}): give a state dict"
        )
    naming = next(
        naming
        for naming in NAMINGS
        if any(re.match(naming.only_with, name) for name in tensors)
        and any(name.startswith(naming.prefix) for name in tensors)
    )
    backbone: dict[str, Tensor] = {}
    if not any(name.endswith(COUNTER) for name in tensors):
        # Files from before PyTorch 0.4.1 have no count of batches, and fastpsl does not use it.
        backbone = {name: torch.zeros_like(t) for name, t in wanted.items() if name.endswith(COUNTER)}
    rest = []
    for name, tensor in tensors.items():
        # A name of the backbone's own needs no translation: `--backbone timm/vgg16` has timm's.
        our_name = name if name in wanted else None
        if our_name is None and name.startswith(naming.prefix):
            our_name = naming.ours(name.removeprefix(naming.prefix))
        if our_name is not None and our_name in wanted:
            backbone[our_name] = tensor
            if naming.kind == "timm" and tensor.numel() == wanted[our_name].numel():
                # timm's fully-connected layers are convolutions.
                backbone[our_name] = tensor.reshape(wanted[our_name].shape)
        else:
            rest.append(name)
    unknown = [name for name in rest if not HEADS.match(name)]
    if not any(t.shape == wanted[name].shape for name, t in backbone.items() if not name.endswith(COUNTER)):
        unknown = []  # `fill` refuses it, because no tensor of the backbone fits
    if unknown and not partial:
        raise MisfitError(
            f"{path}, read as {naming.kind}'s, holds {len(unknown)} tensors that are neither of the "
            f"backbone nor of a head ({first_three(unknown)}): give the --backbone that it holds"
        )
    # `fill` refuses another shape, of which a single number may claim to be millions.
    is_wanted = FIRST in backbone and backbone[FIRST].shape == wanted[FIRST].shape
    if naming.kind == "deepcluster" and is_wanted and wanted[FIRST].shape[1] == 2:
        _check_sobel(path, tensors.get(SOBEL))
        backbone[FIRST] = -backbone[FIRST]
    rest = [name for name in rest if name not in unknown]
    return RecognisedWeights(naming.kind, backbone, sorted({_group(name, wanted) for name in rest}), unknown)


def _tensors_of(state: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a state dict, without what wrappers of modules add to the names."""
    tensors = {
        name if name in wanted else _COMPILED.sub("", name): tensor
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
    }
    while wanted.keys().isdisjoint(tensors):  # a backbone's own names may begin so, too
        prefix = next((each for each in _MODULES if all(name.startswith(each) for name in tensors)), None)
        if not tensors or prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _check_sobel(path: Path, kernels: Tensor | None) -> None:
    """Raise ValueError if the file has filters that are not -8 times SobelXY's.

    Because of their sign, `recognise` negates the first convolution.
    """
    gx = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    ours = -torch.stack([gx, gx.T])[:, None]
    if kernels is not None and (kernels.shape != ours.shape or not torch.equal(kernels.float(), ours)):
        raise ValueError(
            f"{path}: its {SOBEL} is not DeepCluster's, so the network saw other gradients than SobelXY's; "
            "use other weights, because no --input-channels fits"
        )


def _group(name: str, wanted: Mapping[str, Tensor]) -> str:
    """Return a pattern for the names of one head."""
    head = HEADS.match(name)
    if head is None or head.end() == len(name):
        return name
    stem = name[: head.end()].rstrip(".")
    shared = any(key.startswith(f"{stem}.") for key in wanted)
    return f"{name.rpartition('.')[0] if shared else stem}.*"


def first_three(names: Sequence[Any]) -> str:
    """Join the first three names, for error messages."""
    return ", ".join(map(str, names[:3])) + (", …" if len(names) > 3 else "")
