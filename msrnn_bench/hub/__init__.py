"""The Hugging Face hub as models and datasets meet it: asked with patience, and once for each revision.

May import errors, nothing else of the package. Knows neither a model nor a dataset.
"""
