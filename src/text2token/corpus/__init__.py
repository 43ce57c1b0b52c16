"""Reading text: files, standard input, docstrings; normalising, counting, splitting."""
