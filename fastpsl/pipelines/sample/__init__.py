"""The embedded sample: drawn images in beton files and in VOC's layout, with nothing to download."""
