"""Runs compared over seeds, as words, tables, pictures and one page.

groups.py   runs that differ in their seed only     figures.py    curves, as metrics.py describes them
tables.py   statistics over seeds                   geometry.py   Gram matrices, class means, margins
words.py    a verdict                               page.py       all of it as one HTML file
write.py    all of it on disk                       style.py      colours, lines, legends
"""
