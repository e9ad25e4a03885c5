"""What models read: documents from files, from Python itself or the hub, questions on them, chunks of tokens.

May import errors and hub, nothing else of the package. Knows a tokenizer only as something to call.
"""
