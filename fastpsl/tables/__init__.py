"""The papers' tables beside our own measurements: `fastpsl table`.

What the papers print is data: psl.json, uic.json and sslpp.json, which paper_file reads into rows. The
modules psl, uic and sslpp say what each row is measured on, and scales with which values. results lists the
results on the disk, matching picks those that count, and commands writes what is still to be run. report
computes the cells; page and chart write the files.
"""
