"""The papers' tables beside our own measurements: `fastpsl table`.

What the papers print is data: psl.json, uic.json and sslpp.json hold one row per line. paper_file reads them,
and papers has all tables. The modules psl, uic and sslpp say what the rows are measured on, and with which
values. The other modules follow the way of a table: scales and values (the values that count), found (what is
on the disk), matching (which of it counts), commands (what is still to be run), cells, report and page (the
numbers and words of a page), render, picture and curves (the files).
"""
