"""What the tasks that read texts share: losses, piece by piece; pairs of functions that must be one.

May import job, datasets, models, multistate, policies, results and tasks.writing. Imports torch and transformers, so tasks
import it where they measure.
"""
