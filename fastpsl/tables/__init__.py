"""The papers' tables beside our own measurements: `fastpsl table`.

What a table is (rows), the papers' (psl, uic; papers has all), which runs a number needs (needs), the sizes (scales), what lies on the
disk (found), which of it counts (matching), what is still to be run (commands), and the pages (cells, markdown, picture, html).
"""
