"""Where causal language models come from: folders, GGUF files, the hub; checked, converted, fingerprinted, loaded.

May import errors, nothing else of the package. Knows no task, no policy and no attention.
"""
