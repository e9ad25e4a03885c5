"""From a command line to cells: composed, checked, built, identified, executed, many of them shared among processes.

May import job, policies and results; models, datasets and tasks arrive through `_target_`. Only cli imports this.
"""
