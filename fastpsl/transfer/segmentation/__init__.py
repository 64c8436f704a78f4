"""Segmentation on PASCAL VOC."""
