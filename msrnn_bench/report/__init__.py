"""What the measurements say of the paper: its claims, judged one by one, and what of it is open.

May import results, figures and errors; only the command line imports it. Reads tables, loads no model.
"""
