"""Multi-label classification on PASCAL VOC."""
