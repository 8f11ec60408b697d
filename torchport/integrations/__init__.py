"""Our head, metrics and files inside other libraries: one file per library, which nothing else here imports."""
