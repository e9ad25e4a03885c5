"""What the question of which states stay is made of: times to sums, tokens to classes.

May import datasets, errors. Knows no task, no model and no result.
"""
