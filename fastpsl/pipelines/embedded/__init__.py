"""The embedded sample: drawn images in dataset files and in VOC's layout, with nothing to download."""
