"""Figures, one file for each subject. A function takes plain data and returns a figure; `palette` has the colours."""
