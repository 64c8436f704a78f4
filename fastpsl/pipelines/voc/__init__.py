"""PASCAL VOC's data, and SBD's masks: images with classes, boxes and masks."""
