"""Where causal language models come from: folders, GGUF files, the hub; checked, converted, fingerprinted, loaded.

May import errors and hub, and twins.py multistate's shrunk classes. Knows no task, no policy and no attention.
"""
