"""Detection on PASCAL VOC."""
