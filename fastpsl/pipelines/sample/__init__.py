"""The embedded sample: images that are drawn, not downloaded, as betons and in VOC's layout."""
