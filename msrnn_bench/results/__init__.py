"""What measurements leave: rows in cells, journals of what is half done, manifests; and the tables made of them.

May import errors, nothing else of the package. Knows no torch: a finished cell is recognised in a moment.
"""
