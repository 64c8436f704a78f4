"""Self-supervised vision pre-training at the speed of the GPU: PSL, UIC and SSL++ on one data path."""

__version__ = "0.1.0"
