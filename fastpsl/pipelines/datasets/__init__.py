"""Data sets that are opened in place: folders, lists, parts and PASCAL VOC."""
