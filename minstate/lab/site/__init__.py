"""The course as a web site: a pre-pass writes what Sphinx reads, Sphinx builds the pages, and then links are checked.

    python -m minstate.lab.site              # needs the extra `site`; the pages are in out/site/
    python -m minstate.lab.site --prepare    # the pre-pass alone, which needs no Sphinx: into out/site-source/

The pre-pass copies notebooks and texts. Their links to files of the repository then lead to pages of these files, and a
file, class or function that a text names in code font becomes a link to its source. The pre-pass also writes the tables
of results from `data/results/`, and the reference from docstrings. No notebook is executed.
"""
