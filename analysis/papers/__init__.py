"""Published numbers, papers' layouts and papers' own figures.

A figure or table that only one paper has is a module here with the name of the experiment that trains it, and a
function ``draw(frame, out)``: it writes into the folder ``out`` what the long ``frame`` of
:func:`analysis.records.load` shows, and returns the files. ``python -m analysis runs/EXPERIMENT`` finds it by the
sweep's name.
"""
