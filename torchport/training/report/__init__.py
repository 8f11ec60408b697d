"""Compare runs over seeds, in sentences, tables, pictures and one page.

data_sets.py  runs on the same data, which can be compared      figures.py   curves, as metrics.py describes them
groups.py     runs that differ in their seed only               geometry.py  Gram matrices, class means, margins
labels.py     what tells groups apart                           classes.py   accuracy by class, confusion matrices
tables.py     statistics over seeds                             page.py      all of it as one HTML file
words.py      verdicts and comparisons                          style.py     colours, lines, legends
write.py      files
"""
