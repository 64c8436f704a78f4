from .loader import Loader as Loader
