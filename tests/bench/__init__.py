"""`make bench`: speed as ratios against references that are measured in the same run.

`product.py` is the only module that knows how the product does it; the others know what is asked of it.
"""
