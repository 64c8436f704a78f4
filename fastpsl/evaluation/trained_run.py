"""The images that a run learned from and was scored on, for evaluations that are given none."""

import os
from dataclasses import dataclass
from pathlib import Path

from fastpsl.engine.options import NO_VAL, share_of
from fastpsl.files.json_records import NoRecord
from fastpsl.files.paths import FORMS, require_existing
from fastpsl.files.remote.address import is_remote
from fastpsl.files.run_folder import CONFIG
from fastpsl.files.system_errors import input_errors
from fastpsl.models.names import is_timm


@dataclass(frozen=True)
class TrainedRun:
    """A run's folder and the data in its config.json.

    Attributes:
        folder: The run's folder.
        data: Its --data; None for the embedded sample.
        val: Its --val: data, a share of `data` such as 10%, or none.
    """

    folder: Path
    data: str | None
    val: str | None

    @classmethod
    def of(cls, source: str | Path) -> "TrainedRun | None":
        """Return the run of a folder or a checkpoint; None for weights that belong to no run."""
        if is_remote(source) or is_timm(str(source)):
            return None
        weights = Path(source)
        whole = Path(os.path.abspath(weights))  # a name alone has no parents
        places = (weights, whole.parent) if weights.is_dir() else (whole.parent.parent,)
        folder = next((place for place in places if (place / CONFIG.name).is_file()), None)
        if folder is None:
            return None
        path = folder / CONFIG.name
        try:
            with input_errors(path):
                options = CONFIG.read(path, "options")["options"]
            if "data" not in options:
                raise NoRecord(path, "has no options.data")
        except NoRecord as error:
            raise ValueError(
                f"{path} does not say what the run learned from: give --data (it {error.why})"
            ) from None
        return cls(folder, options["data"], options.get("val"))

    def train_images(self, remedy: str = "give --data") -> str | None:
        """Return the images that the run learned from; None for the embedded sample.

        Raises:
            ValueError: It is no longer there.
        """
        return self._there(self.data, "training", remedy)

    def val_images(self, remedy: str = "give --data") -> str | None:
        """Return --val with which `open_both` opens what the run was scored on; None for the embedded sample.

        Raises:
            ValueError: The run had none, or they are no longer there.
        """
        if self.val == NO_VAL or (self.data is not None and self.val is None):
            raise ValueError(f"{self.folder} was trained without validation images: {remedy}")
        return self._there(self.val, "validation", remedy)

    @property
    def held_back(self) -> float | None:
        """The share of `data` that was held back for validation, from 0 to 1; None if `val` names data."""
        return share_of(self.val)

    def val_data(self, remedy: str = "give --data") -> str | None:
        """Return the validation images where they are data of their own; None for the embedded sample.

        Raises:
            ValueError: They are a share of the training images, or `val_images` raises it.
        """
        if self.held_back:
            raise ValueError(f"{self.folder} was scored on {self.val} of its training images: {remedy}")
        return self.val_images(remedy)

    def scored(self) -> tuple[str | None, str | None]:
        """Return --data and --val of the images to score: a share is one of the training images."""
        if self.held_back:
            return self.train_images(), self.val
        return self.val_images(), None

    def _there(self, source: str | None, part: str, remedy: str) -> str | None:
        if source is not None and not is_remote(source) and share_of(source) is None:
            try:
                require_existing(source, FORMS)
            except ValueError:
                raise ValueError(
                    f"the {part} images of {self.folder} are not here: {source}; {remedy}"
                ) from None
        return source
