"""What a learned backbone is worth elsewhere: detection, segmentation, multi-label, support vector machines, few-shot."""
