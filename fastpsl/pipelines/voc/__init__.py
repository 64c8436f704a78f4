"""PASCAL VOC and SBD: images with classes, boxes and masks."""
