"""What a learned backbone is worth elsewhere: VOC detection, segmentation, classification, SVMs; few-shot."""
