from .reader import Beton as Beton
