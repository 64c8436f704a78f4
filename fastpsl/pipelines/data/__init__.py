"""What a data set is, and those that are no betons: folders and lists of images, subsets of any."""

from typing import TYPE_CHECKING

from fastpsl.pipelines.exports import lazy_names

if TYPE_CHECKING:
    from fastpsl.pipelines.data.dataset import Dataset, SampleTable
    from fastpsl.pipelines.data.image_folder import Folder, Listed
    from fastpsl.pipelines.data.open import open_data
    from fastpsl.pipelines.data.subset import Subset

__all__ = ["Dataset", "Folder", "Listed", "SampleTable", "Subset", "open_data"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Dataset": "dataset",
        "Folder": "image_folder",
        "Listed": "image_folder",
        "SampleTable": "dataset",
        "Subset": "subset",
        "open_data": "open",
    },
)
