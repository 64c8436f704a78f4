from .batch import Batch as Batch
from .beton.reader import Beton as Beton
from .data.dataset import Dataset as Dataset
from .data.open import open_data as open_data
from .loader.loader import Loader as Loader
from .sample.betons import sample_paths as sample_paths
from .views import ViewSpec as ViewSpec
