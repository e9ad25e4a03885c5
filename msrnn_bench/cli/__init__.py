"""The command line: main.py dispatches, a file for each command that is more than a call.

May import everything. Imports nothing heavy before a command needs it, so that --help answers at once.
"""
