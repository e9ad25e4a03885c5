"""What a bounded multi-state RNN is: states, the two engines that evict them, and `bounded()`, which gives them to a model.

May import policies (and errors), nothing else of the package. Knows no task, no text and no file.
"""
