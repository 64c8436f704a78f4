"""The papers' tables beside our own measurements: `fastpsl table`.

What the papers print is data: psl.json, uic.json, sslpp.json, a row a line (paper_file reads them into rows; papers has all tables).
What their rows are measured on is code: psl, uic, sslpp, by names of needs and evaluations. Then the sizes (scales), what lies on the
disk (found), which of it counts (matching), what is still to be run (commands), what a page says (cells, report, page), and the
pages (render with page.md.jinja and page.html.jinja; picture, curves).
"""
