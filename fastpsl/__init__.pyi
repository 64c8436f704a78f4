from .dataloader import loader as loader

__version__: str
