"""The bytes of one image: headers, upright RGB, resizing and encoding."""
