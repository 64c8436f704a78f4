"""The backbones: their names, and the function that builds one with random weights."""

from fastpsl.console.offered import offer_only_all
from fastpsl.models.backbone import Backbone
from fastpsl.models.factory import make_backbone
from fastpsl.models.names import BACKBONES

__all__ = ["BACKBONES", "Backbone", "make_backbone"]
offer_only_all(__name__)
